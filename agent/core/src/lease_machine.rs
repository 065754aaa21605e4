//! The life of this host's lease in one network, without I/O: what is known and what time it is go in, the next action
//! comes out. The agent's lease keeper owns one per network, carries the actions out one at a time and tells what became
//! of each. Dropping it loses nothing: the next run finds its lease in the store by its identity.
//!
//! ```text
//! Starting ──acquired──▶ Held ──gone──▶ Lost ──acquired──▶ Held
//!                          └──another has it──▶ TakenByOther ──gone──▶ Lost
//! ```
//!
//! A lost lease is claimed again at once and by the same subnets: containers use them. A lease is never lost *here*: as
//! long as the store cannot be asked, it stays Held, and the datapath with it.

use std::time::Duration;

use flatnet_model::{Publication, Revision, SubnetKey};

/// Where the lease stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Not acquired in this run.
    Starting,
    /// Ours.
    Held(Held),
    /// Was ours, and its key is gone.
    Lost {
        /// The subnets, to be claimed again.
        subnets: SubnetKey,
    },
    /// Was ours, and another node has it now. Containers here use its addresses, so nothing is done until it is free
    /// again or somebody decides to take a new one ([`LeaseMachine::renumber`]).
    TakenByOther {
        /// The subnets.
        subnets: SubnetKey,
    },
}

/// A lease that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The subnets.
    pub subnets: SubnetKey,
    /// What the store has for us, as far as known.
    pub published: Publication,
    /// The store's revision that is as of.
    pub revision: Revision,
    /// When it runs out unless kept alive.
    pub expires_at: Duration,
    /// When to keep it alive next.
    keep_alive_at: Duration,
    /// Since when the store is followed without its having shown our last write.
    unseen_since: Option<Duration>,
}

/// What the latest view of the store says of our subnets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// There is no view yet.
    Nothing,
    /// No key.
    Gone,
    /// Ours, with this in it.
    Ours(&'a Publication),
    /// Another node's.
    Other,
}

/// What is known when the machine is asked.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Time since any fixed moment, never going back; the same clock in every call.
    pub now: Duration,
    /// What the view says.
    pub seen: Seen<'a>,
    /// The store's revision the view is as of: an older one than our own last write says nothing about us.
    pub seen_revision: Revision,
    /// Whether the view follows the store now.
    pub followed: bool,
    /// What we want to publish; `None` while that is not known (no underlay, no usable configuration).
    pub wanted: Option<&'a Publication>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Acquire a lease: the previous subnets, if there are any, else a free one.
    Acquire {
        /// What this node held before.
        previous: Option<SubnetKey>,
        /// What to publish.
        publication: Publication,
    },
    /// Write this into the lease we hold.
    Publish(Publication),
    /// Keep the lease alive.
    KeepAlive,
    /// Nothing, until this time at the latest or until something in [`Input`] changes; `None`: only the latter.
    Nothing {
        /// On the clock of [`Input::now`].
        until: Option<Duration>,
    },
}

/// First delay after a failure, and the longest. The first is about a leader election in etcd (its default election
/// timeout is 1 s); the longest lets a thousand agents knock on a recovering store less than 50 times a second.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_LAST: Duration = Duration::from_secs(30);

/// How long a followed store may take to show our own write. It takes milliseconds; a store that was put back to before
/// that write, when the view had not seen it either, never does.
const UNSEEN: Duration = Duration::from_secs(10);

/// The machine.
#[derive(Clone, Debug)]
pub struct LeaseMachine {
    state: LeaseState,
    previous: Option<SubnetKey>,
    failures: u32,
    retry_at: Duration,
    /// Publishing failed last: the lease is kept alive all the same.
    publishing_failed: bool,
}

impl LeaseMachine {
    /// A machine at the start of a run; `previous`: what the state directory says this node held.
    #[must_use]
    pub fn new(previous: Option<SubnetKey>) -> Self {
        Self { state: LeaseState::Starting, previous, failures: 0, retry_at: Duration::ZERO, publishing_failed: false }
    }

    /// Where the lease stands.
    #[must_use]
    pub fn state(&self) -> &LeaseState {
        &self.state
    }

    /// The subnets this host uses, held or not: the datapath stays up with them whatever becomes of the lease.
    #[must_use]
    pub fn subnets(&self) -> Option<SubnetKey> {
        match &self.state {
            LeaseState::Starting => self.previous,
            LeaseState::Held(held) => Some(held.subnets),
            LeaseState::Lost { subnets } | LeaseState::TakenByOther { subnets } => Some(*subnets),
        }
    }

    /// What to do now. Does not change until something is reported back or [`Input`] changes, so it may be asked often.
    pub fn next(&mut self, input: &Input<'_>) -> Action {
        self.look(input);
        let waiting = input.now < self.retry_at;
        let retry_at = Some(self.retry_at);
        match &self.state {
            LeaseState::Starting | LeaseState::Lost { .. } => match input.wanted {
                None => Action::Nothing { until: None },
                Some(_) if waiting => Action::Nothing { until: retry_at },
                Some(wanted) => Action::Acquire { previous: self.subnets(), publication: wanted.clone() },
            },
            LeaseState::TakenByOther { .. } => Action::Nothing { until: None },
            // A store that takes no writes may still keep leases alive: one must not end for want of the other.
            LeaseState::Held(held) if self.publishing_failed && input.now >= held.keep_alive_at => Action::KeepAlive,
            LeaseState::Held(held) if waiting && self.publishing_failed => {
                Action::Nothing { until: Some(self.retry_at.min(held.keep_alive_at)) }
            }
            LeaseState::Held(_) if waiting => Action::Nothing { until: retry_at },
            LeaseState::Held(held) => match input.wanted {
                Some(wanted) if *wanted != held.published => Action::Publish(wanted.clone()),
                _ if input.now >= held.keep_alive_at => Action::KeepAlive,
                _ => {
                    let doubted = held.unseen_since.map(|since| since.saturating_add(UNSEEN));
                    Action::Nothing { until: Some(doubted.map_or(held.keep_alive_at, |at| at.min(held.keep_alive_at))) }
                }
            },
        }
    }

