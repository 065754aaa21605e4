//! [`NetlinkKernel`]: the kernel of the network namespace in which it was opened.

mod apply;
mod carriers;
mod dump;
mod facts;
mod gre_probe;
mod links;
mod port_holder;
mod ports;
mod way;
mod wireguard;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flatnet_core::facts::{GreSupport, HostFacts};
use flatnet_core::object::Dump;
use flatnet_core::op::{ObjectKind, Op, OpOutcome};
use flatnet_core::way::{Detour, WayQuery};
use flatnet_model::IpFamily;
use futures::Stream;

use crate::dependency::{self, Failures};
use crate::firewall::{Firewall, RulesetRefused};
use crate::netlink::monitor::Monitor;
use crate::netlink::socket::{Channel, Refusal};
use crate::userspace::Userspace;
use crate::wireguard::Keyring;
use crate::{Facts, Kernel, KernelError, Questions, Scope, Wake};
use gre_probe::GreProbe;
use ports::Ports;

/// The kernel over rtnetlink and nftables.
///
/// Open it, and build the runtime that drives it, with every thread in the one network namespace: its sockets stay in
/// the namespace they were opened in, but settings (`/proc/sys/net`) belong to that of whichever thread reads them.
///
/// Cancellation: netlink work runs on a blocking thread. Dropping the future of `apply` does not stop a run of
/// operations that has begun. The run goes to its end while the socket's lock is held, so a later `dump` sees all of
/// it. Operations that have not begun are not carried out.
pub struct NetlinkKernel {
    channel: Arc<Mutex<Channel>>,
    userspace: Arc<Mutex<Userspace>>,
    ports: Arc<Mutex<Ports>>,
    gre: Arc<Mutex<GreProbe>>,
    port: u32,
    firewall: Firewall,
    wireguard: Arc<wireguard::Wireguard>,
}

impl NetlinkKernel {
    /// Opens the kernel of the calling thread's network namespace.
    pub fn new() -> io::Result<Self> {
        Self::with_memory(None)
    }

    /// Opens the kernel with a file (in the run directory) that remembers over a restart which ruleset is loaded, so
    /// that an agent that starts again need not swap it.
    pub fn with_memory(memory: Option<PathBuf>) -> io::Result<Self> {
        Self::with_keys(memory, Keyring::default())
    }

    /// Opens the kernel as [`Self::with_memory`] does, with the private keys that WireGuard devices are given.
    pub fn with_keys(memory: Option<PathBuf>, keys: Keyring) -> io::Result<Self> {
        let channel = Channel::open()?;
        let firewall = Firewall::with_memory(memory)?;
        let wireguard = Arc::new(wireguard::Wireguard::new(keys));
        Ok(Self {
            port: channel.port(),
            channel: Arc::new(Mutex::new(channel)),
            userspace: Arc::default(),
            ports: Arc::default(),
            gre: Arc::default(),
            firewall,
            wireguard,
        })
    }

    /// Keeps this process from ever carrying GRE in the kernel's place.
    #[must_use]
    pub fn without_userspace(self) -> Self {
        lock(&self.gre).refuse_userspace();
        self
    }

    /// Checks that nft and the kernel accept the firewall of any network over any of `families`. Nothing is changed.
    pub async fn check_firewall(&self, families: &[IpFamily]) -> Result<(), RulesetRefused> {
        let (ruleset, elements) = flatnet_core::firewall::specimen(families);
        let elements: Vec<_> = elements.into_iter().collect();
        self.firewall.check(&ruleset, &elements).await
    }

