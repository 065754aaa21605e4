//! Checks of kernel settings that decide whether packets pass.

use std::collections::BTreeSet;

use flatnet_core::facts::Interface;
use flatnet_core::object::{RouteVia, Sysctl};
use flatnet_model::{IfName, IpFamily};
use ipnet::IpNet;

use super::Check;
use super::host::Host;

/// Checks that this host forwards.
pub(super) fn forwarding(host: &Host) -> Check {
    const NAME: &str = "ip-forward";
    let mut settings = Vec::new();
    // Without an agent it is not known which families are needed: then IPv4 is checked.
    if host.uses(IpFamily::V4) || host.ranges().is_empty() {
        settings.push(("net/ipv4/ip_forward", "net.ipv4.ip_forward"));
    }
    if host.uses(IpFamily::V6) {
        settings.push(("net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"));
    }
    for (path, name) in &settings {
        let value = host.files.setting(path);
        if value.as_deref() != Some("1") {
            return Check::failure(
                NAME,
                format!("{name} is {}", value.as_deref().unwrap_or("not readable")),
                "a running agent sets it; if it does not stay, something else resets it: look in /etc/sysctl.d",
            );
        }
    }
    let names: Vec<&str> = settings.iter().map(|(_, name)| *name).collect();
    Check::ok(NAME, format!("{} is 1", names.join(" and ")))
}

/// Checks that each device that the network's packets come in by forwards them. A setting that is on for the host can
/// be off for a device: one made after a policy of `default.forwarding=0`, or by a network manager's will.
pub(super) fn of_devices(host: &Host) -> Check {
    const NAME: &str = "device-forwarding";
    let off = |device: &IfName, path: &str, value: &str| {
        let path = path.replace("DEVICE", device.as_str());
        (host.files.setting(&path).as_deref() == Some(value)).then(|| (*device, Sysctl::new(path).to_string()))
    };
    let v4 = || entrances(host).into_iter().filter_map(|device| off(&device, "net/ipv4/conf/DEVICE/forwarding", "0"));
    // Over IPv6 only the host's setting counts (net/ipv6/ip6_output.c: `ip6_forward`).
    let v6 = || entrances(host).into_iter().filter_map(|device| off(&device, "net/ipv6/conf/DEVICE/disable_ipv6", "1"));
    let mut wrong: Vec<(IfName, String, &str)> = Vec::new();
    if host.uses(IpFamily::V4) {
        wrong.extend(v4().map(|(device, name)| (device, name, "1")));
    }
    if host.uses(IpFamily::V6) {
        let carries_v4_alone = |device: &IfName| host.is_ours(device.as_str());
        wrong.extend(v6().filter(|(device, _)| !carries_v4_alone(device)).map(|(device, name)| (device, name, "0")));
    }
    let Some((_, name, value)) = wrong.first() else {
        return Check::ok(NAME, "each device that the networks' packets come in by passes them on");
    };
    let devices: Vec<String> = wrong.iter().map(|(device, name, _)| format!("{device} ({name})")).collect();
    Check::failure(
        NAME,
        format!("what comes in by {} is not passed on", devices.join(", ")),
        format!(
            "sysctl -w {name}={value}; then find what turned it off: net.ipv4.conf.default.forwarding=0 in /etc/sysctl.d, or a network manager"
        ),
    )
}

/// Returns the devices that the network's packets come in by: ours; bridges that an engine made with an address of this
/// host's subnets; and devices that routes lead out by without a tunnel, since what peers send comes in there.
fn entrances(host: &Host) -> BTreeSet<IfName> {
    let subnets = host.subnets();
    let holds = |net: &IpNet| subnets.iter().any(|subnet| subnet.contains(&net.addr()));
    let bridges = host.facts.interfaces.iter().filter(|interface| interface.addresses.iter().any(holds));
    let of_object = |id| host.ours.nexthops.get(id).map(|nexthop| nexthop.via.device);
    let direct = host.ours.routes.values().filter_map(|route| match &route.via {
        RouteVia::Object(id) => of_object(id),
        RouteVia::Hop(hop) => Some(hop.device),
        RouteVia::Encap(_) | RouteVia::Unreachable => None,
    });
    host.ours.links.keys().copied().chain(bridges.map(|bridge| bridge.name)).chain(direct).collect()
}

/// Checks that settings can be written at all where this runs.
pub(super) fn writable(host: &Host) -> Check {
    const NAME: &str = "settings-writable";
    let mounts = host.files.read("/proc/self/mounts").unwrap_or_default();
    // The last file system mounted over a place is what is seen there (proc_pid_mounts(5): device, place, type,
    // options).
    let options = |place: &str| {
        let at = |line: &&str| line.split(' ').nth(1) == Some(place);
        mounts.lines().rfind(at).and_then(|line| line.split(' ').nth(3))
    };
    let options = ["/proc/sys/net", "/proc/sys", "/proc"].into_iter().find_map(options).unwrap_or_default();
    if options.split(',').any(|option| option == "ro") {
        return Check::warning(
            NAME,
            "/proc/sys is read-only here: what the kernel does not have right already cannot be set",
            "run the agent privileged, or with /proc/sys writable in its container; its problems name what harms",
        );
    }
    Check::ok(NAME, "/proc/sys can be written")
}

