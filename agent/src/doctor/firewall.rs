//! Checks whether somebody's firewall would drop what must pass: tunnel packets for this host, and containers' packets
//! through it.

use std::net::IpAddr;
use std::process::Stdio;

use flatnet_core::object::IptablesVariant;
use flatnet_model::IpFamily;
use ipnet::IpNet;
use serde_json::Value;
use tokio::process::Command;

use super::Check;
use super::host::Host;
use super::packet::Packet;
use super::ruleset::{Fate, Rules};
use crate::daemon::preflight;

/// Returns everybody else's nftables tables, as `nft -j list ruleset` would list them, or why they cannot be had. They
/// are listed table by table: nft before 1.1.0 garbles the JSON of a table that has a flag, such as the one a running
/// agent holds.
pub(super) async fn ruleset() -> Result<Value, ProgramError> {
    let tables = output("nft", &["list", "tables"]).await?;
    let mut listed = Vec::new();
    for (family, name) in tables.lines().filter_map(|line| line.strip_prefix("table ")?.split_once(' ')) {
        if super::ruleset::is_ours(name) {
            continue;
        }
        let text = output("nft", &["-j", "list", "table", family, name]).await?;
        let listing: Value = serde_json::from_str(&text).map_err(ProgramError::Listing)?;
        listed.extend(listing["nftables"].as_array().into_iter().flatten().cloned());
    }
    Ok(serde_json::json!({ "nftables": listed }))
}

/// Returns the rules of iptables-legacy's table `raw`, if there is one: asking when there is none would make it.
pub(super) async fn legacy_raw(host: &Host) -> String {
    let tables = host.files.read("/proc/net/ip_tables_names").unwrap_or_default();
    if !tables.lines().any(|table| table == "raw") {
        return String::new();
    }
    output("iptables-legacy", &["-w", "1", "-t", "raw", "-S", "PREROUTING"]).await.unwrap_or_default()
}

