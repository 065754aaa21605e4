//! Devices, as the kernel reports them and as the agent knows them.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use flatnet_core::object::{Altered, Datapath, GreLink, Link, LinkKind, Sysctl, VxlanLink, WireguardLink};
use flatnet_model::{GreKey, IfName, Mac, Mtu, Vni};

use crate::netlink::encode::{self, rtm};
use crate::netlink::parse::{self, RawLink};
use crate::netlink::socket::{Channel, Refusal};
use crate::sysctl;

/// The word after our alias on a TUN device that stands in for WireGuard.
pub(crate) const WIREGUARD: &str = "wireguard";

/// Returns every device.
pub(crate) fn all(channel: &mut Channel) -> io::Result<Vec<RawLink>> {
    channel.dump(
        &encode::link_dump(),
        |links: &mut Vec<RawLink>, kind, payload| {
            if kind == rtm::NEWLINK {
                links.extend(parse::link(payload));
            }
        },
        Vec::new,
    )
}

/// Returns the device of that name.
pub(crate) fn named(channel: &mut Channel, name: IfName) -> Result<Option<RawLink>, Refusal> {
    match channel
        .get(&encode::link_get(name), |kind, payload| (kind == rtm::NEWLINK).then(|| parse::link(payload)).flatten())
    {
        Err(refusal) if refusal.is_absence() => Ok(None),
        other => other,
    }
}

/// Returns the device of that index.
pub(crate) fn with_index(channel: &mut Channel, index: u32) -> Result<Option<RawLink>, Refusal> {
    match channel.get(&encode::link_get_index(index), |kind, payload| {
        (kind == rtm::NEWLINK).then(|| parse::link(payload)).flatten()
    }) {
        Err(refusal) if refusal.is_absence() => Ok(None),
        other => other,
    }
}

/// Keeps everybody beyond a device that was just made from configuring this host. This happens before it is brought up,
/// since the first router advertisement may be waiting. If a setting cannot be written, that shows when the setting
/// itself has its turn.
pub(crate) fn deafen(name: IfName) {
    for (family, setting) in [("ipv6", "accept_ra"), ("ipv6", "accept_redirects"), ("ipv4", "accept_redirects")] {
        let setting = Sysctl::new(format!("net/{family}/conf/{name}/{setting}"));
        if let Err(error) = sysctl::write(&setting, "0") {
            tracing::debug!(%setting, %error, "not written before the device is up");
        }
    }
}

/// Returns true if the device carries our mark.
pub(crate) fn is_ours(link: &RawLink) -> bool {
    link.alias.starts_with(Link::ALIAS)
}

/// Reads a device of ours as the agent knows it, and whether somebody altered it in what that does not tell; `None`: it
/// has a kind or an identifier that we never give, so it is not ours whatever its alias says.
pub(crate) fn read(link: &RawLink) -> Option<(Link, Option<Altered>)> {
    let mut altered = None;
    let kind = match (link.kind.as_str(), &link.vxlan) {
        ("vxlan", Some(vxlan)) => {
            altered = vxlan.learning.then_some(Altered::InPlace);
            let local = vxlan.local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            LinkKind::Vxlan(VxlanLink { vni: Vni::new(vxlan.vni).ok()?, port: vxlan.port, local })
        }
        ("bridge", _) => LinkKind::Bridge,
        // The link does not report port and key: see `crate::wireguard`.
        ("wireguard", _) => LinkKind::Wireguard(unset(Datapath::Kernel)),
        ("tun", _) if link.alias.split(' ').nth(1) == Some(WIREGUARD) => {
            LinkKind::Wireguard(unset(Datapath::Userspace))
        }
        ("gre", _) => {
            let gre = link.gre?;
            altered = gre.multipoint().is_none().then_some(Altered::Anew);
            LinkKind::Gre(GreLink {
                key: GreKey::new(gre.in_key.unwrap_or_default()),
                local: ipv4(gre.local),
                datapath: Datapath::Kernel,
            })
        }
        ("ip6gre", _) if link.gre.is_some_and(|gre| gre.external) => LinkKind::Gre6(Datapath::Kernel),
        ("tun", _) => super::alias::read(&link.alias)?,
        _ => return None,
    };
    // The kernel allows more than anybody wants.
    let mtu = Mtu::new(link.mtu.clamp(Mtu::MIN_IPV4, Mtu::MAX)).ok()?;
    Some((Link { kind, mtu, mac: link.mac.map(Mac::new), up: link.is_up() }, altered))
}

fn unset(datapath: Datapath) -> WireguardLink {
    WireguardLink { port: 0, public_key: None, datapath }
}

/// Returns an IPv4 address, or the unspecified one where a device has none.
fn ipv4(address: Option<IpAddr>) -> Ipv4Addr {
    match address {
        Some(IpAddr::V4(address)) => address,
        Some(IpAddr::V6(_)) | None => Ipv4Addr::UNSPECIFIED,
    }
}

/// Describes a device that is not ours, for people.
pub(crate) fn describe(link: &RawLink) -> String {
    match &link.vxlan {
        Some(vxlan) => format!("vxlan VNI {} port {}", vxlan.vni, vxlan.port),
        None if link.kind.is_empty() => "device".to_owned(),
        None => link.kind.clone(),
    }
}
