//! Devices, addresses, neighbours, routes and rules over rtnetlink, and settings: what the kernel carries by itself.

pub(crate) mod alias;
mod apply;
mod carriers;
pub(crate) mod device;
mod dump;
mod facts;
pub(crate) mod links;
pub(crate) mod port_holder;
mod ports;
mod way;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flatnet_core::object::{Dump, LinkKind, Object};
use flatnet_core::op::{Op, OpOutcome};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

pub(crate) use apply::{absent_is_done, failed, outcome};

use crate::dependency::Failures;
use crate::netlink::monitor::Monitor;
use crate::netlink::socket::{Channel, Refusal};
use crate::provider::{Provider, nothing};
use crate::{Facts, KernelError, Questions, Scope, Wake};
use ports::Ports;

/// The one socket for requests, which providers share: what one of them asks is answered before another asks.
#[derive(Clone)]
pub(crate) struct Requests {
    channel: Arc<Mutex<Channel>>,
    port: u32,
}

impl Requests {
    /// Opens the socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let channel = Channel::open()?;
        Ok(Self { port: channel.port(), channel: Arc::new(Mutex::new(channel)) })
    }

    /// Runs `work` with the socket on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Channel) -> T + Send + 'static,
    ) -> io::Result<T> {
        let channel = Arc::clone(&self.channel);
        tokio::task::spawn_blocking(move || work(&mut lock(&channel))).await.map_err(io::Error::other)
    }

    /// Looks with `look`, which adds what it finds to the dump it is given.
    pub(crate) async fn look(
        &self,
        dump: &mut Dump,
        look: impl FnOnce(&mut Channel, &mut Dump) -> Result<(), KernelError> + Send + 'static,
    ) -> Result<(), KernelError> {
        let mut found = std::mem::take(dump);
        let looked = self.blocking(move |channel| look(channel, &mut found).map(|()| found)).await;
        *dump = looked.map_err(|source| KernelError { what: "objects", source })??;
        Ok(())
    }

    /// Carries out `ops` with `carry`, which is given what can be tried of each run and returns one outcome each.
    pub(crate) async fn carry(
        &self,
        ops: &[Op],
        failures: &mut Failures,
        carry: impl FnMut(&mut Channel, &[&Op]) -> Vec<OpOutcome> + Send + 'static,
    ) -> Vec<OpOutcome> {
        let (owned, before, mut carry) = (ops.to_vec(), failures.clone(), carry);
        match self.blocking(move |channel| before.carry(&owned, |run| carry(channel, run))).await {
            Ok((outcomes, after)) => {
                *failures = after;
                outcomes
            }
            Err(error) => {
                let refusal = Refusal::from(error);
                let refused = failures.tried(ops).into_iter().map(|op| failed(op, &refusal));
                failures.settle(ops, refused.collect::<Vec<_>>())
            }
        }
    }
}

/// Locks. A lock whose holder panicked is still good: a request socket skips answers that are not to its latest
/// request, and every dump compares what is known of user space with the kernel.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The provider.
pub(crate) struct Rtnetlink {
    requests: Requests,
    ports: Arc<Mutex<Ports>>,
}

impl Rtnetlink {
    pub(crate) fn new(requests: Requests) -> Self {
        Self { requests, ports: Arc::default() }
    }
}

impl Provider for Rtnetlink {
    fn carries(&self, object: &Object) -> bool {
        match object {
            Object::Link(_, link) => matches!(link.kind, LinkKind::Vxlan(_) | LinkKind::Bridge),
            Object::Sysctl(..) => true,
            object => carriers::ALL.iter().any(|carrier| carrier.kind() == object.kind()),
        }
    }

    fn facts<'a>(&'a self, asked: &'a Questions, facts: &'a mut Facts) -> BoxFuture<'a, Result<(), KernelError>> {
        Box::pin(async move {
            if let Some(route_to) = asked.host.clone() {
                let looked = self.requests.blocking(move |channel| facts::facts(channel, &route_to)).await;
                facts.host = looked.map_err(|source| KernelError { what: "interfaces and routes", source })??;
            }
            if !asked.ways.is_empty() {
                let ways = asked.ways.clone();
                let found = self.requests.blocking(move |channel| way::detours(channel, &ways)).await;
                let found = found.and_then(|found| found);
                facts.detours = found.map_err(|source| KernelError { what: "routes to peers", source })?;
            }
            Ok(())
        })
    }

    fn dump<'a>(&'a self, scope: &'a Scope, dump: &'a mut Dump) -> BoxFuture<'a, Result<(), KernelError>> {
        let (scope, ports) = (scope.clone(), Arc::clone(&self.ports));
        Box::pin(self.requests.look(dump, move |channel, dump| dump::dump(channel, &mut lock(&ports), &scope, dump)))
    }

    fn apply<'a>(&'a self, ops: &'a [Op], _: &'a [Op], failures: &'a mut Failures) -> BoxFuture<'a, Vec<OpOutcome>> {
        let ports = Arc::clone(&self.ports);
        let mut applier = apply::Applier::default();
        Box::pin(self.requests.carry(ops, failures, move |channel, run| applier.run(channel, &lock(&ports), run)))
    }

    fn follow(&self, _: &[Op], _: &[OpOutcome]) {}

    fn settle(&self) -> BoxFuture<'_, ()> {
        nothing()
    }

    fn events(&self) -> Result<Option<BoxStream<'static, Wake>>, KernelError> {
        let groups = carriers::ALL.iter().flat_map(|carrier| carrier.groups()).copied();
        let monitor = Monitor::open(self.requests.port, groups);
        Ok(Some(monitor.map_err(|source| KernelError { what: "notifications", source })?.boxed()))
    }
}
