//! The kinds that rtnetlink carries out in batches, one file each: the requests of an operation, what a dump reads, and
//! the notifications of a change. To add one, add a file and a line in [`ALL`].

mod address;
mod fdb;
mod neighbour;
mod nexthop;
mod route;
mod rule;

use std::collections::{BTreeMap, HashMap};
use std::io;

use flatnet_core::object::Dump;
use flatnet_core::op::{Action, ObjectKind, Op};
use flatnet_model::IfName;

pub(super) use address::{all as all_addresses, is_link_local};

use super::links;
use crate::netlink::encode::Presence;
use crate::netlink::parse::RawLink;
use crate::netlink::socket::{Channel, Refusal};
use crate::netlink::wire::Request;

/// What carries out the operations of one kind.
pub(super) trait Carrier: Sync {
    /// The kind.
    fn kind(&self) -> ObjectKind;

    /// The name of its objects in errors.
    fn what(&self) -> &'static str;

    /// Returns the requests of an operation; `None`: it is of another kind.
    fn plan(&self, op: &Op, indexes: &mut Indexes<'_>) -> Option<Plan>;

    /// Adds to `dump` what is ours, and what is in the way.
    fn dump(&self, channel: &mut Channel, devices: &Devices, dump: &mut Dump) -> io::Result<()>;

    /// The multicast groups in which the kernel tells of changes (`RTNLGRP_…`, linux/rtnetlink.h).
    fn groups(&self) -> &'static [u32];
}

/// All of them, in the order in which a dump reads them.
pub(super) const ALL: [&dyn Carrier; 6] =
    [&address::Addresses, &neighbour::Neighbours, &fdb::Fdb, &nexthop::Nexthops, &route::Routes, &rule::Rules];

/// The requests that an operation needs.
pub(super) enum Plan {
    /// One request.
    One(Request),
    /// A request that makes room, whose answer does not matter, and the request itself.
    Aside(Request, Request),
    /// A refusal that is known without asking.
    Refused(Refusal),
    /// Nothing to do.
    Nothing,
}

/// What an operation does about an object that is there already, or not yet.
fn presence(op: &Op) -> Presence {
    match op.action {
        Action::Create => Presence::New,
        Action::Change => Presence::Existing,
        Action::Replace | Action::Delete | Action::Adopt => Presence::Either,
    }
}

/// Interface indexes, looked up once for each `apply`.
pub(super) struct Indexes<'a> {
    pub(super) channel: &'a mut Channel,
    pub(super) known: &'a mut HashMap<IfName, u32>,
}

impl Indexes<'_> {
    /// Returns `plan` for the index of `device`. Without the device a deletion has nothing to do.
    fn on(&mut self, op: &Op, device: IfName, plan: impl FnOnce(u32) -> Plan) -> Plan {
        match self.index(device) {
            Ok(Some(index)) => plan(index),
            Ok(None) if op.action == Action::Delete => Plan::Nothing,
            Ok(None) => Plan::Refused(Refusal { errno: libc::ENODEV, reason: format!("there is no device {device}") }),
            Err(refusal) => Plan::Refused(refusal),
        }
    }

    fn index(&mut self, device: IfName) -> Result<Option<u32>, Refusal> {
        if let Some(&index) = self.known.get(&device) {
            return Ok(Some(index));
        }
        let index = links::named(self.channel, device)?.map(|link| link.index);
        self.known.extend(index.map(|index| (device, index)));
        Ok(index)
    }
}

/// Device names by interface index.
pub(super) struct Devices {
    all: HashMap<u32, IfName>,
    ours: BTreeMap<u32, IfName>,
}

impl Devices {
    pub(super) fn new(links: &[RawLink]) -> Self {
        let named = |link: &RawLink| Some((link.index, IfName::new(&link.name).ok()?));
        Self {
            all: links.iter().filter_map(named).collect(),
            ours: links.iter().filter(|link| links::is_ours(link)).filter_map(named).collect(),
        }
    }

    pub(super) fn name(&self, index: Option<u32>) -> Option<IfName> {
        self.all.get(&index?).copied()
    }
}

/// Reads a failure as empty if the device went away, or the table was never used (`ENOENT`), since neither has anything
/// in it.
fn absent_is_empty<T: Default>(found: io::Result<T>) -> io::Result<T> {
    match found {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(T::default()),
        other => other,
    }
}
