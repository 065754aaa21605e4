//! Rules at the head of iptables chains that would otherwise drop our packets: an accept in our own table does not
//! overrule a drop in another one. They are made only for chains that can drop, and as few as will do.

use std::collections::{BTreeMap, BTreeSet};

use flatnet_model::IpFamily;
use ipnet::IpNet;

use super::{FirewallNetwork, FirewallTunnel, gre, mark, merged};
use crate::facts::DroppingChain;
use crate::object::{IptablesChain, IptablesKey, IptablesRule};

/// Returns the rules that `networks` need, given the chains that can drop.
#[must_use]
pub fn iptables(
    networks: &[FirewallNetwork],
    dropping: &BTreeSet<DroppingChain>,
) -> BTreeMap<IptablesKey, IptablesRule> {
    let mut rules = BTreeMap::new();
    for chain in dropping {
        for network in networks {
            let wanted = match chain.chain {
                IptablesChain::Input => input(network, chain.family),
                IptablesChain::Forward => forward(network, chain.family),
            };
            for (comment, matches) in wanted {
                let key = IptablesKey { variant: chain.variant, family: chain.family, chain: chain.chain, comment };
                let matches = matches.split(' ').map(str::to_owned).collect();
                rules.insert(key, IptablesRule { matches });
            }
        }
    }
    rules
}

/// Returns the rules for tunnel packets. VXLAN and GRE packets are accepted if they carry the mark of those that our
/// own guard accepted, so the port is open to peers and to nothing else that listens there. WireGuard judges by itself,
/// and a peer behind a translator comes from any address, so its port is open to all, but only while the device is
/// there.
fn input(network: &FirewallNetwork, family: IpFamily) -> Vec<(String, String)> {
    let packets = |tunnel: &FirewallTunnel| match tunnel.port {
        0 => format!("-p {} {}", gre::NUMBER, mark::iptables_match()),
        port => format!("-p udp -m udp --dport {port} {}", mark::iptables_match()),
    };
    let mut rules: BTreeSet<String> = network.tunnels().filter(|tunnel| tunnel.family == family).map(packets).collect();
    // WireGuard listens on both families, whatever is inside.
    rules.extend(network.encrypted.iter().map(|tunnel| format!("-p udp -m udp --dport {}", tunnel.port)));
    named(network, ":tunnel", rules.into_iter().collect())
}

/// Returns the rules for packets within the network, from this host's containers to anywhere, and the answers.
fn forward(network: &FirewallNetwork, family: IpFamily) -> Vec<(String, String)> {
    let all = merged(&network.cidrs, family);
    let own = merged(&network.own, family);
    // Packets from this host's containers are let through anyway. For a range in pieces, only packets to them are left.
    let targets = if all.len() == 1 { &all } else { &own };
    let within = all.iter().flat_map(|source| targets.iter().map(move |target| format!("-s {source} -d {target}")));
    let out = own.iter().map(|own| format!("-s {own}"));
    let back = own.iter().map(|own| format!("-d {own} -m conntrack --ctstate RELATED,ESTABLISHED"));
    let exposed = exposed(network, family, &all);
    let mut rules = named(network, "", within.collect());
    rules.extend(named(network, ":exposed", exposed));
    rules.extend(named(network, ":out", out.collect()));
    rules.extend(named(network, ":back", back.collect()));
    rules
}

/// Returns the rules for outsiders that the user lets in, and for the answers of containers on other hosts to them.
fn exposed(network: &FirewallNetwork, family: IpFamily, all: &[IpNet]) -> Vec<String> {
    let ranges = merged(&network.reachable_from, family);
    let mut rules = Vec::new();
    for target in all {
        rules.extend(ranges.iter().map(|range| format!("-s {range} -d {target}")));
        rules.extend(network.exposed_to.iter().map(|device| format!("-d {target} -i {device}")));
        if !rules.is_empty() {
            rules.push(format!("-s {target} -m conntrack --ctstate RELATED,ESTABLISHED"));
        }
    }
    rules
}

/// Names the rules. Comments tell rules apart, so each has its own: a second rule of one purpose is numbered.
fn named(network: &FirewallNetwork, purpose: &str, rules: Vec<String>) -> Vec<(String, String)> {
    let comment = |index: usize| match index {
        0 => format!("flatnet:{}{purpose}", network.name),
        _ => format!("flatnet:{}{purpose}.{index}", network.name),
    };
    rules.into_iter().enumerate().map(|(index, rule)| (comment(index), rule)).collect()
}