/// The reason why a program's output cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    /// The program is not there.
    #[error("{0} is not installed")]
    Missing(&'static str),
    /// The program cannot be started.
    #[error("{0}: {1}")]
    Start(&'static str, std::io::Error),
    /// The program ended with an error, and these words.
    #[error("{0}: {1}")]
    Failed(&'static str, String),
    /// nft's listing is not JSON.
    #[error("nft's listing: {0}")]
    Listing(serde_json::Error),
}

async fn output(program: &'static str, arguments: &[&str]) -> Result<String, ProgramError> {
    let path = preflight::find_program(program).ok_or(ProgramError::Missing(program))?;
    let ran = Command::new(path).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await;
    let ran = ran.map_err(|error| ProgramError::Start(program, error))?;
    if ran.status.success() {
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    } else {
        Err(ProgramError::Failed(program, String::from_utf8_lossy(&ran.stderr).trim().to_owned()))
    }
}

/// Checks iptables chains that can drop: the agent keeps a rule at their heads, if it has the program to do so.
pub(super) fn iptables(host: &Host) -> Check {
    const NAME: &str = "iptables-drops";
    let chains = &host.facts.dropping_chains;
    if chains.is_empty() {
        return Check::ok(NAME, "no iptables chain drops forwarded or incoming packets");
    }
    let program = |variant| match variant {
        IptablesVariant::Nft => "iptables-nft",
        IptablesVariant::Legacy => "iptables-legacy",
    };
    let named: Vec<String> = chains
        .iter()
        .map(|chain| format!("{} {} {}", program(chain.variant), chain.family, chain.chain.as_str()))
        .collect();
    let named = named.join(", ");
    let missing =
        chains.iter().map(|chain| program(chain.variant)).find(|name| preflight::find_program(name).is_none());
    if let Some(program) = missing {
        return Check::failure(
            NAME,
            format!("{named} can drop our packets, and {program} is not installed to let them pass"),
            "apt-get install iptables",
        );
    }
    let guarded = |chain: &&flatnet_core::facts::DroppingChain| {
        host.ours
            .iptables
            .keys()
            .any(|key| (key.variant, key.family, key.chain) == (chain.variant, chain.family, chain.chain))
    };
    let needed = |chain: &&flatnet_core::facts::DroppingChain| host.uses(chain.family);
    match chains.iter().filter(needed).find(|chain| !guarded(chain)) {
        Some(chain) if host.status.is_some() && chain.chain == flatnet_core::object::IptablesChain::Forward => {
            let cause =
                format!("{} {} drops, and no rule of ours is there", program(chain.variant), chain.chain.as_str());
            Check::failure(
                NAME,
                cause,
                "a running agent puts one at its head within a second: agent status says why not",
            )
        }
        _ => Check::ok(NAME, format!("{named} can drop packets; a running agent keeps a rule at their heads")),
    }
}

/// Checks foreign nftables chains.
pub(super) fn nftables(host: &Host, rules: Result<&Rules, &ProgramError>) -> Check {
    const NAME: &str = "nft-drops";
    let rules = match rules {
        Ok(rules) => rules,
        Err(error) => return Check::warning(NAME, format!("the ruleset cannot be read: {error}"), "run as root"),
    };
    let mut perhaps = None;
    for packet in packets(host) {
        match rules.fate(&packet) {
            Some(Fate::Dropped(place)) => {
                return Check::failure(
                    NAME,
                    format!("{} drops {}", place, packet.what),
                    "an accept elsewhere does not overrule a drop: let it pass there, before the rule that drops",
                );
            }
            Some(Fate::PerhapsDropped(place)) if perhaps.is_none() => {
                perhaps = Some(format!("{} may drop {}", place, packet.what));
            }
            Some(Fate::PerhapsDropped(_)) | None => {}
        }
    }
    match perhaps {
        Some(cause) => {
            Check::warning(NAME, cause, "if pings fail, look whether that rule's counter grows: nft list ruleset")
        }
        None => Check::ok(NAME, "no foreign nftables chain drops what must pass"),
    }
}

/// Checks Docker's rules against packets that come to containers directly.
pub(super) fn docker(host: &Host, rules: Result<&Rules, &ProgramError>, legacy: &str) -> Check {
    const NAME: &str = "docker-direct-routing";
    let subnets = host.subnets();
    let mut found = rules.map(|rules| rules.direct_routing_drops(&subnets)).unwrap_or_default();
    for line in legacy.lines().filter(|line| line.ends_with("-j DROP")) {
        let target = line.split_once("-d ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<IpNet>().ok());
        if target.is_some_and(|target| subnets.iter().any(|subnet| subnet.contains(&target))) {
            found.push(format!("iptables-legacy -t raw: {line}"));
        }
    }
    match found.first() {
        Some(first) => Check::failure(
            NAME,
            format!("Docker drops what other hosts' containers send to this host's: {first}, {} in all", found.len()),
            "dockerd --allow-direct-routing (Docker 28.2 and later), or the bridge's option com.docker.network.bridge.gateway_mode_ipv4=nat-unprotected",
        ),
        None => Check::ok(NAME, "nothing drops directly routed packets before routing"),
    }
}

/// Returns the packets that must pass on this host.
fn packets(host: &Host) -> Vec<Packet> {
    let mut packets = Vec::new();
    for (device, _, port, local) in host.tunnels() {
        let iif = host.interface_with(local).map(|name| name.to_string()).unwrap_or_default();
        packets.push(Packet {
            what: format!("tunnel packets to UDP port {port}"),
            hook: "input",
            iif,
            oif: String::new(),
            source: neighbour_of(local),
            target: local,
            udp_port: Some(port),
        });
        for (range, own) in pairs(host, IpFamily::of(local)) {
            let (far, near) = (second_address(range), second_address(own));
            let forward = |what: &str, iif: &str, oif: &str, source, target| Packet {
                what: format!("{what} ({source} to {target})"),
                hook: "forward",
                iif: iif.to_owned(),
                oif: oif.to_owned(),
                source,
                target,
                udp_port: None,
            };
            packets.push(forward("what peers' containers send", device.as_str(), "", far, near));
            packets.push(forward("what containers send to peers", "", device.as_str(), near, far));
        }
    }
    packets
}

/// Returns each network's range and this host's subnet of it, of one family.
fn pairs(host: &Host, family: IpFamily) -> Vec<(IpNet, IpNet)> {
    let subnets = host.subnets();
    let ranges = host.ranges().into_iter().filter(|range| IpFamily::of(range.addr()) == family);
    ranges.filter_map(|range| Some((range, *subnets.iter().find(|subnet| range.contains(*subnet))?))).collect()
}

/// Returns another address of the underlay. Firewalls may know single addresses, which is for the rules to say.
fn neighbour_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => (u32::from(address) ^ 1).to_be_bytes().into(),
        IpAddr::V6(address) => (u128::from(address) ^ 1).to_be_bytes().into(),
    }
}

/// Returns an address that a container could have.
fn second_address(prefix: IpNet) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(address) => (u32::from(address) | 2).to_be_bytes().into(),
        IpAddr::V6(address) => (u128::from(address) | 2).to_be_bytes().into(),
    }
}