/// Checks that this host would notice its router: a host that was turned into a router before it heard the first
/// advertisement hears none any more.
pub(super) fn advertisements(host: &Host) -> Check {
    const NAME: &str = "router-advertisements";
    let has_route = host.facts.default_route.iter().any(|(family, _)| *family == IpFamily::V6);
    let others =
        host.facts.interfaces.iter().filter(|interface| interface.up && !interface.loopback && !interface.ours);
    let deaf = |name: &IfName| host.files.setting(Sysctl::accept_ra(*name).path()).as_deref() == Some("1");
    let has_global = |interface: &&Interface| interface.addresses.iter().any(|net| net.addr().is_ipv6());
    let deaf: Vec<String> = match host.uses(IpFamily::V6) && !has_route {
        true => others.filter(has_global).map(|interface| interface.name).filter(deaf).map(|n| n.to_string()).collect(),
        false => Vec::new(),
    };
    if deaf.is_empty() {
        return Check::ok(NAME, "no default route over IPv6 is missing for want of router advertisements");
    }
    Check::warning(
        NAME,
        format!(
            "this host forwards IPv6, has no default route of it, and hears no router advertisements on {}",
            deaf.join(", ")
        ),
        format!(
            "if its router announces itself so: sysctl -w net.ipv6.conf.{}.accept_ra=2, also in /etc/sysctl.d",
            deaf[0].replace('.', "/")
        ),
    )
}

/// Checks reverse path filtering: the larger of `all` and the device's own value counts.
pub(super) fn reverse_path(host: &Host) -> Check {
    const NAME: &str = "rp-filter";
    let value = |device: &str| -> u8 {
        let setting = host.files.setting(&format!("net/ipv4/conf/{device}/rp_filter"));
        setting.and_then(|value| value.parse().ok()).unwrap_or_default()
    };
    let tunnels = host.tunnels().map(|(name, ..)| name.as_str().to_owned());
    // Packets over direct routes come in by the underlay's own interface.
    let direct = host.networks().iter().any(|network| network.backend == "host-gw");
    let defaults = host.facts.default_route.iter().filter(|_| direct).map(|(_, name)| name.as_str().to_owned());
    let all = value("all");
    let strict: Vec<String> = tunnels.chain(defaults).filter(|device| all.max(value(device)) == 1).collect();
    if strict.is_empty() {
        return Check::ok(NAME, "reverse path filtering is not strict where peers' packets come in");
    }
    Check::warning(
        NAME,
        format!(
            "reverse path filtering is strict on {} (the larger of net.ipv4.conf.all.rp_filter and the device's)",
            strict.join(", ")
        ),
        "packets that come back another way are dropped: sysctl net.ipv4.conf.all.rp_filter=2, or 0 and the devices' own",
    )
}

/// Checks the neighbour tables. Our own entries are permanent, and the kernel has not counted those against its limits
/// since 5.0. The entries of containers and, with direct routes, of peers are ordinary ones.
pub(super) fn neighbours(host: &Host) -> Check {
    const NAME: &str = "neighbour-limits";
    const HINT: &str = "raise net.ipv4.neigh.default.gc_thresh1, 2 and 3 (ipv6 likewise) to 4096, 8192 and 16384";
    for (family, statistics) in [("ipv4", "arp_cache"), ("ipv6", "ndisc_cache")] {
        let text = host.files.read(format!("/proc/net/stat/{statistics}")).unwrap_or_default();
        let full = column(&text, "table_fulls");
        if full > 0 {
            return Check::failure(
                NAME,
                format!("the {family} neighbour table was full {full} times since boot"),
                HINT,
            );
        }
        let limit = host.files.setting(&format!("net/{family}/neigh/default/gc_thresh3"));
        let Some(limit) = limit.and_then(|limit| limit.parse::<u64>().ok()) else { continue };
        let release = host.files.setting("kernel/osrelease").unwrap_or_default();
        let counts_permanent =
            release.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major < 5);
        let ordinary = |backend: &str| backend == "host-gw" || counts_permanent;
        let networks = host.networks().iter().filter(|network| ordinary(&network.backend));
        let peers = networks.map(|network| network.peers.len()).sum::<usize>() as u64;
        if peers * 4 > limit * 3 {
            let cause = format!("{peers} peers are neighbours, and net.{family}.neigh.default.gc_thresh3 is {limit}");
            return Check::warning(NAME, cause, HINT);
        }
    }
    Check::ok(NAME, "neighbour tables were never full; our permanent entries do not count")
}

/// Returns the sum of a column of `/proc/net/stat` over all processors; its numbers are hexadecimal.
fn column(text: &str, name: &str) -> u64 {
    let mut lines = text.lines();
    let Some(at) = lines.next().and_then(|head| head.split_whitespace().position(|title| title == name)) else {
        return 0;
    };
    lines.filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(at)?, 16).ok()).sum()
}

#[cfg(test)]
mod tests;
