//! The kernel's state, according to tools that are not ours.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::netns::Namespace;
use crate::wait::{SOON, wait_until};

/// The number that marks the agent's routes, neighbours and nexthops. It is repeated here on purpose: it is on people's
/// disks and in their monitoring, so a change must fail a test.
pub const PROTOCOL: &str = "91";

/// Returns a device as `ip -d` shows it, if it exists.
#[must_use]
pub fn link(host: &Namespace, name: &str) -> Option<Value> {
    let links = host.json("ip -j -d link show");
    links.as_array()?.iter().find(|link| link["ifname"] == name).cloned()
}

/// Returns the names of devices with the agent's alias.
#[must_use]
pub fn own_links(host: &Namespace) -> Vec<String> {
    let links = host.json("ip -j -d link show");
    let ours = |link: &&Value| link["ifalias"].as_str().is_some_and(|alias| alias.starts_with("flatnet"));
    links.as_array().unwrap().iter().filter(ours).map(|link| text(link, "ifname")).collect()
}

/// Returns the agent's routes of both families: destination to the whole route, the one that wins where there are
/// several.
#[must_use]
pub fn own_routes(host: &Namespace) -> BTreeMap<String, Value> {
    let mut routes = BTreeMap::new();
    for family in ["-4", "-6"] {
        let listed = host.json(&format!("ip -j -d {family} route show table all proto {PROTOCOL}"));
        for route in listed.as_array().unwrap() {
            // Listed in the order of their metrics.
            routes.entry(text(route, "dst")).or_insert_with(|| route.clone());
        }
    }
    routes
}

/// Returns the permanent neighbours on `device`: address to Ethernet address.
#[must_use]
pub fn neighbours(host: &Namespace, device: &str) -> BTreeMap<String, String> {
    let listed = host.json(&format!("ip -j neigh show dev {device} nud permanent"));
    listed.as_array().unwrap().iter().map(|entry| (text(entry, "dst"), text(entry, "lladdr"))).collect()
}

/// Returns the forwarding entries with a remote on `device`: Ethernet address to underlay address.
#[must_use]
pub fn fdb(host: &Namespace, device: &str) -> BTreeMap<String, String> {
    let listed = host.json(&format!("bridge -j fdb show dev {device}"));
    let remote = |entry: &&Value| entry["dst"].is_string();
    listed.as_array().unwrap().iter().filter(remote).map(|entry| (text(entry, "mac"), text(entry, "dst"))).collect()
}

/// Returns the names of the nftables tables, each with its family.
#[must_use]
pub fn tables(host: &Namespace) -> Vec<String> {
    // Not as JSON: nft before 1.1.0 garbles that of a table with a flag.
    host.ok("nft list tables").lines().filter_map(|line| line.strip_prefix("table ")).map(str::to_owned).collect()
}

/// Removes a bridge's timers, which run by themselves.
fn without_timers(text: &str) -> String {
    let line = |line: &str| {
        let mut words = Vec::new();
        let mut skip = false;
        for word in line.split_whitespace() {
            if !skip {
                words.push(word);
            }
            skip = word.ends_with("_timer");
        }
        words.join(" ")
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Returns everything that a namespace has, as sections of text, to be equal before and after. What changes by itself
/// (counters, timers, learnt neighbours, interface indexes) is not in it.
#[must_use]
pub fn everything(host: &Namespace) -> BTreeMap<String, String> {
    wait_until("duplicate address detection is over, which adds routes by itself", SOON, || {
        let tentative = host.ok("ip -6 addr show tentative");
        if tentative.is_empty() { Ok(()) } else { Err(tentative) }
    });
    let mut sections = BTreeMap::new();
    for line in [
        "ip -d link show",
        "ip addr show",
        "ip -4 -d route show table all",
        "ip -6 -d route show table all",
        "ip -4 rule show",
        "ip -6 rule show",
        "ip -d nexthop show",
        "ip neigh show nud permanent",
        "bridge fdb show",
        "nft list ruleset",
        "cat /proc/net/ip_tables_names",
        "cat /proc/net/ip6_tables_names",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        sections.insert(line.to_owned(), without_timers(&host.run(&words).stdout));
    }
    let settings = "grep -rsH . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf /proc/sys/net/ipv4/ip_forward";
    let words: Vec<&str> = settings.split_whitespace().collect();
    let mut settings: Vec<String> = host.run(&words).stdout.lines().map(str::to_owned).collect();
    settings.sort();
    sections.insert("sysctls".to_owned(), settings.join("\n"));
    sections
}

/// Fails with the lines that differ.
pub fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    let mut differences = Vec::new();
    for (section, before) in before {
        let after = after.get(section).map(String::as_str).unwrap_or_default();
        let gone =
            before.lines().filter(|line| !after.lines().any(|other| other == *line)).map(|line| format!("- {line}"));
        let new =
            after.lines().filter(|line| !before.lines().any(|other| other == *line)).map(|line| format!("+ {line}"));
        let lines: Vec<String> = gone.chain(new).collect();
        if !lines.is_empty() {
            differences.push(format!("{section}\n  {}", lines.join("\n  ")));
        }
    }
    assert!(differences.is_empty(), "something was left behind or taken away:\n{}", differences.join("\n"));
}

fn text(object: &Value, key: &str) -> String {
    object[key].as_str().map_or_else(|| object[key].to_string(), str::to_owned)
}
