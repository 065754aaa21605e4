//! Operations on netlink objects and settings, in order, batched.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use flatnet_core::object::{Datapath, Link, LinkKind, Route, RouteVia, Sysctl};
use flatnet_core::op::{Action, Object, Op, OpError, OpOutcome};
use flatnet_model::IfName;
use nix::errno::Errno;

use super::carriers::{self, Indexes, Plan};
use super::links;
use super::port_holder;
use super::ports::Ports;
use super::wireguard::Wireguard;
use crate::dependency::{self, Failures};
use crate::netlink::encode;
use crate::netlink::parse::RawLink;
use crate::netlink::socket::{Channel, Refusal};
use crate::sysctl;
use crate::userspace::{Userspace, alias};

/// Returns the outcome of an operation that the kernel refused.
pub(super) fn failed(op: &Op, refusal: &Refusal) -> OpOutcome {
    OpOutcome::Failed(OpError {
        action: op.action,
        object: op.object.to_string(),
        errno: Some(refusal.errno),
        reason: refusal.reason.clone(),
    })
}

/// One `apply` under way.
pub(super) struct Applier<'a> {
    channel: &'a mut Channel,
    wireguard: &'a Wireguard,
    userspace: &'a mut Userspace,
    ports: &'a Ports,
    failures: Failures,
    indexes: HashMap<IfName, u32>,
}

impl<'a> Applier<'a> {
    /// Creates an applier that goes on from earlier `failures`.
    pub(super) fn new(
        channel: &'a mut Channel,
        wireguard: &'a Wireguard,
        userspace: &'a mut Userspace,
        ports: &'a Ports,
        failures: Failures,
    ) -> Self {
        Self { channel, wireguard, userspace, ports, failures, indexes: HashMap::new() }
    }

    /// Carries out `ops`. Returns one outcome each, and what has failed so far.
    pub(super) fn apply(mut self, ops: &[Op]) -> (Vec<OpOutcome>, Failures) {
        let mut outcomes = Vec::with_capacity(ops.len());
        for run in dependency::runs(ops) {
            let of_tried = match self.failures.tried(run).as_slice() {
                [] => Vec::new(),
                tried => self.run(tried, ops),
            };
            outcomes.extend(self.failures.settle(run, of_tried));
        }
        (outcomes, self.failures)
    }

    /// Operations of one kind, or a single one that stands alone. `all`: the whole plan.
    fn run(&mut self, run: &[&Op], all: &[Op]) -> Vec<OpOutcome> {
        match run {
            [op @ Op { object: Object::Link(name, link), .. }] => vec![self.link(op, *name, link)],
            [op @ Op { object: Object::Sysctl(setting, value), .. }] => {
                vec![outcome(op, set_sysctl(op.action, setting, value))]
            }
            [Op { object: Object::WireguardPeer(..), .. }, ..] => self.wireguard_peers(run, all),
            _ => self.batch(run),
        }
    }

    fn batch(&mut self, run: &[&Op]) -> Vec<OpOutcome> {
        let plans: Vec<Plan> = run.iter().map(|op| self.plan(op)).collect();
        let mut requests = Vec::with_capacity(run.len());
        let mut verdicts = Vec::with_capacity(run.len());
        for plan in plans {
            let verdict = match plan {
                Plan::Nothing => Verdict::Known(Ok(())),
                Plan::Refused(refusal) => Verdict::Known(Err(refusal)),
                Plan::One(request) => {
                    requests.push(request);
                    Verdict::Asked
                }
                Plan::Aside(aside, request) => {
                    requests.extend([aside, request]);
                    Verdict::AskedAfter
                }
            };
            verdicts.push(verdict);
        }
        let mut answers = self.channel.request_all(&requests).into_iter();
        run.iter().zip(verdicts).map(|(op, verdict)| verdict.outcome(op, &mut answers)).collect()
    }

    fn plan(&mut self, op: &Op) -> Plan {
        let mut indexes = Indexes { channel: self.channel, known: &mut self.indexes };
        let planned = carriers::ALL.iter().find_map(|carrier| carrier.plan(op, &mut indexes));
        // Of a kind that somebody else carries out.
        planned.unwrap_or_else(|| Plan::Refused(Refusal::of(Errno::EOPNOTSUPP)))
    }