    /// Takes note of what the view says.
    fn look(&mut self, input: &Input<'_>) {
        if let LeaseState::Held(held) = &mut self.state {
            let unseen = input.followed && input.seen_revision < held.revision;
            held.unseen_since = unseen.then(|| held.unseen_since.unwrap_or(input.now));
            if held.unseen_since.is_some_and(|since| input.now >= since.saturating_add(UNSEEN)) {
                // Claiming it again finds out what the store has of us.
                self.lost();
                return;
            }
        }
        match &mut self.state {
            LeaseState::Held(held) if input.seen_revision >= held.revision => match input.seen {
                Seen::Nothing => {}
                Seen::Ours(publication) => {
                    // Somebody may have written over it: what counts is what peers read.
                    if *publication != held.published {
                        held.published = publication.clone();
                    }
                }
                Seen::Gone => self.lost(),
                Seen::Other => self.state = LeaseState::TakenByOther { subnets: held.subnets },
            },
            // Ours again: by a claim whose answer never reached us. Claiming it again finds that out.
            LeaseState::TakenByOther { subnets } if matches!(input.seen, Seen::Gone | Seen::Ours(_)) => {
                self.state = LeaseState::Lost { subnets: *subnets };
            }
            LeaseState::Starting | LeaseState::Held(_) | LeaseState::Lost { .. } | LeaseState::TakenByOther { .. } => {}
        }
    }

    /// A lease was acquired at `now` and written at `revision`; it lives for `ttl`.
    pub fn acquired(
        &mut self,
        now: Duration,
        subnets: SubnetKey,
        published: Publication,
        revision: Revision,
        ttl: Duration,
        random: u64,
    ) {
        self.succeeded();
        let held = Held { subnets, published, revision, expires_at: now, keep_alive_at: now, unseen_since: None };
        self.state = LeaseState::Held(held);
        self.kept_alive(now, ttl, random);
    }

    /// `published` was written into the lease at `revision`.
    pub fn published(&mut self, published: Publication, revision: Revision) {
        self.succeeded();
        if let LeaseState::Held(held) = &mut self.state {
            held.published = published;
            held.revision = revision;
            held.unseen_since = None;
        }
    }

    /// The store says the lease now lives for `ttl`. A third of that later it is kept alive again: two tries may fail.
    /// `random` spreads agents that started together over a tenth of it.
    pub fn kept_alive(&mut self, now: Duration, ttl: Duration, random: u64) {
        self.succeeded();
        if let LeaseState::Held(held) = &mut self.state {
            held.expires_at = now.saturating_add(ttl);
            held.keep_alive_at = now.saturating_add(ttl / 3).saturating_sub(fraction(ttl / 30, random));
        }
    }

    /// The last action failed and may succeed later: waits, longer each time, between half and all of the delay as
    /// `random` says. Returns when the next attempt is due.
    pub fn failed(&mut self, now: Duration, random: u64) -> Duration {
        let delay = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_LAST);
        self.failures = self.failures.saturating_add(1);
        self.publishing_failed = false;
        self.retry_at = now.saturating_add(delay / 2).saturating_add(fraction(delay / 2, random));
        self.retry_at
    }

    /// Publishing failed and may succeed later: waits as after any failure, but keeps the lease alive meanwhile.
    pub fn publishing_failed(&mut self, now: Duration, random: u64) {
        self.failed(now, random);
        self.publishing_failed = true;
    }

    /// The store says that our lease is gone (keeping it alive or writing into it found that out).
    pub fn lost(&mut self) {
        if let LeaseState::Held(held) = &self.state {
            self.state = LeaseState::Lost { subnets: held.subnets };
            self.succeeded();
        }
    }

    /// Claiming found that another node has our subnets. The view may not show that yet, so the next attempt waits as
    /// after a failure.
    pub fn taken(&mut self, now: Duration, random: u64) {
        if let Some(subnets) = self.subnets() {
            self.state = LeaseState::TakenByOther { subnets };
            self.failed(now, random);
        }
    }

    /// The store went back to before our last write (wiped, or restored from a backup): what it says from now on counts,
    /// whatever its revision.
    pub fn store_went_back(&mut self) {
        if let LeaseState::Held(held) = &mut self.state {
            held.revision = 0;
        }
    }

    /// The store answers again after it was away: what waited for that is due now.
    pub fn store_is_back(&mut self) {
        self.succeeded();
    }

    /// Somebody decided to give the subnets up: takes any free one.
    pub fn renumber(&mut self) {
        *self = Self::new(None);
    }

    /// Whether the store must have let the lease go by now, as far as we know.
    #[must_use]
    pub fn is_overdue(&self, now: Duration) -> bool {
        matches!(&self.state, LeaseState::Held(held) if now >= held.expires_at)
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.publishing_failed = false;
        self.retry_at = Duration::ZERO;
    }
}

/// The part of `whole` that `random` is of all 64-bit numbers, in steps of a 65,536th.
fn fraction(whole: Duration, random: u64) -> Duration {
    let part = u32::try_from(random >> 48).unwrap_or(0);
    whole / 65_536 * part
}

#[cfg(test)]
mod tests;
