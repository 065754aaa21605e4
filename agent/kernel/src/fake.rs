//! [`FakeKernel`]: a kernel in memory. It is faithful to Linux in what it refuses, with which error number, and in what
//! goes with a device or nexthop that goes.
//!
//! It passes the conformance suite that [`crate::NetlinkKernel`] passes. It has *no* packets, no routes and neighbours
//! of the kernel's own, and no idea whether a gateway is reachable.

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flatnet_core::claims::Sighting;
use flatnet_core::facts::{Features, GreSupport, HostFacts, Interface};
use flatnet_core::firewall::WitnessSet;
use flatnet_core::object::{Dump, Foreign, KernelState, Link, Sysctl};
use flatnet_core::op::{Action, Object, ObjectKind, Op, OpError, OpOutcome};
use flatnet_model::{IfName, IpFamily};
use futures::Stream;
use nix::errno::Errno;
use tokio::sync::watch;

use crate::dependency::{self, Failures};
use crate::{Facts, Kernel, KernelError, Questions, Scope, Wake};

/// The condition on which an injected failure strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// The `n`th operation from now (0 is the next), once.
    Nth(u64),
    /// Every operation of this kind, until [`FakeKernel::heal`].
    Kind(ObjectKind),
    /// Every operation of this kind and action, until [`FakeKernel::heal`].
    KindAndAction(ObjectKind, Action),
}

/// The number of operations tried, by kind and action, including refused ones but not skipped ones.
pub type Counts = BTreeMap<(ObjectKind, Action), u64>;

#[derive(Debug, Default)]
struct Inner {
    facts: HostFacts,
    state: KernelState,
    foreign: Foreign,
    /// The sources that the ruleset's sets remember; gone with the sets.
    sightings: Vec<Sighting>,
    /// The ports of each bridge.
    ports: BTreeMap<IfName, BTreeSet<IfName>>,
    strikes: Vec<(Strike, i32)>,
    unreadable: Option<i32>,
    /// The link that a foreign device turns out to be once adopted; `None`: it is of a kind we do not make.
    adoptable: Option<Link>,
    tried: u64,
    counts: Counts,
    /// The dumps of everything that were made.
    full_dumps: u64,
}

