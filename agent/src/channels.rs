//! What each way of speaking with the store last came to.
//!
//! A watch that was opened long ago goes on telling of changes when the store refuses everything else: a password that was
//! changed, a right that was taken away, a quota that is full. So every way has its own last success and last failure, and
//! health is what each of them says. The watch has its own record: [`flatnet_controlplane::watch::Connection`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flatnet_controlplane::store::StoreError;
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::NetworkName;
use flatnet_model::keys::NetworkKeys;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::report::{refusal_hint, store_hint};

/// How long a way may fail without an answer before it is said, while the store is followed: an election takes 1 to 2 s, a
/// call 3 s at most.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the store's word on this node's identity may take before it is said that it is waited for: it takes milliseconds
/// unless another one's time has to be waited out.
const PENDING: Duration = Duration::from_secs(2);

/// A way of speaking with the store, besides the watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// That this node is alive, said and kept alive.
    Presence,
    /// Claiming a lease.
    Claim,
    /// Changing what a lease held says.
    Publish,
    /// Keeping a lease alive.
    KeepAlive,
    /// Creating the network (`--init`).
    Create,
}

impl Channel {
    /// For metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Presence => "presence",
            Self::Claim => "claim",
            Self::Publish => "publish",
            Self::KeepAlive => "keep_alive",
            Self::Create => "create",
        }
    }

    /// What fails with it, for people.
    fn what(self) -> &'static str {
        match self {
            Self::Presence => "this node cannot say that it is alive",
            Self::Claim => "this node cannot claim its lease",
            Self::Publish => "this node cannot write its new data into its lease",
            Self::KeepAlive => "this node cannot keep its lease alive",
            Self::Create => "the network cannot be created",
        }
    }

    /// The keys that it reads and writes, for whoever gives rights.
    fn keys(self, network: Option<&NetworkKeys>) -> String {
        match network {
            None => flatnet_model::keys::NODES.to_owned(),
            Some(keys) => match self {
                Self::Create => keys.config(),
                _ => format!("{} and {}", keys.subnets(), keys.claims()),
            },
        }
    }
}

/// One way: the last success, and what has gone wrong since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// When the store last did what it was asked.
    pub last_success: Option<Instant>,
    /// What it said, or what happened, since then.
    pub last_error: Option<Trouble>,
    /// Since when the first answer of all is waited for.
    pending: Option<Instant>,
}

/// Failures without a success between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// When they began.
    pub since: Instant,
    /// Whether the store itself said no.
    pub refused: bool,
    /// The latest, in the store's own words.
    pub said: String,
    /// The keys concerned.
    keys: String,
}

impl Health {
    /// What is wrong as of `now`; `followed`: the watch is well, so that nobody else says that the store is away.
    fn problem(&self, channel: Channel, now: Instant, followed: bool) -> Option<Problem> {
        let Some(trouble) = &self.last_error else {
            let pending = self.pending.filter(|since| followed && now.duration_since(*since) >= PENDING)?;
            return Some(Problem::new(
                ProblemCode::PresencePending,
                format!(
                    "another instance has this node's identity in the store; waiting for {} s to see whether it is this machine before a restart, or a copy that lives",
                    now.duration_since(pending).as_secs()
                ),
                "nothing: it takes 17 s at most; a copy of this state directory on another machine ends this agent",
                "presence",
            ));
        };
        let (what, Trouble { said, keys, .. }) = (channel.what(), trouble);
        if trouble.refused {
            return Some(Problem::new(
                ProblemCode::StoreRefuses,
                format!("{what} ({keys}): {said}"),
                refusal_hint(said),
                keys,
            ));
        }
        (followed && now.duration_since(trouble.since) >= PATIENCE).then(|| {
            let hint = format!("the datapath goes on with the last known peers; {}", store_hint(said));
            Problem::new(ProblemCode::StoreUnreachable, format!("{what} ({keys}): {said}"), hint, keys)
        })
    }
}

/// Which way, and of which network; presence is the node's.
pub type Key = (Channel, Option<NetworkName>);

/// All ways of one agent, told by its keepers.
#[derive(Clone, Debug)]
pub struct Channels(Arc<watch::Sender<BTreeMap<Key, Health>>>);

impl Default for Channels {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

impl Channels {
    /// Wakes when something begins or ceases to be wrong.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<Key, Health>> {
        self.0.subscribe()
    }

    /// The store's first answer is waited for.
    pub fn pending(&self, channel: Channel, now: Instant) {
        self.change(channel, None, |health| {
            if health.last_success.is_none() {
                health.pending.get_or_insert(now);
            }
            false
        });
    }

    /// The store did what it was asked, or answered what is no failure of it.
    pub fn succeeded(&self, channel: Channel, network: Option<&NetworkKeys>, now: Instant) {
        self.change(channel, network, |health| {
            let changed = health.last_error.is_some() || health.pending.is_some();
            *health = Health { last_success: Some(now), ..Health::default() };
            changed
        });
    }

    /// It did not.
    pub fn failed(&self, channel: Channel, network: Option<&NetworkKeys>, error: &StoreError, now: Instant) {
        if !error.is_refusal() && !error.can_retry() {
            // That a lease is gone is an answer, and acted on.
            return self.succeeded(channel, network, now);
        }
        self.change(channel, network, |health| {
            let since = health.last_error.as_ref().map_or(now, |trouble| trouble.since);
            let (refused, said, keys) = (error.is_refusal(), error.to_string(), channel.keys(network));
            let trouble = Some(Trouble { since, refused, said, keys });
            let changed = health.last_error != trouble;
            health.last_error = trouble;
            changed
        });
    }

    /// There is nothing to ask: what failed before is not wanted any more.
    pub fn idle(&self, channel: Channel, network: Option<&NetworkKeys>) {
        if self.0.borrow().get(&key(channel, network)).is_some_and(|health| health.last_error.is_some()) {
            self.change(channel, network, |health| health.last_error.take().is_some());
        }
    }

    /// The store is followed again: who got no answer meanwhile has his time anew.
    pub fn store_is_back(&self, network: &NetworkKeys, now: Instant) {
        self.0.send_if_modified(|all| {
            for ((_, of), health) in all.iter_mut() {
                let concerned = of.as_ref().is_none_or(|of| of == network.network());
                if let Some(trouble) = health.last_error.as_mut().filter(|trouble| concerned && !trouble.refused) {
                    trouble.since = now;
                }
            }
            false
        });
    }

    /// What is wrong as of `now`; `followed`: whether the watch of a network, or `None`: any, is well.
    #[must_use]
    pub fn problems(&self, now: Instant, followed: impl Fn(Option<&NetworkName>) -> bool) -> Vec<Problem> {
        let all = self.0.borrow();
        let problem =
            |((channel, network), health): (&Key, &Health)| health.problem(*channel, now, followed(network.as_ref()));
        all.iter().filter_map(problem).collect()
    }

    /// For metrics: way, network, whether its last call went well.
    #[must_use]
    pub fn states(&self) -> Vec<(Channel, Option<NetworkName>, bool)> {
        let all = self.0.borrow();
        all.iter()
            .map(|((channel, network), health)| (*channel, network.clone(), health.last_error.is_none()))
            .collect()
    }

    fn change(&self, channel: Channel, network: Option<&NetworkKeys>, change: impl FnOnce(&mut Health) -> bool) {
        self.0.send_if_modified(|all| change(all.entry(key(channel, network)).or_default()));
    }
}

fn key(channel: Channel, network: Option<&NetworkKeys>) -> Key {
    (channel, network.map(|keys| keys.network().clone()))
}

#[cfg(test)]
mod tests;
