//! GRE devices: the kernel's where it has the module, else TUN devices that this process serves.

mod probe;
mod userspace;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use flatnet_core::facts::GreSupport;
use flatnet_core::object::{Datapath, Dump, Link, Object};
use flatnet_core::op::{Action, Op, OpOutcome};
use flatnet_model::{IfName, IpFamily};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use nix::errno::Errno;

pub(crate) use probe::GreProbe;

use crate::dependency::Failures;
use crate::netlink::encode;
use crate::netlink::socket::{Channel, Refusal};
use crate::provider::{Provider, no_answer, nothing};
use crate::rtnetlink::{Requests, alias, device, links, lock, outcome};
use crate::{Facts, KernelError, Questions, Scope, Wake};
use userspace::{Userspace, is_gre};

/// The provider.
pub(crate) struct Gre {
    requests: Requests,
    probe: Arc<Mutex<GreProbe>>,
    userspace: Arc<Mutex<Userspace>>,
}

impl Gre {
    pub(crate) fn new(requests: Requests) -> Self {
        Self { requests, probe: Arc::default(), userspace: Arc::default() }
    }

    /// Returns the probe that finds out who carries GRE.
    pub(crate) fn probe(&self) -> Arc<Mutex<GreProbe>> {
        Arc::clone(&self.probe)
    }
}

impl Provider for Gre {
    fn carries(&self, object: &Object) -> bool {
        matches!(object, Object::Link(_, link) if is_gre(&link.kind))
    }

    fn facts<'a>(&'a self, asked: &'a Questions, facts: &'a mut Facts) -> BoxFuture<'a, Result<(), KernelError>> {
        Box::pin(async move {
            if asked.gre {
                let probe = Arc::clone(&self.probe);
                let look = move |channel: &mut Channel| {
                    let mut probe = lock(&probe);
                    GreSupport { v4: probe.look(channel, IpFamily::V4), v6: probe.look(channel, IpFamily::V6) }
                };
                facts.host.features.gre = self.requests.blocking(look).await.unwrap_or_default();
            }
            Ok(())
        })
    }

    /// Devices that nobody serves are reported as down. A look at everything shows where packets go.
    fn dump<'a>(&'a self, scope: &'a Scope, dump: &'a mut Dump) -> BoxFuture<'a, Result<(), KernelError>> {
        if !scope.ours && dump.state.links.is_empty() {
            return no_answer();
        }
        let (all, userspace) = (scope.ours, Arc::clone(&self.userspace));
        Box::pin(self.requests.look(dump, move |channel, dump| {
            let mut userspace = lock(&userspace);
            let found = dump.state.links.iter().filter(|(_, link)| is_gre(&link.kind)).map(|(name, _)| *name);
            let names: Vec<IfName> = found.chain(userspace.served()).collect();
            let index = |name: IfName| Some((name, device::owned(channel, name).ok()??.index));
            let indexes: BTreeMap<IfName, u32> = names.into_iter().filter_map(index).collect();
            userspace.judge(&mut dump.state, |name| indexes.get(&name).copied());
            if all {
                userspace.look(&dump.state, |name| indexes.get(&name).copied());
            }
            Ok(())
        }))
    }

    fn apply<'a>(&'a self, ops: &'a [Op], _: &'a [Op], failures: &'a mut Failures) -> BoxFuture<'a, Vec<OpOutcome>> {
        let userspace = Arc::clone(&self.userspace);
        Box::pin(self.requests.carry(ops, failures, move |channel, run| {
            let mut userspace = lock(&userspace);
            let mut devices = Devices { channel, userspace: &mut userspace };
            run.iter().map(|op| outcome(op, devices.carry_out(op))).collect()
        }))
    }

    fn follow(&self, ops: &[Op], outcomes: &[OpOutcome]) {
        lock(&self.userspace).follow(ops, outcomes);
        lock(&self.probe).applied(ops, outcomes);
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        nothing()
    }

    fn events(&self) -> Result<Option<BoxStream<'static, Wake>>, KernelError> {
        Ok(None)
    }
}

/// The devices, as operations see them.
struct Devices<'a> {
    channel: &'a mut Channel,
    userspace: &'a mut Userspace,
}

impl Devices<'_> {
    fn carry_out(&mut self, op: &Op) -> Result<(), Refusal> {
        let Object::Link(name, wanted) = &op.object else { return Err(Refusal::of(Errno::EOPNOTSUPP)) };
        match op.action {
            Action::Create => self.create(*name, wanted),
            Action::Change => self.change(*name, wanted),
            Action::Replace => self.delete(*name).and_then(|()| self.create(*name, wanted)),
            Action::Delete => self.delete(*name),
            Action::Adopt => device::adopt(self.channel, *name),
        }
    }

    fn create(&mut self, name: IfName, wanted: &Link) -> Result<(), Refusal> {
        match wanted.kind.datapath() {
            Datapath::Kernel => device::create(self.channel, name, wanted).map(drop),
            Datapath::Userspace => self.create_in_user_space(name, wanted),
        }
    }

    /// Creates a TUN device that this process serves. It carries its mark before it is kept, so no crash leaves one
    /// without.
    fn create_in_user_space(&mut self, name: IfName, wanted: &Link) -> Result<(), Refusal> {
        if links::named(self.channel, name)?.is_some() {
            return Err(Refusal::of(Errno::EEXIST));
        }
        let index = device::free_index();
        let made = Userspace::create(name, index).map_err(Refusal::from)?;
        let requests = [
            encode::link_mark(index, &alias::write(&wanted.kind)),
            encode::link_set(index, wanted, None),
            encode::link_quiet(index),
        ];
        let answers = self.channel.request_all(&requests).into_iter();
        answers.filter(|answer| !device::is_no_ipv6(answer)).collect::<Result<(), Refusal>>()?;
        device::bring_up(self.channel, name, wanted, index)?;
        self.userspace.keep(name, index, &wanted.kind, made).map_err(Refusal::from)
    }

    fn change(&mut self, name: IfName, wanted: &Link) -> Result<(), Refusal> {
        let present = device::present(self.channel, name)?;
        if wanted.kind.datapath() == Datapath::Userspace {
            self.userspace.attach(name, present.index, &wanted.kind).map_err(Refusal::from)?;
            self.channel.request(&encode::link_mark(present.index, &alias::write(&wanted.kind)))?;
        }
        device::change(self.channel, name, &present, wanted)
    }

    fn delete(&mut self, name: IfName) -> Result<(), Refusal> {
        if device::owned(self.channel, name)?.is_some() {
            self.userspace.release(name);
        }
        device::delete(self.channel, name)
    }
}