/// The kernel in memory. Clones are the same kernel.
#[derive(Clone, Debug)]
pub struct FakeKernel {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Default for FakeKernel {
    fn default() -> Self {
        Self::new(HostFacts::default())
    }
}

impl FakeKernel {
    /// Creates an empty kernel of a host that is like `facts`. The facts have routes by address, and an address that is
    /// not among them has no route.
    #[must_use]
    pub fn new(facts: HostFacts) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner { facts, ..Inner::default() })),
            changed: Arc::new(watch::Sender::new(0)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Returns all objects of ours.
    #[must_use]
    pub fn state(&self) -> KernelState {
        self.lock().state.clone()
    }

    /// Returns all objects of others.
    #[must_use]
    pub fn foreign(&self) -> Foreign {
        self.lock().foreign.clone()
    }

    /// Plugs `port` into the bridge called `bridge`, now and whenever there is one.
    pub fn plug(&self, bridge: IfName, port: IfName) {
        self.lock().ports.entry(bridge).or_default().insert(port);
        self.wake();
    }

    /// Takes everything out of every bridge.
    pub fn unplug_all(&self) {
        self.lock().ports.clear();
        self.wake();
    }

    /// Changes our objects behind the agent's back, and wakes it. What is changed in a way that no specification tells
    /// is marked ([`KernelState::alter`]). Nothing follows from the change by itself: to delete
    /// a device as the kernel does, see [`Self::delete_link`].
    pub fn edit<T>(&self, change: impl FnOnce(&mut KernelState) -> T) -> T {
        let result = change(&mut self.lock().state);
        self.wake();
        result
    }

    /// Changes our objects as [`Self::edit`] does, but wakes nobody, as if a notification got lost.
    pub fn edit_silently<T>(&self, change: impl FnOnce(&mut KernelState) -> T) -> T {
        change(&mut self.lock().state)
    }

    /// Drops such a packet by a rule that remembers it. Returns true if the ruleset has such a rule and its set has
    /// room. Nobody is woken.
    pub fn sight(&self, sighting: Sighting) -> bool {
        let mut inner = self.lock();
        let set = WitnessSet { family: IpFamily::of(sighting.inner), chain: sighting.chain.clone() };
        let declared = format!("set {set} {{");
        let has_set = inner.state.ruleset.as_ref().is_some_and(|ruleset| ruleset.body.contains(&declared));
        let same = |known: &&Sighting| known.chain == sighting.chain && IpFamily::of(known.inner) == set.family;
        let has_room = inner.sightings.iter().filter(same).count() < WitnessSet::SIZE;
        if has_set && has_room {
            inner.sightings.push(sighting);
        }
        has_set && has_room
    }

    /// Deletes a device with all that goes with it, behind the agent's back, and wakes it.
    pub fn delete_link(&self, name: flatnet_model::IfName) {
        state::delete_link(&mut self.lock().state, name);
        self.wake();
    }

    /// Sets a device down and up again, behind the agent's back. The routes and nexthops through it are gone.
    pub fn flap_link(&self, name: flatnet_model::IfName) {
        state::take_down(&mut self.lock().state, name);
        self.wake();
    }

    /// Plants or removes objects that are not ours, and wakes the agent.
    pub fn edit_foreign<T>(&self, change: impl FnOnce(&mut Foreign) -> T) -> T {
        let result = change(&mut self.lock().foreign);
        self.wake();
        result
    }

    /// Plants a foreign device that is of a kind we make, as flanneld's is.
    pub fn plant_link(&self, name: IfName, link: Link) {
        self.edit_foreign(|foreign| foreign.links.insert(name, "planted".to_owned()));
        self.lock().adoptable = Some(link);
    }

    /// Changes the facts about the host, and wakes the agent.
    pub fn edit_facts<T>(&self, change: impl FnOnce(&mut HostFacts) -> T) -> T {
        let result = change(&mut self.lock().facts);
        self.wake();
        result
    }

    /// Makes operations fail with `errno`.
    pub fn fail(&self, strike: Strike, errno: i32) {
        let mut inner = self.lock();
        let strike = match strike {
            Strike::Nth(n) => Strike::Nth(inner.tried.saturating_add(n)),
            other => other,
        };
        inner.strikes.push((strike, errno));
    }

    /// Makes `dump` and `facts` fail with `errno`.
    pub fn fail_reads(&self, errno: i32) {
        self.lock().unreadable = Some(errno);
    }

    /// Ends all injected failures.
    pub fn heal(&self) {
        let mut inner = self.lock();
        inner.strikes.clear();
        inner.unreadable = None;
    }

    /// Returns the number of operations tried so far, by kind and action.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// Returns the number of dumps of everything so far.
    #[must_use]
    pub fn full_dumps(&self) -> u64 {
        self.lock().full_dumps
    }

    /// Returns the number of operations tried so far, of all kinds.
    #[must_use]
    pub fn tried(&self) -> u64 {
        self.lock().tried
    }
}

impl Inner {
    fn readable(&self, what: &'static str) -> Result<(), KernelError> {
        match self.unreadable {
            None => Ok(()),
            Some(errno) => Err(KernelError { what, source: std::io::Error::from_raw_os_error(errno) }),
        }
    }

    /// Returns the injected failure that strikes the operation now tried.
    fn struck(&mut self, op: &Op) -> Option<i32> {
        let now = self.tried;
        let kind = op.object.kind();
        let index = self.strikes.iter().position(|(strike, _)| match strike {
            Strike::Nth(n) => *n == now,
            Strike::Kind(of) => *of == kind,
            Strike::KindAndAction(of, action) => *of == kind && *action == op.action,
        })?;
        let (strike, errno) = *self.strikes.get(index)?;
        if matches!(strike, Strike::Nth(_)) {
            self.strikes.remove(index);
        }
        Some(errno)
    }

    fn host(&self, route_to: &[IpAddr]) -> HostFacts {
        let known = &self.facts.routes;
        let lookup = |address: &IpAddr| {
            let found = known.iter().find(|(known, _)| known == address).and_then(|(_, route)| *route);
            (*address, found)
        };
        let known = |name: &IfName| self.facts.interface(*name).is_some();
        let ours = self.state.links.iter().filter(|(name, _)| !known(name)).map(|(name, link)| Interface {
            name: *name,
            up: link.up,
            loopback: false,
            mtu: Some(link.mtu),
            addresses: Vec::new(),
            ours: true,
        });
        let interfaces = self.facts.interfaces.iter().cloned().chain(ours).collect();
        let features = Features { gre: GreSupport::default(), ..self.facts.features };
        let routes = route_to.iter().map(lookup).collect();
        HostFacts { routes, interfaces, features, ..self.facts.clone() }
    }

