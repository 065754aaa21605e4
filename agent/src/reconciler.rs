//! The loop that makes the kernel equal to what the store says. While an agent runs, it alone calls [`Kernel::apply`].
//!
//! Level-triggered: a wake carries no data. A *full* pass looks at the host and dumps the kernel. A *quick* pass, taken
//! when only the store changed, starts from what the last pass left behind, so that a new peer is reachable within
//! milliseconds however many there are. A full pass half a second later checks what a quick pass did.
//!
//! The daemon owns it for the life of the process. Dropping the future between two awaits is safe: the next agent
//! starts from a dump.

mod departed;
mod pace;
mod pass;
mod wanted;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use flatnet_core::facts::HostFacts;
use flatnet_core::firewall::FirewallNetwork;
use flatnet_core::object::Dump;
use flatnet_core::op::{ObjectKey, Op};
use flatnet_core::underlay::Underlay;
use flatnet_kernel::{Kernel, KernelError, Scope, Wake};
use flatnet_model::IfName;
use futures::StreamExt;
use futures::future::select_all;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use pace::Pace;

use crate::files::sysctl_record::SysctlRecord;
use crate::files::underlay_record::UnderlayRecord;
use crate::files::wireguard_key::WireguardIdentity;
use crate::report::chain;
use crate::wiring::context::Context;
use crate::wiring::host_options::HostOptions;
use crate::wiring::metrics::Metrics;
use crate::wiring::networks::NetworkPort;
use crate::wiring::outcome::Outcome;
use crate::wiring::part::Changed;

/// A question to the loop: what would the next full pass change?
pub type PlanRequest = oneshot::Sender<Result<Vec<Op>, PlanError>>;

/// The reason why nobody can say what the next pass would change.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The kernel cannot be read.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The loop has ended.
    #[error("the agent is stopping")]
    Stopping,
}

/// The two ways in which a pass gets to know the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// By reading the host's facts and dumping the kernel.
    Full,
    /// From what the last pass left.
    Quick,
}

/// A dump with every operation since folded in.
struct Known {
    dump: Dump,
    /// The objects that the dump looked at.
    scope: Scope,
    /// The keys at which the kernel may hold anything, as a change there did not succeed.
    unsure: BTreeSet<ObjectKey>,
    /// True if an attempt to read the kernel has failed since.
    stale: bool,
}

impl Known {
    /// Returns true if a pass may decide from it without another look.
    fn is_sure(&self) -> bool {
        self.unsure.is_empty() && !self.stale
    }
}

/// The loop's state.
pub struct Reconciler<K> {
    kernel: Arc<K>,
    host: HostOptions,
    ports: Vec<NetworkPort>,
    /// The joined networks, from which `ports` is taken.
    networks: watch::Receiver<Vec<NetworkPort>>,
    /// The tunnel devices of networks that were left.
    departed: BTreeSet<IfName>,
    outcome: watch::Sender<Outcome>,
    metrics: Arc<Metrics>,
    sysctls: SysctlRecord,
    /// Settings that cannot be written here and can be done without.
    unwritable: BTreeSet<ObjectKey>,
    /// The key with which this host's tunnels encrypt.
    key: WireguardIdentity,
    /// The kernel as the last pass left it; `None` when no pass came to its end.
    known: Option<Known>,
    facts: HostFacts,
    /// True if the facts tell who carries the tunnels of which not every kernel has the module.
    carriers_known: bool,
    /// Each network's part of the guard, as it was programmed last.
    guards: Vec<FirewallNetwork>,
    /// The last underlay found. It is kept while a look finds none.
    underlay: Option<Underlay>,
    underlay_record: UnderlayRecord,
    /// The store's addresses. Its name may be resolved only later.
    store: watch::Receiver<Vec<IpAddr>>,
    pace: Pace,
}

