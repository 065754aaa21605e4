//! Operations on netlink objects and settings, in order, batched.

use std::collections::HashMap;

use flatnet_core::object::{Link, LinkKind, Route, RouteVia, Sysctl};
use flatnet_core::op::{Action, Object, Op, OpError, OpOutcome};
use flatnet_model::IfName;
use nix::errno::Errno;

use super::carriers::{self, Indexes, Plan};
use super::device;
use super::port_holder;
use super::ports::Ports;
use crate::netlink::socket::{Channel, Refusal};
use crate::sysctl;

/// Returns the outcome of an operation that the kernel refused.
pub(crate) fn failed(op: &Op, refusal: &Refusal) -> OpOutcome {
    OpOutcome::Failed(OpError {
        action: op.action,
        object: op.object.to_string(),
        errno: Some(refusal.errno),
        reason: refusal.reason.clone(),
    })
}

/// The operations of one run of ours under way.
#[derive(Default)]
pub(super) struct Applier {
    indexes: HashMap<IfName, u32>,
}

impl Applier {
    /// Carries out operations of one kind, or a single one that stands alone.
    pub(super) fn run(&mut self, channel: &mut Channel, ports: &Ports, run: &[&Op]) -> Vec<OpOutcome> {
        match run {
            [op @ Op { object: Object::Link(name, link), .. }] => {
                self.indexes.remove(name);
                vec![self::link(channel, ports, op, *name, link)]
            }
            [op @ Op { object: Object::Sysctl(setting, value), .. }] => {
                vec![outcome(op, set_sysctl(op.action, setting, value))]
            }
            _ => self.batch(channel, run),
        }
    }

    fn batch(&mut self, channel: &mut Channel, run: &[&Op]) -> Vec<OpOutcome> {
        let plans: Vec<Plan> = run.iter().map(|op| self.plan(channel, op)).collect();
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
        let mut answers = channel.request_all(&requests).into_iter();
        run.iter().zip(verdicts).map(|(op, verdict)| verdict.outcome(op, &mut answers)).collect()
    }

    fn plan(&mut self, channel: &mut Channel, op: &Op) -> Plan {
        let mut indexes = Indexes { channel, known: &mut self.indexes };
        let planned = carriers::ALL.iter().find_map(|carrier| carrier.plan(op, &mut indexes));
        // Of a kind that somebody else carries out.
        planned.unwrap_or_else(|| Plan::Refused(Refusal::of(Errno::EOPNOTSUPP)))
    }
}

fn link(channel: &mut Channel, ports: &Ports, op: &Op, name: IfName, wanted: &Link) -> OpOutcome {
    let create = |channel: &mut Channel| -> Result<(), Refusal> {
        let index = device::create(channel, name, wanted)?;
        if wanted.kind == LinkKind::Bridge {
            ports.give_back(channel, name, index);
        }
        Ok(())
    };
    let done = match op.action {
        Action::Create => create(channel),
        Action::Change => {
            device::present(channel, name).and_then(|found| device::change(channel, name, &found, wanted))
        }
        Action::Replace => device::delete(channel, name).and_then(|()| create(channel)),
        Action::Delete => device::delete(channel, name),
        Action::Adopt => device::adopt(channel, name),
    };
    outcome(op, done.map_err(|refusal| named_holder(refusal, wanted)))
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

/// Returns the outcome of an operation that was answered so.
pub(crate) fn outcome(op: &Op, answer: Result<(), Refusal>) -> OpOutcome {
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

/// Reads a refusal to delete what is not there as success.
pub(crate) fn absent_is_done(answer: Result<(), Refusal>) -> Result<(), Refusal> {
    answer.or_else(|refusal| if refusal.is_absence() { Ok(()) } else { Err(refusal) })
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
