//! Somebody else's nftables rules, and which of them would drop a packet that must pass. Ours and iptables' own chains,
//! at whose heads the agent keeps a rule, are not judged here.

use std::collections::BTreeMap;

use flatnet_core::object::Ruleset;
use ipnet::IpNet;
use serde_json::Value;

use super::packet::{Holds, Packet, prefix};

/// The depth to which jumps are followed into one another: nftables itself allows 16.
const DEPTH: usize = 16;

/// The ruleset, as `nft -j list ruleset` prints it.
#[derive(Debug, Default)]
pub(super) struct Rules {
    chains: BTreeMap<ChainKey, Chain>,
}

/// The family, table and name of a chain.
type ChainKey = (String, String, String);

#[derive(Debug, Default)]
struct Chain {
    hook: Option<String>,
    drops_by_policy: bool,
    rules: Vec<Vec<Value>>,
}

/// The fate of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The packet is dropped, at this place.
    Dropped(String),
    /// The packet may be dropped, at this place: the rule asks for what is not known of the packet.
    PerhapsDropped(String),
}

/// The result of a walk through a chain.
enum Walk {
    /// Nothing was decided: the next rule follows, or the policy.
    Through,
    Accepted,
    Dropped(String),
}

impl Rules {
    /// Reads the rules from `listing`, the parsed JSON.
    pub(super) fn new(listing: &Value) -> Self {
        let mut rules = Self::default();
        let text = |object: &Value, field: &str| object[field].as_str().unwrap_or_default().to_owned();
        for object in listing["nftables"].as_array().into_iter().flatten() {
            if let Some(chain) = object.get("chain") {
                let found = rules.chain(chain, &text(chain, "name"));
                found.hook = chain["hook"].as_str().map(str::to_owned);
                found.drops_by_policy = chain["policy"] == "drop";
            }
            if let Some(rule) = object.get("rule") {
                let expressions = rule["expr"].as_array().cloned().unwrap_or_default();
                rules.chain(rule, &text(rule, "chain")).rules.push(expressions);
            }
        }
        rules
    }

    fn chain(&mut self, object: &Value, name: &str) -> &mut Chain {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        self.chains.entry((text("family"), text("table"), name.to_owned())).or_default()
    }

    /// Returns the first chain that drops `packet`; failing that, the first that may.
    pub(super) fn fate(&self, packet: &Packet) -> Option<Fate> {
        let mut perhaps = None;
        for (key, chain) in &self.chains {
            let judged = chain.hook.as_deref() == Some(packet.hook) && packet.is_seen_by(&key.0) && !is_known(key);
            if !judged {
                continue;
            }
            let mut doubts = Vec::new();
            match self.walk(key, packet, DEPTH, &mut doubts) {
                Walk::Dropped(place) => return Some(Fate::Dropped(place)),
                Walk::Through if chain.drops_by_policy => return Some(Fate::Dropped(place(key, "its policy"))),
                Walk::Through | Walk::Accepted => perhaps = perhaps.or(doubts.into_iter().next()),
            }
        }
        perhaps.map(Fate::PerhapsDropped)
    }

    fn walk(&self, key: &ChainKey, packet: &Packet, depth: usize, doubts: &mut Vec<String>) -> Walk {
        let Some(chain) = self.chains.get(key).filter(|_| depth > 0) else { return Walk::Through };
        for rule in &chain.rules {
            let holds = rule.iter().filter_map(|part| part.get("match")).map(|body| packet.matches(body));
            let mut certain = !rule.iter().any(is_opaque);
            let mut applies = true;
            for one in holds {
                applies &= one != Holds::No;
                certain &= one == Holds::Yes;
            }
            if !applies {
                continue;
            }
            for part in rule {
                let found = if ["drop", "reject"].iter().any(|verdict| part.get(verdict).is_some()) {
                    Walk::Dropped(place(key, "a rule"))
                } else if part.get("accept").is_some() {
                    Walk::Accepted
                } else if part.get("return").is_some() && certain {
                    return Walk::Through;
                } else if let Some(target) = ["jump", "goto"].iter().find_map(|verb| part[verb]["target"].as_str()) {
                    let target = (key.0.clone(), key.1.clone(), target.to_owned());
                    self.walk(&target, packet, depth - 1, doubts)
                } else {
                    continue;
                };
                match found {
                    Walk::Dropped(place) if !certain => doubts.push(place),
                    Walk::Through => {}
                    Walk::Accepted if !certain => {}
                    decided => return decided,
                }
            }
        }
        Walk::Through
    }

    /// Returns the rules before routing that drop what comes to an address inside `subnets` by another interface than a
    /// bridge. Docker 28 and later has one for every container, and nothing later can make up for it.
    pub(super) fn direct_routing_drops(&self, subnets: &[IpNet]) -> Vec<String> {
        let mut found = Vec::new();
        for (key, chain) in &self.chains {
            let early = chain.hook.as_deref() == Some("prerouting") && !is_ours(&key.1);
            for rule in chain.rules.iter().filter(|_| early) {
                let drops = rule.iter().any(|part| part.get("drop").is_some());
                let target = rule.iter().filter_map(|part| part.get("match")).find_map(|body| {
                    (body["left"]["payload"]["field"] == "daddr").then(|| prefix(&body["right"])).flatten()
                });
                let ours = |target: IpNet| subnets.iter().any(|subnet| subnet.contains(&target));
                if let Some(target) = target.filter(|target| drops && ours(*target)) {
                    found.push(place(key, &format!("a rule for {target}")));
                }
            }
        }
        found
    }
}

/// Returns true for our chains and those that iptables-nft keeps: the latter are looked at as iptables prints them.
fn is_known((family, table, chain): &ChainKey) -> bool {
    let iptables = family != "inet" && table == "filter" && ["INPUT", "FORWARD", "OUTPUT"].contains(&chain.as_str());
    is_ours(table) || iptables
}

/// Returns true for our table, and for the copy of it that a running agent holds.
pub(super) fn is_ours(table: &str) -> bool {
    [Ruleset::TABLE, Ruleset::HELD].contains(&table)
}

/// Returns true if a part of a rule may decide and is not understood.
fn is_opaque(part: &Value) -> bool {
    let understood = ["match", "counter", "log", "comment", "accept", "drop", "reject", "jump", "goto", "return"];
    part.as_object().is_none_or(|part| part.keys().any(|key| !understood.contains(&key.as_str())))
}

fn place((family, table, chain): &ChainKey, by: &str) -> String {
    format!("table {family} {table}, chain {chain} ({by})")
}

#[cfg(test)]
mod tests;
