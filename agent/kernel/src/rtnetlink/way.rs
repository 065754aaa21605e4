//! The route that the kernel takes to an address, and the rule that leads there.

use std::io;
use std::net::IpAddr;

use flatnet_core::object::PROTOCOL;
use flatnet_core::way::{Detour, WayQuery};
use flatnet_model::{IfName, IpFamily};

use super::links;
use crate::netlink::encode::{self, rtm};
use crate::netlink::parse::{self, RawRoute, RawRule};
use crate::netlink::socket::Channel;

/// `RT_TABLE_DEFAULT` to `RT_TABLE_LOCAL`: the tables that every host's rules lead to.
const USUAL_TABLES: std::ops::RangeInclusive<u32> = 253..=255;

/// The kernel's answer.
enum Answer {
    Route(Box<RawRoute>),
    /// There is no route, or one that refuses.
    None,
    /// The kernel cannot be asked.
    Unknown,
}

/// Returns those of `ways` that do not follow a route of ours.
pub(super) fn detours(channel: &mut Channel, ways: &[WayQuery]) -> io::Result<Vec<Detour>> {
    let names = links::all(channel)?;
    let index = |name: IfName| names.iter().find(|link| link.name == name.as_str()).map(|link| link.index);
    let mut found = Vec::new();
    for way in ways {
        let from = way.from.and_then(|(source, bridge)| Some((source, index(bridge)?)));
        let mut answer = ask(channel, way.to, from);
        if from.is_some() && !matches!(answer, Answer::Route(_)) {
            // A bridge that is down takes nothing, which says nothing about the way.
            answer = ask(channel, way.to, None);
        }
        let route = match answer {
            Answer::Unknown => continue,
            Answer::Route(route) if route.protocol == PROTOCOL => continue,
            Answer::Route(route) => Some(route),
            Answer::None => None,
        };
        let table = route.as_ref().map(|route| route.table);
        let device = route.and_then(|route| {
            let index = route.index?;
            IfName::new(&names.iter().find(|link| link.index == index)?.name).ok()
        });
        let rule = rule(&rules(channel, IpFamily::of(way.to))?, table);
        found.push(Detour { peer: way.peer, to: way.to, device, table, rule });
    }
    Ok(found)
}

fn ask(channel: &mut Channel, to: IpAddr, from: Option<(IpAddr, u32)>) -> Answer {
    let found = channel.get(&encode::way_lookup(to, from), |kind, payload| {
        (kind == rtm::NEWROUTE).then(|| parse::route(payload)).flatten()
    });
    match found {
        Ok(Some(route)) if route.kind == encode::UNICAST => Answer::Route(Box::new(route)),
        // Our own route for addresses that nobody has is such a one.
        Ok(Some(route)) if route.protocol == PROTOCOL => Answer::Route(Box::new(route)),
        Ok(Some(_)) => Answer::None,
        // For a route that refuses, the answer is its error: unreachable, prohibit, blackhole.
        Err(refusal)
            if [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL].contains(&refusal.errno) =>
        {
            Answer::None
        }
        Ok(None) | Err(_) => Answer::Unknown,
    }
}

fn rules(channel: &mut Channel, family: IpFamily) -> io::Result<Vec<RawRule>> {
    let add = |found: &mut Vec<RawRule>, kind: u16, payload: &[u8]| {
        if kind == rtm::NEWRULE {
            found.extend(parse::rule(payload));
        }
    };
    let mut found = channel.dump(&encode::rule_dump(family), add, Vec::new)?;
    found.sort_by_key(|rule| rule.priority);
    Ok(found)
}

/// Returns the first rule that leads to `table`, or, without a table, the first that leads past the usual tables. There
/// is none if a route of the main table itself is in the way.
fn rule(rules: &[RawRule], table: Option<u32>) -> Option<(u32, u32)> {
    let unusual = |rule: &&RawRule| !USUAL_TABLES.contains(&rule.table);
    let found = match table {
        Some(table) => rules.iter().find(|rule| rule.table == table),
        None => rules.iter().find(unusual),
    };
    found.filter(unusual).map(|rule| (rule.priority, rule.table))
}
