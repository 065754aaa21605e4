//! A table with everything in it that any network may need. nft is asked whether it can read such a table before
//! anything depends on it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use flatnet_model::{GreKey, IfName, IpFamily, NetworkName, Vni};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{EncryptedTunnel, FirewallHost, FirewallNetwork, FirewallTunnel, ruleset};
use crate::object::{PeerSource, Ruleset, SetName, TunnelId};

/// Returns the length of the subnets in the specimen, in bits: flannel's own for either family.
fn subnet_len(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 24,
        IpFamily::V6 => 64,
    }
}

/// Returns a table with every backend over `families`, two networks beside each other, and a peer in each set. The
/// addresses are those for documentation (RFC 5737, RFC 3849); the table is read, never loaded.
#[must_use]
pub fn specimen(families: &[IpFamily]) -> (Ruleset, BTreeSet<PeerSource>) {
    let ids = [
        TunnelId::Vxlan(Vni::FLANNEL_DEFAULT),
        TunnelId::Gre(GreKey::NONE),
        TunnelId::Gre(GreKey::new(u32::from(u16::MAX))),
    ];
    let Ok(device) = IfName::new("flat.1") else { return (Ruleset { body: String::new() }, BTreeSet::new()) };
    let tunnels: Vec<FirewallTunnel> = ids
        .into_iter()
        .flat_map(|id| families.iter().map(move |family| (id, *family)))
        .map(|(id, family)| {
            let port = if matches!(id, TunnelId::Vxlan(_)) { 8472 } else { 0 };
            FirewallTunnel { id, family, prefix_lens: [subnet_len(family)].into(), port, device }
        })
        .collect();
    let direct: BTreeSet<SetName> = families
        .iter()
        .flat_map(|family| [subnet_len(*family), family.bits()].map(|len| SetName::direct(*family, len)))
        .collect();
    let sets = tunnels.iter().flat_map(FirewallTunnel::sets).chain(direct.iter().copied());
    let peers = sets.filter_map(|set| {
        let (range, _) = ranges(set.family);
        Some(PeerSource { set, outer: range.addr(), inner: IpNet::new(range.addr(), set.prefix_len).ok()?.trunc() })
    });
    let encrypted = |port| vec![EncryptedTunnel { device, port, families: families.to_vec() }];
    let network = |name: &NetworkName, second: bool| {
        let of = |family: &IpFamily| if second { ranges(*family).1 } else { ranges(*family).0 };
        FirewallNetwork {
            name: name.clone(),
            cidrs: families.iter().map(of).collect(),
            own: families.iter().map(of).collect(),
            masquerade: true,
            tunnels: Vec::new(),
            encrypted: Vec::new(),
            clear_to: Vec::new(),
            direct: direct.clone(),
            exposed_to: [device].into(),
            reachable_from: families.iter().map(of).collect(),
            peers: BTreeSet::new(),
        }
    };
    let name = NetworkName::default_network();
    let tunnels = tunnels.clone();
    let first =
        FirewallNetwork { peers: peers.collect(), tunnels, encrypted: encrypted(51_820), ..network(&name, false) };
    // A network that changes to WireGuard.
    let second = network(&name, true);
    let clear_to = second.cidrs.clone();
    let second = FirewallNetwork { encrypted: encrypted(51_822), clear_to, ..second };
    // A network whose packets come as they are, of which a part is handed out, on a host that has no subnet of it yet.
    let cidrs = families.iter().flat_map(|family| part(ranges(*family).1)).collect();
    let third = FirewallNetwork { own: Vec::new(), cidrs, ..network(&name, true) };
    let addresses = families.iter().map(|family| ranges(*family).0.addr());
    let here: BTreeSet<IpAddr> = addresses.collect();
    let elsewhere = families.iter().map(|family| ranges(*family).1.addr());
    let store = here.iter().copied().chain(elsewhere).map(|address| SocketAddr::new(address, 2379)).collect();
    let host = FirewallHost { underlay: device, uplinks: [device].into(), addresses: here, store };
    ruleset(&[first, second, third], host)
}

/// Returns the first three quarters of a range, which are a range and no prefix.
fn part(range: IpNet) -> impl Iterator<Item = IpNet> {
    range.subnets(range.prefix_len() + 2).into_iter().flatten().take(3)
}

/// Returns two ranges of a family that are nobody's.
fn ranges(family: IpFamily) -> (IpNet, IpNet) {
    const V4: [Ipv4Net; 2] =
        [Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24), Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 0), 24)];
    const V6: [Ipv6Net; 2] = [
        Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0), 48),
        Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0), 48),
    ];
    match family {
        IpFamily::V4 => (V4[0].into(), V4[1].into()),
        IpFamily::V6 => (V6[0].into(), V6[1].into()),
    }
}

#[cfg(test)]
mod tests;
