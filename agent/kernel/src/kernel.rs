//! [`NetlinkKernel`]: the kernel of the network namespace in which it was opened, as the sum of its providers.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use flatnet_core::object::Dump;
use flatnet_core::op::{Op, OpOutcome};
use flatnet_model::IpFamily;
use futures::future::ready;
use futures::stream::{self, BoxStream, select_all};
use futures::{Stream, StreamExt};

use crate::dependency::Failures;
use crate::gre::{Gre, GreProbe};
use crate::iptables::Iptables;
use crate::nft::{self, Nft, RulesetRefused};
use crate::provider::Provider;
use crate::rtnetlink::{Requests, Rtnetlink, lock};
use crate::wireguard::{Keyring, Wireguard};
use crate::{Facts, Kernel, KernelError, Questions, Scope, Wake};

/// The kernel over rtnetlink and nftables.
///
/// Open it, and build the runtime that drives it, with every thread in the one network namespace: its sockets stay in
/// the namespace they were opened in, but settings (`/proc/sys/net`) belong to that of whichever thread reads them.
///
/// Cancellation: netlink work runs on a blocking thread. Dropping the future of `apply` does not stop a run of
/// operations that has begun. The run goes to its end while the socket's lock is held, so a later `dump` sees all of
/// it. Operations that have not begun are not carried out.
pub struct NetlinkKernel {
    /// In the order in which they look. Each adds to what the ones before it found: GRE in user space follows the
    /// routes.
    providers: Vec<Box<dyn Provider>>,
    gre: Arc<Mutex<GreProbe>>,
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
        let requests = Requests::open()?;
        let nft = Nft::open(memory)?;
        let gre = Gre::new(requests.clone());
        let iptables = Iptables::new(nft.requests());
        Ok(Self {
            gre: gre.probe(),
            providers: vec![
                Box::new(Rtnetlink::new(requests.clone())),
                Box::new(gre),
                Box::new(Wireguard::new(requests, keys)),
                Box::new(nft),
                Box::new(iptables),
            ],
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
        nft::check(&ruleset, &elements).await
    }

    /// Returns the place of the provider that carries out `op`.
    fn place(&self, op: &Op) -> Option<usize> {
        self.providers.iter().position(|provider| provider.carries(&op.object))
    }
}

impl Kernel for NetlinkKernel {
    async fn facts(&self, asked: &Questions) -> Result<Facts, KernelError> {
        let mut facts = Facts::default();
        for provider in &self.providers {
            provider.facts(asked, &mut facts).await?;
        }
        Ok(facts)
    }

    async fn dump(&self, scope: &Scope) -> Result<Dump, KernelError> {
        let mut dump = Dump::default();
        for provider in &self.providers {
            provider.dump(scope, &mut dump).await?;
        }
        scope.narrow(&mut dump);
        Ok(dump)
    }

    async fn apply(&self, ops: &[Op]) -> Vec<OpOutcome> {
        let mut failures = Failures::default();
        let mut outcomes = Vec::with_capacity(ops.len());
        for run in ops.chunk_by(|a, b| self.place(a) == self.place(b)) {
            let provider = run.first().and_then(|op| self.providers.get(self.place(op)?));
            let done = match provider {
                Some(provider) => provider.apply(run, ops, &mut failures).await,
                // There is no object that nobody carries.
                None => failures.settle(run, []),
            };
            self.providers.iter().for_each(|provider| provider.follow(run, &done));
            outcomes.extend(done);
        }
        for provider in &self.providers {
            provider.settle().await;
        }
        outcomes
    }

    fn events(&self) -> Result<impl Stream<Item = Wake> + Send + Unpin + 'static, KernelError> {
        let streams: Result<Vec<_>, KernelError> =
            self.providers.iter().filter_map(|provider| provider.events().transpose()).collect();
        Ok(until_one_ends(streams?))
    }
}

/// Returns what all of `streams` yield, until the first of them ends: with the others alone something would be missed.
fn until_one_ends(streams: Vec<BoxStream<'static, Wake>>) -> BoxStream<'static, Wake> {
    let ending = streams.into_iter().map(|stream| stream.map(Some).chain(stream::once(ready(None))).boxed());
    select_all(ending).take_while(|wake| ready(wake.is_some())).filter_map(ready).boxed()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn notices_end_as_soon_as_one_source_does_so_that_they_are_opened_again() {
        let endless = || stream::once(ready(Wake::Netlink)).chain(stream::pending()).boxed();
        let mut going = until_one_ends(vec![endless(), endless()]);
        assert_eq!(going.next().now_or_never(), Some(Some(Wake::Netlink)));
        assert_eq!(going.next().now_or_never(), Some(Some(Wake::Netlink)));
        assert_eq!(going.next().now_or_never(), None, "it waits");
        let broken = stream::once(ready(Wake::Firewall)).boxed();
        let ended = until_one_ends(vec![endless(), broken]).collect::<Vec<_>>().now_or_never().unwrap();
        assert!(ended.contains(&Wake::Firewall), "{ended:?}");
    }
}