    fn link(&mut self, op: &Op, name: IfName, wanted: &Link) -> OpOutcome {
        self.indexes.remove(&name);
        let done = match op.action {
            Action::Create => self.create(name, wanted),
            Action::Change => self.change(name, wanted),
            Action::Replace => self.delete(name).and_then(|()| self.create(name, wanted)),
            Action::Delete => self.delete(name),
            Action::Adopt => self.adopt(name),
        };
        outcome(op, done.map_err(|refusal| named_holder(refusal, wanted)))
    }

    /// Peers. `all`: the whole plan, which tells a peer that got another key from one that is new.
    fn wireguard_peers(&mut self, run: &[&Op], all: &[Op]) -> Vec<OpOutcome> {
        let mut answers = self.wireguard.change_peers(run, all).into_iter();
        run.iter().map(|op| Verdict::Asked.outcome(op, &mut answers)).collect()
    }

    /// Creates a device. It is made, marked and silenced in one `send()` (see [`encode::link_create`]), and then
    /// brought up. If any of it fails, the device is taken away again.
    fn create(&mut self, name: IfName, wanted: &Link) -> Result<(), Refusal> {
        if let LinkKind::Wireguard(link) = &wanted.kind {
            return self.wireguard.create(self.channel, name, wanted, *link);
        }
        let index = free_index();
        let Some(create) = encode::link_create(name, wanted, index) else {
            return self.create_in_user_space(name, wanted, index);
        };
        let mut requests = vec![create, encode::link_mark(index, Link::ALIAS), encode::link_quiet(index)];
        requests.extend(encode::link_settle(index, wanted));
        let mut answers = self.channel.request_all(&requests).into_iter();
        answers.next().unwrap_or(Ok(()))?;
        let made = answers.filter(|answer| !is_no_ipv6(answer)).collect::<Result<(), Refusal>>();
        let made = made.and_then(|()| self.bring_up(name, wanted, index));
        if made.is_err()
            && let Err(refusal) = self.channel.request(&encode::link_delete(index))
        {
            tracing::warn!(link = %name, error = %refusal, "cannot take back a link made in part");
        }
        if made.is_ok() && wanted.kind == LinkKind::Bridge {
            self.ports.give_back(self.channel, name, index);
        }
        made
    }

    /// Creates a TUN device that this process serves. It carries its mark before it is kept, so no crash leaves one
    /// without.
    fn create_in_user_space(&mut self, name: IfName, wanted: &Link, index: u32) -> Result<(), Refusal> {
        if links::named(self.channel, name)?.is_some() {
            return Err(Refusal::of(Errno::EEXIST));
        }
        let made = Userspace::create(name, index).map_err(Refusal::from)?;
        let requests = [
            encode::link_mark(index, &alias::write(&wanted.kind)),
            encode::link_set(index, wanted, None),
            encode::link_quiet(index),
        ];
        let answers = self.channel.request_all(&requests).into_iter();
        answers.filter(|answer| !is_no_ipv6(answer)).collect::<Result<(), Refusal>>()?;
        self.bring_up(name, wanted, index)?;
        self.userspace.keep(name, index, &wanted.kind, made).map_err(Refusal::from)
    }

    fn bring_up(&mut self, name: IfName, wanted: &Link, index: u32) -> Result<(), Refusal> {
        links::deafen(name);
        if wanted.up { self.channel.request(&encode::link_up(index)) } else { Ok(()) }
    }

    fn change(&mut self, name: IfName, wanted: &Link) -> Result<(), Refusal> {
        let present = self.owned(name)?.ok_or_else(|| Refusal::of(Errno::ENODEV))?;
        let index = present.index;
        if let LinkKind::Wireguard(link) = &wanted.kind {
            self.wireguard.configure(self.channel, name, index, *link)?;
        }
        if let (LinkKind::Gre(_) | LinkKind::Gre6(_), Datapath::Userspace) = (&wanted.kind, wanted.kind.datapath()) {
            self.userspace.attach(name, index, &wanted.kind).map_err(Refusal::from)?;
            self.channel.request(&encode::link_mark(index, &alias::write(&wanted.kind)))?;
        }
        let state = if wanted.up { encode::link_up(index) } else { encode::link_down(index) };
        let mut requests = vec![encode::link_set(index, wanted, present.mac), encode::link_quiet(index), state];
        requests.extend(encode::link_remake(index, name, wanted));
        self.channel.request_all(&requests).into_iter().filter(|answer| !is_no_ipv6(answer)).collect()
    }

    fn delete(&mut self, name: IfName) -> Result<(), Refusal> {
        let found = self.owned(name)?;
        self.wireguard.forget(name);
        match found {
            Some(link) => {
                self.userspace.release(name);
                absent_is_done(self.channel.request(&encode::link_delete(link.index)))
            }
            None => Ok(()),
        }
    }

