//! How a live network changes its backend. All that is particular to that is here: the earlier backends by which this
//! host still receives, what it publishes meanwhile, and by which backend it sends to whom (`ways`).
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
//!
//! Others keep a [`Change`] with what they hold, hand its [`Stage`] to what is decided about the network, and see the
//! outcome as a list of ways. A network that does not change has an empty one of either.

pub(crate) mod ways;

use flatnet_model::{
    BackendConfig, Besides, EARLIER_BACKENDS, Lease, NetworkConfig, NetworkName, NodeId, Publication, earlier_backends,
};

use crate::backend::{self, PublicKey};
use crate::outcome::WayOutcome;
use crate::problem::Problem;
use crate::underlay::Underlay;

/// A change of a network's backend, as far as this host has come in it. Empty: the network does not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Earlier backends by which this host still receives, the latest first.
    earlier: Vec<BackendConfig>,
    /// Publications that were, or may have been, written into the lease since it was last read.
    unread: Vec<Publication>,
}

impl Change {
    /// Returns the change of a host that receives by the backends `earlier` too, the latest first, and has written
    /// nothing yet.
    #[must_use]
    pub fn among(earlier: Vec<BackendConfig>) -> Self {
        Self { earlier, unread: Vec::new() }
    }

    /// Returns the change of a host that joins. It does so while not all hosts have followed, so some of `leases` still
    /// name earlier backends of `config`.
    #[must_use]
    pub fn joining(config: &NetworkConfig, leases: &[&Lease]) -> Self {
        Self::among(joining(config, leases))
    }

    /// Returns the change after the network's backend was `old` and is `new`.
    #[must_use]
    pub fn turned(self, old: &BackendConfig, new: &BackendConfig) -> Self {
        Self { earlier: earlier_backends(&self.earlier, old, new), unread: self.unread }
    }

    /// Returns the change without those earlier backends that are not among `needed` and that no peer can still
    /// believe this host receives by. `read`: this host's lease as it last read it.
    #[must_use]
    pub fn without_done(self, needed: &[BackendConfig], read: Option<&Lease>) -> Self {
        let earlier = kept(&self.earlier, needed, &Said { read, unread: &self.unread });
        Self { earlier, unread: self.unread }
    }

    /// Returns the earlier backends by which this host still receives, the latest first.
    #[must_use]
    pub fn earlier(&self) -> &[BackendConfig] {
        &self.earlier
    }

    /// Takes note of a publication that is about to be written into the lease. Until it is read back, peers may know it
    /// or not. Returns false if there is nothing to be careful about, since there is only one way.
    pub fn writing(&mut self, publication: &Publication) -> bool {
        if self.earlier.is_empty() && publication.besides.is_empty() {
            return false;
        }
        if !self.unread.contains(publication) {
            self.unread.push(publication.clone());
        }
        true
    }

    /// Forgets what was to be written: either it was not written, or it has been read. Returns false if there was
    /// nothing.
    pub fn nothing_unread(&mut self) -> bool {
        !std::mem::take(&mut self.unread).is_empty()
    }

    /// Returns the stage of the change. `read`: this host's lease as it last read it.
    #[must_use]
    pub fn stage<'a>(&'a self, read: Option<&'a Lease>) -> Stage<'a> {
        Stage { earlier: &self.earlier, said: Said { read, unread: &self.unread } }
    }
}

/// The stage that this host is at in the change of a network: what it receives by, and what peers may know of that.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stage<'a> {
    earlier: &'a [BackendConfig],
    said: Said<'a>,
}

impl Stage<'_> {
    /// Returns the configurations that the network has on this host: `config`, and the earlier ones.
    pub(crate) fn configs(&self, config: &NetworkConfig) -> Vec<NetworkConfig> {
        let backends = std::iter::once(&config.backend).chain(self.earlier);
        backends.map(|backend| NetworkConfig { backend: backend.clone(), ..config.clone() }).collect()
    }

    /// Returns the earlier backends that have room. `has_room` is asked for each, with the configurations that it would
    /// be beside, that of the network among them.
    pub(crate) fn with_room(
        &self,
        config: &NetworkConfig,
        has_room: impl Fn(&NetworkConfig, &[NetworkConfig]) -> bool,
    ) -> Vec<BackendConfig> {
        let mut kept: Vec<NetworkConfig> = Vec::new();
        for candidate in self.configs(config) {
            if kept.is_empty() || has_room(&candidate, &kept) {
                kept.push(candidate);
            }
        }
        kept.into_iter().skip(1).map(|config| config.backend).collect()
    }
}

/// This host's lease as peers may know it, as far as this host can tell.
#[derive(Clone, Copy, Debug, Default)]
struct Said<'a> {
    /// The lease as this host last read it.
    read: Option<&'a Lease>,
    /// The publications that were written since, or may have been.
    unread: &'a [Publication],
}

impl Said<'_> {
    /// Returns true if every peer that reads this host's lease knows that this host may send by `backend`.
    fn sends_by(&self, backend: &BackendConfig) -> bool {
        self.read.is_none_or(|own| own.under(backend).is_some_and(|(_, sends)| sends))
            && self.unread.iter().all(|written| written.sends_by(backend))
    }

    /// Returns true if a peer may still believe that this host receives by `backend`.
    fn receives_by(&self, backend: &BackendConfig) -> bool {
        !self.unread.is_empty() || self.read.is_some_and(|own| own.under(backend).is_some())
    }
}

/// Returns the earlier backends of `config` by which a host that joins receives too.
fn joining(config: &NetworkConfig, leases: &[&Lease]) -> Vec<BackendConfig> {
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
fn kept(before: &[BackendConfig], needed: &[BackendConfig], said: &Said<'_>) -> Vec<BackendConfig> {
    before.iter().filter(|backend| needed.contains(backend) || said.receives_by(backend)).cloned().collect()
}

/// Returns the backends by which this host says it receives, that of `config` first: those of `ways`, the outcome of
/// the last pass, that are there (`is_there`) and not done with. Of the others only earlier ones that are `needed` are
/// not: what the last pass still had and this host has given up since is about to go.
pub fn ready<'o>(
    config: &NetworkConfig,
    change: &Change,
    needed: &[BackendConfig],
    ways: impl IntoIterator<Item = &'o WayOutcome>,
    is_there: impl Fn(&WayOutcome) -> bool,
) -> Vec<&'o WayOutcome> {
    let stays = |backend: &BackendConfig| {
        *backend == config.backend || (change.earlier.contains(backend) && needed.contains(backend))
    };
    let mut ready: Vec<&WayOutcome> = ways.into_iter().filter(|way| is_there(way) && stays(&way.backend)).collect();
    ready.sort_by_key(|way| way.backend != config.backend);
    ready
}

/// Returns the publication while the network changes. The first of `ready` is its backend, and the others are besides.
/// `ready` are the backends by which this host receives, the configured one first. If there are none, the configured
/// one is published.
pub fn publication(
    node: NodeId,
    key: Option<PublicKey>,
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
