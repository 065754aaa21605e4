//! The health of each way of speaking with the store: what it last came to.
//!
//! A watch that was opened long ago goes on telling of changes when the store refuses everything else, for example
//! because a password was changed, a right was taken away, or a quota is full. So every way has its own last success
//! and last failure, and health is what each of them says. The watch has its own record:
//! [`flatnet_plane::watch::Connection`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::NetworkName;
use flatnet_model::keys::NetworkKeys;
use flatnet_plane::store::StoreError;
use flatnet_plane::watch::Connection;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::report::{refusal_hint, store_hint};
use crate::wiring::metrics::Gauges;
use crate::wiring::networks::NetworkPort;
use crate::wiring::part::{Changed, Report};

/// The time that a way may fail without an answer, while the store is followed, before that is reported. An election
/// takes 1 to 2 s, a call 3 s at most.
const SILENCE_REPORTED_AFTER: Duration = Duration::from_secs(3);
/// The time that the store's word on this node's identity may take before the wait is reported. It takes milliseconds,
/// unless the presence of another instance has to run out first.
const PENDING_REPORTED_AFTER: Duration = Duration::from_secs(2);

/// A way of speaking with the store, besides the watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Saying that this node is alive, and keeping that alive.
    Presence,
    /// Claiming a lease.
    Claim,
    /// Changing the content of a lease held.
    Publish,
    /// Keeping a lease alive.
    KeepAlive,
    /// Creating the network (`--init`).
    Create,
}

impl Channel {
    /// Returns the label for metrics.
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

    /// Returns what fails with this way, for people.
    fn what(self) -> &'static str {
        match self {
            Self::Presence => "this node cannot say that it is alive",
            Self::Claim => "this node cannot claim its lease",
            Self::Publish => "this node cannot write its new data into its lease",
            Self::KeepAlive => "this node cannot keep its lease alive",
            Self::Create => "the network cannot be created",
        }
    }

    /// Returns the keys that this way reads and writes, for whoever grants rights.
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

/// The health of one way: its last success, and what has gone wrong since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The time at which the store last did what it was asked.
    pub last_success: Option<Instant>,
    /// The failures since then: what the store said, or what happened.
    pub last_error: Option<Trouble>,
    /// The time since which the very first answer has been waited for.
    pending: Option<Instant>,
}

/// A series of failures without a success between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The time of the first failure.
    pub since: Instant,
    /// True if the store itself refused.
    pub refused: bool,
    /// The latest failure, in the store's own words.
    pub said: String,
    /// The keys concerned.
    keys: String,
}

impl Health {
    /// Returns the problem as of `now`. `followed`: the watch is well, so that nobody else reports that the store is
    /// away.
    fn problem(&self, channel: Channel, now: Instant, followed: bool) -> Option<Problem> {
        let Some(trouble) = &self.last_error else {
            let pending =
                self.pending.filter(|since| followed && now.duration_since(*since) >= PENDING_REPORTED_AFTER)?;
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
        (followed && now.duration_since(trouble.since) >= SILENCE_REPORTED_AFTER).then(|| {
            let hint = format!("the datapath goes on with the last known peers; {}", store_hint(said));
            Problem::new(ProblemCode::StoreUnreachable, format!("{what} ({keys}): {said}"), hint, keys)
        })
    }
}

/// The way, and the network it concerns; `None` for presence, which is the node's.
pub type Key = (Channel, Option<NetworkName>);

/// The health of all ways of one agent, as its keepers report it.
#[derive(Clone, Debug)]
pub struct Channels(Arc<watch::Sender<BTreeMap<Key, Health>>>);

impl Default for Channels {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

impl Channels {
    /// Returns a receiver that wakes when something begins or ceases to be wrong.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<Key, Health>> {
        self.0.subscribe()
    }

    /// Records that the store's first answer is being waited for.
    pub fn pending(&self, channel: Channel, now: Instant) {
        self.change(channel, None, |health| {
            if health.last_success.is_none() {
                health.pending.get_or_insert(now);
            }
            false
        });
    }

    /// Records that the store did what it was asked, or gave an answer that is no failure of the store.
    pub fn succeeded(&self, channel: Channel, network: Option<&NetworkKeys>, now: Instant) {
        self.change(channel, network, |health| {
            let changed = health.last_error.is_some() || health.pending.is_some();
            *health = Health { last_success: Some(now), ..Health::default() };
            changed
        });
    }

    /// Records that the store did not do what it was asked.
    pub fn failed(&self, channel: Channel, network: Option<&NetworkKeys>, error: &StoreError, now: Instant) {
        if !error.is_refusal() && !error.can_retry() {
            // A lease that is gone is an answer, and acted on.
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

    /// Records that there is nothing to ask: what failed before is not wanted any more.
    pub fn idle(&self, channel: Channel, network: Option<&NetworkKeys>) {
        if self.0.borrow().get(&key(channel, network)).is_some_and(|health| health.last_error.is_some()) {
            self.change(channel, network, |health| health.last_error.take().is_some());
        }
    }

    /// Forgets the ways of a network that was left.
    pub fn forget(&self, network: &NetworkName) {
        self.0.send_if_modified(|all| {
            let before = all.len();
            all.retain(|(_, of), _| of.as_ref() != Some(network));
            all.len() != before
        });
    }

    /// Records that the store is followed again: whoever got no answer meanwhile has the full time again.
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

    /// Returns the problems as of `now`. `followed`: tells whether the watch of a network, or with `None` of any
    /// network, is well.
    #[must_use]
    pub fn problems(&self, now: Instant, followed: impl Fn(Option<&NetworkName>) -> bool) -> Vec<Problem> {
        let all = self.0.borrow();
        let problem =
            |((channel, network), health): (&Key, &Health)| health.problem(*channel, now, followed(network.as_ref()));
        all.iter().filter_map(problem).collect()
    }

    /// Returns for metrics: the way, its network, and true if its last call went well.
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

/// The report of all ways to the store.
pub struct ChannelReport {
    /// The ways.
    pub channels: Channels,
    /// The joined networks, whose watch says whether the store is there at all.
    pub networks: watch::Receiver<Vec<NetworkPort>>,
}

impl Report for ChannelReport {
    fn problems(&self, now: Instant) -> Vec<Problem> {
        let ports = self.networks.borrow();
        let is_followed = |port: &NetworkPort| port.view.borrow().connection == Connection::Connected;
        let followed = |network: Option<&NetworkName>| {
            ports.iter().any(|port| network.is_none_or(|name| *name == port.name) && is_followed(port))
        };
        self.channels.problems(now, followed)
    }

    fn gauges(&self, gauges: &mut Gauges) {
        let network = |name: Option<NetworkName>| name.map(|name| name.to_string()).unwrap_or_default();
        let states = self.channels.states().into_iter();
        gauges.channels.extend(states.map(|(channel, name, is_well)| (channel.as_str(), network(name), is_well)));
    }

    fn changes(&self) -> Vec<Box<dyn Changed>> {
        vec![Box::new(self.channels.subscribe())]
    }
}

fn key(channel: Channel, network: Option<&NetworkKeys>) -> Key {
    (channel, network.map(|keys| keys.network().clone()))
}

#[cfg(test)]
mod tests;
