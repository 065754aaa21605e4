//! Checks of devices: flanneld's, other people's tunnels with our identifiers, and what fits through ours.

use std::net::IpAddr;

use super::Check;
use super::host::Host;

/// The bytes that VXLAN adds to each packet: outer IP header, UDP (8), VXLAN (8), inner Ethernet (14) (RFC 7348 §5).
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;

/// Checks for devices that flanneld left.
pub(super) fn flannel(host: &Host) -> Check {
    const NAME: &str = "flannel";
    let left = host.devices.iter().filter(|(name, _)| name.as_str().starts_with("flannel"));
    let left: Vec<String> = left.map(|(name, what)| format!("{name} ({what})")).collect();
    if left.is_empty() {
        return Check::ok(NAME, "no device of flanneld's");
    }
    Check::warning(
        NAME,
        format!("flanneld left {}", left.join(", ")),
        "if flanneld is gone for good: agent join --take-over, or ip link del",
    )
}

/// Checks for foreign VXLAN devices on our UDP ports, or with our identifiers.
pub(super) fn clashes(host: &Host) -> Check {
    const NAME: &str = "vxlan-clash";
    for (name, what) in host.devices.iter().filter(|(name, _)| !name.as_str().starts_with("flannel")) {
        let Some((vni, port)) = vxlan(what) else { continue };
        // Before the agent has made its own, flannel's defaults are what it will want.
        let wanted: Vec<(u32, u16)> = match host.tunnels().map(|(_, vni, port, _)| (vni, port)).collect::<Vec<_>>() {
            none if none.is_empty() => vec![(1, 8472)],
            some => some,
        };
        if wanted.contains(&(vni, port)) {
            return Check::failure(
                NAME,
                format!("{name}, which is not ours, has VNI {vni} and UDP port {port}"),
                "two devices cannot have both: remove that one, or give the network another --vni",
            );
        }
        if wanted.iter().any(|(_, ours)| *ours == port) {
            return Check::warning(
                NAME,
                format!("{name} (VNI {vni}), which is not ours, receives on UDP port {port} too"),
                "harmless while its VNI is no network's of ours; give one of them another port to be sure",
            );
        }
    }
    Check::ok(NAME, "no foreign VXLAN device has our identifier or port")
}

/// Parses `vxlan VNI 1 port 8472`, as the kernel crate describes such a device.
fn vxlan(what: &str) -> Option<(u32, u16)> {
    let (vni, port) = what.strip_prefix("vxlan VNI ")?.split_once(" port ")?;
    Some((vni.parse().ok()?, port.parse().ok()?))
}

/// Checks what fits through underlay, device and env file. The underlay must have room for the device's packets.
pub(super) fn mtu(host: &Host) -> Check {
    const NAME: &str = "mtu";
    let mtu_of = |name: &str| {
        let found = host.facts.interfaces.iter().find(|interface| interface.name.as_str() == name);
        found.and_then(|interface| interface.mtu).map(flatnet_model::Mtu::get)
    };
    for (device, _, _, local) in host.tunnels() {
        let overhead = if matches!(local, IpAddr::V4(_)) { OVERHEAD_V4 } else { OVERHEAD_V6 };
        let underlay = host.interface_with(local);
        let below = underlay.and_then(|name| Some((name, mtu_of(name.as_str())?)));
        let (Some((underlay, below)), Some(own)) = (below, mtu_of(device.as_str())) else { continue };
        if own + overhead > below {
            return Check::failure(
                NAME,
                format!(
                    "{device} has MTU {own}, and {underlay}, which carries it, {below}: {overhead} bytes are added"
                ),
                "large packets are lost: a running agent puts its device right; if the network's configuration fixes the MTU, lower it",
            );
        }
    }
    for network in host.networks().iter().filter(|network| network.mtu != 0) {
        let file = match network.name.as_str() {
            "default" => host.places.run_dir.join("subnet.env"),
            name => host.places.run_dir.join(format!("{name}.env")),
        };
        let text = host.files.read(&file).unwrap_or_default();
        let written = text.lines().find_map(|line| line.strip_prefix("FLANNEL_MTU=")?.parse::<u32>().ok());
        if let Some(written) = written.filter(|written| *written != network.mtu) {
            return Check::failure(
                NAME,
                format!("{} says MTU {written}, and network {} has {}", file.display(), network.name, network.mtu),
                "a running agent rewrites it; restart the container runtime that read the old one",
            );
        }
    }
    Check::ok(NAME, "what fits through the network fits through what carries it")
}

#[cfg(test)]
mod tests;