impl<K: Kernel> Reconciler<K> {
    /// Creates a loop that has not looked yet. The addresses of the store are followed; those in the options of the
    /// host are not used.
    pub fn new<P>(context: &Context<P, K>, outcome: watch::Sender<Outcome>) -> Self {
        let setup = &context.setup;
        let (mut host, mut store) = (setup.host.clone(), setup.store_at.clone());
        host.selection.store.clone_from(&store.borrow_and_update());
        let mut networks = context.networks.clone();
        let ports = networks.borrow_and_update().clone();
        Self {
            kernel: Arc::clone(&setup.kernel),
            host,
            ports,
            networks,
            departed: BTreeSet::new(),
            outcome,
            metrics: Arc::clone(&context.metrics),
            sysctls: setup.sysctls.clone(),
            unwritable: BTreeSet::new(),
            key: setup.wireguard.clone(),
            known: None,
            facts: HostFacts::default(),
            carriers_known: false,
            guards: Vec::new(),
            underlay: None,
            underlay_record: setup.underlay.clone(),
            store,
            pace: Pace::new(Instant::now()),
        }
    }

    /// Runs for ever.
    pub async fn run(mut self, mut plans: mpsc::Receiver<PlanRequest>) {
        let mut events = self.subscribe();
        let mut keys = self.key.changes();
        loop {
            let due = self.pace.due();
            // In this order: what is due has a pause of its own after it, people ask rarely, and neither a busy store
            // nor a busy kernel may keep the others out.
            tokio::select! {
                biased;
                () = sleep_until(due) => self.pass(Look::Full).await,
                () = sleep_until(self.pace.glance()) => self.glance().await,
                // A sender that is gone has nothing more to say.
                Ok(()) = self.store.changed() => {
                    self.host.selection.store.clone_from(&self.store.borrow_and_update());
                    self.pace.kernel_changed(Instant::now());
                }
                Ok(()) = self.host.endpoints.changed() => self.pace.kernel_changed(Instant::now()),
                Some(reply) = plans.recv() => {
                    // Whoever asked may have gone away.
                    let _ = reply.send(self.plan().await.map_err(PlanError::Kernel));
                }
                // The sender is kept in `self`: it goes away only with the loop.
                Ok(()) = keys.changed() => self.pass(Look::Quick).await,
                Ok(()) = self.networks.changed() => {
                    self.take_networks();
                    self.pass(Look::Quick).await;
                }
                () = changed(&mut self.ports) => self.pass(Look::Quick).await,
                wake = next(&mut events) => match wake {
                    Some(_) => self.pace.kernel_changed(Instant::now()),
                    // Notifications broke (a full socket buffer is a wake, not this): subscribe anew and look.
                    None => {
                        events = self.subscribe();
                        self.pace.kernel_changed(Instant::now());
                    }
                },
            }
        }
    }

    /// Takes over the networks that are joined now. What is known of those that stay is kept.
    fn take_networks(&mut self) {
        let joined = self.networks.borrow_and_update().clone();
        let mut known = std::mem::take(&mut self.ports);
        for port in joined {
            let same = known.iter().position(|known| known.view.same_channel(&port.view));
            self.ports.push(same.map_or(port, |at| known.remove(at)));
        }
        let outcome = self.outcome.borrow();
        let left = outcome.networks.iter().filter(|network| known.iter().any(|port| port.name == network.name));
        let devices = left.flat_map(|network| network.ways.iter().flat_map(|way| &way.devices));
        self.departed.extend(devices.copied());
    }

    fn subscribe(&self) -> Option<Events> {
        match self.kernel.events() {
            Ok(events) => Some(Box::new(events)),
            Err(error) => {
                // The periodic full pass still finds every change.
                tracing::warn!(error = chain(&error), "kernel notifications are not to be had; looking periodically");
                None
            }
        }
    }
}

type Events = Box<dyn futures::Stream<Item = Wake> + Send + Unpin>;

async fn next(events: &mut Option<Events>) -> Option<Wake> {
    match events {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until the store or the lease of any network changed.
async fn changed(ports: &mut [NetworkPort]) {
    let waits = ports.iter_mut().flat_map(|port| [&mut port.view as &mut dyn Changed, &mut port.holding]);
    let waits: Vec<_> = waits.map(|wait| Box::pin(news(wait))).collect();
    if waits.is_empty() {
        std::future::pending::<()>().await;
    }
    select_all(waits).await;
}

/// Waits for a new value. There is none from a network whose parts were stopped.
async fn news(receiver: &mut dyn Changed) {
    if !receiver.changed().await {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