    /// Runs `work` with the request socket on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Channel) -> T + Send + 'static,
    ) -> io::Result<T> {
        let channel = Arc::clone(&self.channel);
        tokio::task::spawn_blocking(move || work(&mut lock(&channel))).await.map_err(io::Error::other)
    }

    /// Looks at the host itself, and at its routes to `route_to`.
    async fn host(&self, route_to: &[IpAddr]) -> Result<HostFacts, KernelError> {
        let wanted = route_to.to_vec();
        let wireguard = Arc::clone(&self.wireguard);
        let looked = self.blocking(move |channel| {
            let mut facts = facts::facts(channel, &wanted)?;
            facts.features.wireguard = wireguard.datapath(channel);
            Ok(facts)
        });
        let looked = looked.await;
        let mut facts = looked.map_err(|source| KernelError { what: "interfaces and routes", source })??;
        facts.dropping_chains = self.firewall.dropping_chains().await?;
        Ok(facts)
    }

    async fn detours(&self, ways: &[WayQuery]) -> Result<Vec<Detour>, KernelError> {
        let ways = ways.to_vec();
        let asked = self.blocking(move |channel| way::detours(channel, &ways)).await;
        asked.and_then(|found| found).map_err(|source| KernelError { what: "routes to peers", source })
    }

    /// Carries out operations that need no firewall.
    async fn apply_netlink(&self, ops: &[Op], failures: &mut Failures) -> Vec<OpOutcome> {
        let (owned, before) = (ops.to_vec(), failures.clone());
        let (wireguard, userspace) = (Arc::clone(&self.wireguard), Arc::clone(&self.userspace));
        let ports = Arc::clone(&self.ports);
        let done = self.blocking(move |channel| {
            let mut userspace = lock(&userspace);
            let (outcomes, after) =
                apply::Applier::new(channel, &wireguard, &mut userspace, &lock(&ports), before).apply(&owned);
            userspace.follow(&owned, &outcomes);
            (outcomes, after)
        });
        match done.await {
            Ok((outcomes, after)) => {
                *failures = after;
                lock(&self.gre).applied(ops, &outcomes);
                outcomes
            }
            Err(error) => {
                let refusal = Refusal::from(error);
                let refused = failures.tried(ops).into_iter().map(|op| apply::failed(op, &refusal));
                failures.settle(ops, refused.collect::<Vec<_>>())
            }
        }
    }

    /// Carries out operations on the firewall.
    async fn apply_firewall(&self, ops: &[Op], failures: &mut Failures) -> Vec<OpOutcome> {
        let mut outcomes = Vec::with_capacity(ops.len());
        for run in dependency::runs(ops) {
            let of_tried = self.firewall.apply(&failures.tried(run)).await;
            outcomes.extend(failures.settle(run, of_tried));
        }
        outcomes
    }
}

/// Locks. A lock whose holder panicked is still good: a request socket skips answers that are not to its latest
/// request, and every dump compares what is known of user space with the kernel.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns true if the firewall carries out such operations.
fn is_firewall(op: &Op) -> bool {
    matches!(op.object.kind(), ObjectKind::Ruleset | ObjectKind::PeerSource | ObjectKind::Iptables)
}

impl Kernel for NetlinkKernel {
    async fn facts(&self, asked: &Questions) -> Result<Facts, KernelError> {
        let mut facts = Facts::default();
        if let Some(route_to) = &asked.host {
            facts.host = self.host(route_to).await?;
        }
        if asked.gre {
            let probe = Arc::clone(&self.gre);
            let look = move |channel: &mut Channel| {
                let mut probe = lock(&probe);
                GreSupport { v4: probe.look(channel, IpFamily::V4), v6: probe.look(channel, IpFamily::V6) }
            };
            facts.host.features.gre = self.blocking(look).await.unwrap_or_default();
        }
        if asked.drops {
            facts.drops = self.firewall.drops().await?;
        }
        if asked.sightings {
            facts.sightings = self.firewall.sightings().await?;
        }
        if !asked.ways.is_empty() {
            facts.detours = self.detours(&asked.ways).await?;
        }
        Ok(facts)
    }

    async fn dump(&self, scope: &Scope) -> Result<Dump, KernelError> {
        let wanted = scope.clone();
        let (wireguard, userspace) = (Arc::clone(&self.wireguard), Arc::clone(&self.userspace));
        let ports = Arc::clone(&self.ports);
        let read = self.blocking(move |channel| {
            let mut dump = dump::dump(channel, &mut lock(&userspace), &mut lock(&ports), &wanted)?;
            wireguard.dump(channel, &mut dump.state, wanted.ours);
            Ok(dump)
        });
        let read = read.await;
        let mut dump = read.map_err(|source| KernelError { what: "objects", source })??;
        self.firewall.dump(scope, &mut dump.state).await?;
        scope.narrow(&mut dump);
        Ok(dump)
    }

    async fn apply(&self, ops: &[Op]) -> Vec<OpOutcome> {
        let mut failures = Failures::default();
        let mut outcomes = Vec::with_capacity(ops.len());
        for run in ops.chunk_by(|a, b| is_firewall(a) == is_firewall(b)) {
            if run.first().is_some_and(is_firewall) {
                outcomes.extend(self.apply_firewall(run, &mut failures).await);
            } else {
                outcomes.extend(self.apply_netlink(run, &mut failures).await);
            }
        }
        self.firewall.settle().await;
        outcomes
    }

    fn events(&self) -> Result<impl Stream<Item = Wake> + Send + Unpin + 'static, KernelError> {
        let groups = carriers::ALL.iter().flat_map(|carrier| carrier.groups()).copied();
        let netlink =
            Monitor::open(self.port, groups).map_err(|source| KernelError { what: "notifications", source })?;
        let others = futures::stream::select(self.firewall.events()?, wireguard::events(&self.wireguard));
        Ok(futures::stream::select(netlink, others))
    }
}
