//! How a live network changes its backend: the earlier backends by which this host still receives, and what it
//! publishes meanwhile.
//!
//! Make before break, without anybody in charge:
//!
//! * Each host builds the new backend beside the old one. Only then does it say in its lease that it receives by the
//!   new one, and by the old one besides.
//! * Each host sends to a peer by a backend that the peer says it receives by.
//! * Each host says for how long it still sends to anybody by the old one. The old one goes when no lease says so any
//!   more and none names it as its backend.
//! * A host that is slow, or cut off from the store, is waited for: what it last said still stands in its lease.
//!
//! No host sends by a backend before it has read in its own lease that it does. No host gives a backend up before it
//! has read in its own lease that it has. The store orders the writes: whoever wrote second had read what the first
//! wrote. So hosts may lag, and networks may change back, in any order.

use flatnet_model::{
    BackendConfig, Besides, EARLIER_BACKENDS, Lease, NetworkConfig, NetworkName, NodeId, Publication, WireguardKey,
    earlier_backends,
};

use crate::backend;
use crate::outcome::WayOutcome;
use crate::problem::Problem;
use crate::underlay::Underlay;

/// This host's lease as peers may know it, as far as this host can tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said<'a> {
    /// The lease as this host last read it.
    pub read: Option<&'a Lease>,
    /// The publications that were written since, or may have been.
    pub unread: &'a [Publication],
}

impl Said<'_> {
    /// Returns true if every peer that reads this host's lease knows that this host may send by `backend`.
    #[must_use]
    pub fn sends_by(&self, backend: &BackendConfig) -> bool {
        self.read.is_none_or(|own| own.under(backend).is_some_and(|(_, sends)| sends))
            && self.unread.iter().all(|written| written.sends_by(backend))
    }

    /// Returns true if a peer may still believe that this host receives by `backend`.
    fn receives_by(&self, backend: &BackendConfig) -> bool {
        !self.unread.is_empty() || self.read.is_some_and(|own| own.under(backend).is_some())
    }
}

/// Returns the earlier backends of `config` by which a host that joins receives too. It joins while not all hosts have
/// followed, so some of `leases` still name them.
#[must_use]
pub fn joining(config: &NetworkConfig, leases: &[&Lease]) -> Vec<BackendConfig> {
    let is_sent_by =
        |backend: &BackendConfig| leases.iter().any(|lease| lease.under(backend).is_some_and(|(_, sends)| sends));
    // Only backends that can be beside the configured one: whoever wrote the record by hand may have put anything
    // there.
    let mut before = config.before.iter().filter(|backend| is_sent_by(backend));
    match before.next() {
        Some(first) => earlier_backends(&before.cloned().collect::<Vec<_>>(), first, &config.backend),
        None => Vec::new(),
    }
}

/// Returns the backends of `before` that this host goes on saying it receives by. This follows from what the store says
/// (`own` is this host's lease, `peers` are all others) and from `ways`, the outcome of the last pass. None goes before
/// this host has published the configured one.
#[must_use]
pub fn needed(
    before: &[BackendConfig],
    config: &NetworkConfig,
    own: Option<&Lease>,
    peers: &[&Lease],
    ways: &[WayOutcome],
) -> Vec<BackendConfig> {
    let published = own.is_some_and(|own| own.backend == config.backend.kind() && own.under(&config.backend).is_some());
    let of = |backend: &BackendConfig| ways.iter().find(|way| way.backend == *backend);
    if !published || of(&config.backend).is_none() {
        return before.to_vec();
    }
    let is_needed = |backend: &&BackendConfig| {
        let by_us = of(backend).is_some_and(|way| way.used);
        by_us || peers.iter().any(|peer| peer.under(backend).is_some_and(|(_, sends)| sends))
    };
    before.iter().filter(is_needed).cloned().collect()
}

/// Returns the backends of `before` by which this host still receives: those it goes on announcing (`needed`), and
/// those that a peer may still believe it receives by.
#[must_use]
pub fn kept(before: &[BackendConfig], needed: &[BackendConfig], said: &Said<'_>) -> Vec<BackendConfig> {
    before.iter().filter(|backend| needed.contains(backend) || said.receives_by(backend)).cloned().collect()
}

/// Returns the publication while the network changes. The first of `ready` is its backend, and the others are besides.
/// `ready` are the backends by which this host receives, the configured one first. If there are none, the configured
/// one is published.
pub fn publication(
    node: NodeId,
    key: Option<WireguardKey>,
    name: &NetworkName,
    config: &NetworkConfig,
    underlay: &Underlay,
    ready: &[&WayOutcome],
) -> Result<Publication, Problem> {
    let of = |backend: &BackendConfig| {
        let config = NetworkConfig { backend: backend.clone(), ..config.clone() };
        backend::publication(node, key, name, &config, underlay)
    };
    let Some((first, others)) = ready.split_first() else { return of(&config.backend) };
    let mut publication = of(&first.backend)?;
    for way in others.iter().take(EARLIER_BACKENDS) {
        let besides = of(&way.backend)?;
        // An address that only the other backend needs.
        publication.public_ip = publication.public_ip.or(besides.public_ip);
        publication.public_ipv6 = publication.public_ipv6.or(besides.public_ipv6);
        publication.besides.push(Besides {
            backend: besides.backend,
            data: besides.data,
            data_v6: besides.data_v6,
            used: way.used,
        });
    }
    Ok(publication)
}

#[cfg(test)]
mod tests;