    /// Makes a foreign device ours, which is what was planted there. One of a kind that we do not make is nobody's
    /// then.
    fn adopt(&mut self, object: &Object) {
        if let Object::Link(name, _) = object
            && self.foreign.links.remove(name).is_some()
        {
            self.state.links.extend(self.adoptable.clone().map(|link| (*name, link)));
        }
    }

    fn try_op(&mut self, op: &Op) -> OpOutcome {
        let struck = self.struck(op);
        self.tried = self.tried.saturating_add(1);
        let count = self.counts.entry((op.object.kind(), op.action)).or_default();
        *count = count.saturating_add(1);
        let done = match struck {
            Some(errno) => Err(Errno::from_raw(errno)),
            None if op.action == Action::Adopt => {
                self.adopt(&op.object);
                Ok(())
            }
            None => state::carry_out(&mut self.state, &self.foreign, op),
        };
        match done {
            Ok(()) => {
                if op.object.kind() == ObjectKind::Ruleset {
                    // A swap makes every set anew.
                    self.sightings.clear();
                }
                OpOutcome::Done
            }
            // If an injected failure claims that an object is absent, it is there all the same.
            Err(errno) if op.action == Action::Delete && struck.is_none() && is_absence(errno) => OpOutcome::Done,
            Err(errno) => OpOutcome::Failed(OpError {
                action: op.action,
                object: op.object.to_string(),
                errno: Some(errno as i32),
                reason: errno.desc().to_owned(),
            }),
        }
    }
}

fn is_absence(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL)
}

impl Kernel for FakeKernel {
    async fn facts(&self, asked: &Questions) -> Result<Facts, KernelError> {
        let inner = self.lock();
        let mut facts = Facts::default();
        if let Some(route_to) = &asked.host {
            inner.readable("interfaces and routes")?;
            facts.host = inner.host(route_to);
        }
        if asked.gre {
            facts.host.features.gre = inner.facts.features.gre;
        }
        if asked.sightings {
            inner.readable("nftables")?;
            facts.sightings.clone_from(&inner.sightings);
        }
        Ok(facts)
    }

    async fn dump(&self, scope: &Scope) -> Result<Dump, KernelError> {
        let mut inner = self.lock();
        inner.readable("objects")?;
        inner.full_dumps += u64::from(scope.ours);
        let Inner { state, foreign, ports, .. } = &*inner;
        if !ObjectKind::ALL.iter().any(|kind| *kind != ObjectKind::Sysctl && scope.has_kind(*kind)) {
            // Settings are read again and again, and the rest of a kernel is large.
            let read = |setting: &Sysctl| Some((setting.clone(), state.sysctls.get(setting)?.clone()));
            let state = KernelState { sysctls: scope.sysctls().filter_map(read).collect(), ..KernelState::default() };
            return Ok(Dump { state, ..Dump::default() });
        }
        let ports = ports.iter().filter(|(bridge, _)| state.links.contains_key(bridge));
        let ports = ports.map(|(bridge, ports)| (*bridge, ports.clone())).collect();
        let mut dump = Dump { state: state.clone(), foreign: foreign.clone(), ports };
        scope.narrow(&mut dump);
        Ok(dump)
    }

    async fn apply(&self, ops: &[Op]) -> Vec<OpOutcome> {
        let mut inner = self.lock();
        let mut failures = Failures::default();
        let mut outcomes = Vec::with_capacity(ops.len());
        for run in dependency::runs(ops) {
            let of_tried: Vec<OpOutcome> = failures.tried(run).into_iter().map(|op| inner.try_op(op)).collect();
            outcomes.extend(failures.settle(run, of_tried));
        }
        outcomes
    }

    fn events(&self) -> Result<impl Stream<Item = Wake> + Send + Unpin + 'static, KernelError> {
        let receiver = self.changed.subscribe();
        Ok(Box::pin(futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.changed().await.ok()?;
            Some((Wake::Netlink, receiver))
        })))
    }
}

#[cfg(test)]
mod tests;
