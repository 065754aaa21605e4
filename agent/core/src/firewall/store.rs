//! Rules that keep containers from reaching the store.
//!
//! Whoever may write the store decides which hosts are peers, and containers are masqueraded behind a host that may. So
//! packets that come in by a container's or a guest's interface do not get to the store's endpoints. Another host's
//! packets that only pass through here come by an uplink, and are let through.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use flatnet_model::IpFamily;
use ipnet::IpNet;

use super::{FirewallHost, interfaces, ip, ranges};

const COMMENT: &str = "containers do not reach the store (--containers-reach-store)";

/// Returns rules that match by the addresses packets were sent to, before any translation.
pub(super) fn as_sent(host: &FirewallHost) -> Vec<String> {
    let mut lines = elsewhere(host);
    lines.extend(at_this_host(host));
    lines
}

/// Returns the rules for endpoints that are not on this host.
pub(super) fn elsewhere(host: &FirewallHost) -> Vec<String> {
    let mut by_port: BTreeMap<u16, BTreeSet<IpAddr>> = BTreeMap::new();
    for endpoint in host.store.iter().filter(|endpoint| !is_here(host, endpoint)) {
        by_port.entry(endpoint.port()).or_default().insert(endpoint.ip());
    }
    let guests = guests(host);
    let mut lines = Vec::new();
    for (port, addresses) in by_port {
        let addresses: Vec<IpNet> = addresses.into_iter().map(IpNet::from).collect();
        for family in IpFamily::BOTH {
            let Some(addresses) = ranges(&addresses, family) else { continue };
            let ip = ip(family);
            lines.push(format!("{guests}{ip} daddr {addresses} tcp dport {port} counter drop comment \"{COMMENT}\""));
        }
    }
    lines
}

/// Returns the rules for endpoints on this host, which may be spoken to by any of its addresses.
pub(super) fn at_this_host(host: &FirewallHost) -> Vec<String> {
    let ports: BTreeSet<u16> =
        host.store.iter().filter(|endpoint| is_here(host, endpoint)).map(SocketAddr::port).collect();
    let guests = guests(host);
    let rule = |port| format!("{guests}fib daddr type local tcp dport {port} counter drop comment \"{COMMENT}\"");
    ports.into_iter().map(rule).collect()
}

fn is_here(host: &FirewallHost, endpoint: &SocketAddr) -> bool {
    endpoint.ip().is_loopback() || host.addresses.contains(&endpoint.ip())
}

/// Matches interfaces of containers or guests. An interface counts as one unless it is known not to be, so a new one is
/// covered before anybody has looked at it.
fn guests(host: &FirewallHost) -> String {
    let others = host.uplinks.iter().copied().chain([host.underlay]).collect();
    let mut names = interfaces(&others).unwrap_or_default();
    // There is no `IfName` of the loopback at hand, so its name is put in as text.
    names = names.replacen("{ ", "{ \"lo\", ", 1);
    format!("iifname != {names} ")
}