    /// Puts our mark on a device, whoever made it.
    fn adopt(&mut self, name: IfName) -> Result<(), Refusal> {
        match links::named(self.channel, name)? {
            Some(link) => self.channel.request(&encode::link_mark(link.index, Link::ALIAS)),
            None => Ok(()),
        }
    }

    /// Returns a device, if it is ours: it may have been exchanged for another since the dump.
    fn owned(&mut self, name: IfName) -> Result<Option<RawLink>, Refusal> {
        match links::named(self.channel, name)? {
            Some(link) if !links::is_ours(&link) => {
                Err(Refusal { errno: libc::EEXIST, reason: format!("{name} is not ours ({})", links::describe(&link)) })
            }
            found => Ok(found),
        }
    }
}

/// Names the program that holds a VXLAN device's port, if that is why it was refused. The device opens its port when it
/// is brought up.
fn named_holder(refusal: Refusal, wanted: &Link) -> Refusal {
    match &wanted.kind {
        LinkKind::Vxlan(vxlan) if refusal.errno == libc::EADDRINUSE => port_holder::refusal(vxlan.port),
        _ => refusal,
    }
}

/// The state of an operation's answer, before and after its requests.
enum Verdict {
    Known(Result<(), Refusal>),
    /// The next answer belongs to it.
    Asked,
    /// The answer after the next belongs to it.
    AskedAfter,
}

impl Verdict {
    fn outcome(self, op: &Op, answers: &mut impl Iterator<Item = Result<(), Refusal>>) -> OpOutcome {
        match self {
            Self::Known(answer) => outcome(op, answer),
            Self::Asked => outcome(op, answers.next().unwrap_or_else(|| Err(Refusal::of(Errno::EIO)))),
            Self::AskedAfter => outcome(op, answers.nth(1).unwrap_or_else(|| Err(Refusal::of(Errno::EIO)))),
        }
    }
}

fn outcome(op: &Op, answer: Result<(), Refusal>) -> OpOutcome {
    let answer = if op.action == Action::Delete { absent_is_done(answer) } else { answer };
    match answer {
        Ok(()) => OpOutcome::Done,
        // The route leads through a nexthop that is not there, so there is no such route either.
        Err(refusal) if refusal.errno == libc::EINVAL && is_deletion_through_object(op) => OpOutcome::Done,
        Err(refusal) => failed(op, &refusal),
    }
}

fn is_deletion_through_object(op: &Op) -> bool {
    op.action == Action::Delete && matches!(&op.object, Object::Route(_, Route { via: RouteVia::Object(_), .. }))
}

fn absent_is_done(answer: Result<(), Refusal>) -> Result<(), Refusal> {
    answer.or_else(|refusal| if refusal.is_absence() { Ok(()) } else { Err(refusal) })
}

/// Returns true if [`encode::link_quiet`] was refused because the device has no IPv6, and hence makes no link-local
/// address: IPv6 is disabled, or the MTU is below its minimum.
pub(super) fn is_no_ipv6(answer: &Result<(), Refusal>) -> bool {
    matches!(answer, Err(refusal) if refusal.errno == libc::EAFNOSUPPORT)
}

/// Returns an interface index that is most probably free: the kernel counts up from 1 and hands these out last. A clash
/// makes the kernel refuse the creation.
pub(super) fn free_index() -> u32 {
    /// From 2^24 to 2^30: far above the kernel's own, and below the sign bit of `ifindex`.
    const FIRST: u64 = 1 << 24;
    const COUNT: u64 = (1 << 30) - FIRST;
    // RandomState is seeded by the system's random numbers, anew for each instance.
    let random = RandomState::new().hash_one(0_u8);
    u32::try_from(FIRST + random % COUNT).unwrap_or(1 << 24)
}

fn set_sysctl(action: Action, setting: &Sysctl, value: &str) -> Result<(), Refusal> {
    match action {
        // A setting is never deleted: putting it back is a change to the value recorded.
        Action::Delete | Action::Adopt => Ok(()),
        Action::Create | Action::Change | Action::Replace => match sysctl::write(setting, value) {
            // Where no setting may be written (a container's /proc/sys), many have the right value all the same.
            Err(_) if matches!(sysctl::read(setting), Ok(Some(now)) if now == value) => Ok(()),
            written => written.map_err(Refusal::from),
        },
    }
}
