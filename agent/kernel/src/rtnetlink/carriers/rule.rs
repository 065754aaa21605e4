//! Rules of routing. Ours carry our protocol number (`FRA_PROTOCOL`, since Linux 4.17).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_core::object::{Dump, Object, PROTOCOL, Rule};
use flatnet_core::op::{Action, ObjectKind, Op};
use flatnet_model::{IfName, IpFamily};
use ipnet::IpNet;

use super::{Carrier, Devices, Indexes, Plan};
use crate::netlink::encode::{self, Presence, rtm};
use crate::netlink::socket::Channel;
use crate::netlink::wire::{Request, attributes, read_address, read_text, read_u8, read_u32};

// Attributes (linux/fib_rules.h).
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;

/// `FR_ACT_TO_TBL`: a table is asked.
const ASK_TABLE: u8 = 1;

/// `RTM_DELRULE` (linux/rtnetlink.h).
const DELRULE: u16 = 33;

/// Carries out [`ObjectKind::Rule`].
pub(super) struct Rules;

impl Carrier for Rules {
    fn kind(&self) -> ObjectKind {
        ObjectKind::Rule
    }

    fn what(&self) -> &'static str {
        "routing rules"
    }

    fn plan(&self, op: &Op, _: &mut Indexes<'_>) -> Option<Plan> {
        let Object::Rule(rule) = &op.object else { return None };
        Some(Plan::One(match op.action {
            Action::Delete => request(DELRULE, 0, rule),
            // A rule has nothing that could be changed; the kernel refuses one that is there already.
            Action::Create | Action::Change | Action::Replace | Action::Adopt => {
                request(rtm::NEWRULE, Presence::New.flags(), rule)
            }
        }))
    }

    fn dump(&self, channel: &mut Channel, _: &Devices, dump: &mut Dump) -> io::Result<()> {
        for family in IpFamily::BOTH {
            let read = |found: &mut Vec<Rule>, kind, payload: &[u8]| {
                if kind == rtm::NEWRULE {
                    found.extend(ours(family, payload));
                }
            };
            match channel.dump(&encode::rule_dump(family), read, Vec::new) {
                // A kernel without IPv6, or without rules for it.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {}
                found => dump.state.rules.extend(found?),
            }
        }
        Ok(())
    }

    fn groups(&self) -> &'static [u32] {
        // ipv4 and ipv6 rule
        &[8, 19]
    }
}

/// Writes a `struct fib_rule_hdr` and its attributes.
fn request(kind: u16, flags: u16, rule: &Rule) -> Request {
    let mut fixed = [0; 12];
    fixed[0] = encode::family(rule.family);
    fixed[1] = rule.to.map_or(0, |net| net.prefix_len());
    fixed[2] = rule.from.map_or(0, |net| net.prefix_len());
    fixed[7] = ASK_TABLE;
    let request = Request::new(kind, flags, &fixed)
        .with_u32(FRA_PRIORITY, rule.priority)
        .with_u32(FRA_TABLE, rule.table)
        .with(FRA_PROTOCOL, &[PROTOCOL]);
    let request = rule.to.into_iter().fold(request, |request, net| request.with_address(FRA_DST, net.network()));
    let request = rule.from.into_iter().fold(request, |request, net| request.with_address(FRA_SRC, net.network()));
    let request = rule
        .mark
        .into_iter()
        .fold(request, |request, (mark, mask)| request.with_u32(FRA_FWMARK, mark).with_u32(FRA_FWMASK, mask));
    rule.iif.into_iter().fold(request, |request, name| {
        // A string of the kernel's ends with 0.
        let mut text = name.as_str().as_bytes().to_vec();
        text.push(0);
        request.with(FRA_IIFNAME, &text)
    })
}

/// Reads a rule; `None`: it is not ours.
fn ours(family: IpFamily, payload: &[u8]) -> Option<Rule> {
    let any = match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (to_len, from_len) = (read_u8(payload, 1)?, read_u8(payload, 2)?);
    let mut rule = Rule {
        priority: 0,
        family,
        mark: None,
        from: None,
        to: None,
        iif: None,
        table: u32::from(read_u8(payload, 4)?),
    };
    let (mut to, mut from, mut mark, mut mask, mut protocol) = (any, any, None, u32::MAX, 0);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            FRA_DST => to = read_address(value)?,
            FRA_SRC => from = read_address(value)?,
            FRA_IIFNAME => rule.iif = Some(IfName::new(&read_text(value)).ok()?),
            FRA_PRIORITY => rule.priority = read_u32(value, 0)?,
            FRA_FWMARK => mark = read_u32(value, 0),
            FRA_FWMASK => mask = read_u32(value, 0)?,
            FRA_TABLE => rule.table = read_u32(value, 0)?,
            FRA_PROTOCOL => protocol = read_u8(value, 0)?,
            _ => {}
        }
    }
    let net = |address, length: u8| IpNet::new(address, length).ok().filter(|_| length > 0);
    rule.to = net(to, to_len);
    rule.from = net(from, from_len);
    rule.mark = mark.map(|mark| (mark, mask));
    (protocol == PROTOCOL).then_some(rule)
}
