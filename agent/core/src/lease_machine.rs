//! The life of this host's lease in one network, without I/O. The machine is told what is known and what time it is,
//! and returns the next action. The agent's lease keeper owns one machine per network, carries the actions out one at a
//! time and reports the outcome of each. Dropping the machine loses nothing: the next run finds its lease in the store
//! by its identity.
//!
//! ```text
//! Starting ──acquired──▶ Held ──gone──▶ Lost ──acquired──▶ Held
//!                          └──another has it──▶ TakenByOther ──gone──▶ Lost
//! ```
//!
//! A lost lease is claimed again at once, with the same subnets, because containers use them. A lease is never lost
//! *here*: as long as the store cannot be asked, it stays Held, and the datapath with it.

use std::time::Duration;

use flatnet_model::{Publication, Revision, SubnetKey};

/// The state of the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// The lease has not been acquired in this run.
    Starting,
    /// The lease is ours.
    Held(Held),
    /// The lease was ours, and its key is gone.
    Lost {
        /// The subnets, to be claimed again.
        subnets: SubnetKey,
    },
    /// The lease was ours, and another node has it now. Containers here use its addresses, so nothing is done until it
    /// is free again or somebody decides to take a new one ([`LeaseMachine::renumber`]).
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
    /// The publication that the store has for us, as far as known.
    pub published: Publication,
    /// The store's revision at our last write; 0 after the store went back to before it.
    pub revision: Revision,
    /// The time at which the lease expires unless it is kept alive.
    pub expires_at: Duration,
    /// The time of the next keep-alive.
    keep_alive_at: Duration,
    /// The time since which the view follows the store without having shown our last write.
    unseen_since: Option<Duration>,
}

/// The latest view of the store, as far as it concerns our subnets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// There is no view yet.
    Nothing,
    /// Our subnets have no key.
    Gone,
    /// The key is ours, with this publication in it.
    Ours(&'a Publication),
    /// The key is another node's.
    Other,
}

/// The knowledge with which the machine is asked.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Time since any fixed moment, never going back; the same clock in every call.
    pub now: Duration,
    /// The content of the view.
    pub seen: Seen<'a>,
    /// The revision of the store that the view shows. If it is older than our own last write, the view says nothing
    /// about us.
    pub seen_revision: Revision,
    /// True if the view follows the store now.
    pub followed: bool,
    /// The publication that we want in the lease; `None` while that is not known (no underlay, no usable
    /// configuration).
    pub wanted: Option<&'a Publication>,
}

/// The next action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Acquire a lease with the previous subnets, if there are any, or else with free ones.
    Acquire {
        /// The subnets that this node held before.
        previous: Option<SubnetKey>,
        /// The publication to write into the lease.
        publication: Publication,
    },
    /// Write this publication into the lease we hold.
    Publish(Publication),
    /// Keep the lease alive.
    KeepAlive,
    /// Do nothing until this time, or until something in [`Input`] changes. With `None` there is no time limit.
    Nothing {
        /// The time, on the clock of [`Input::now`].
        until: Option<Duration>,
    },
}

/// The first and the longest delay after a failure. The first is about a leader election in etcd (its default election
/// timeout is 1 s). With the longest, a thousand agents knock on a recovering store less than 50 times a second.
const FIRST_RETRY_AFTER: Duration = Duration::from_millis(250);
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The time that a followed store may take to show our own write. Normally it takes milliseconds. A store that was put
/// back to before that write, when the view had not seen it either, never shows it.
const OWN_WRITE_SEEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The state machine of a lease.
#[derive(Clone, Debug)]
pub struct LeaseMachine {
    state: LeaseState,
    previous: Option<SubnetKey>,
    failures: u32,
    retry_at: Duration,
    /// True if the last attempt to publish failed. The lease is kept alive all the same.
    publishing_failed: bool,
}

impl LeaseMachine {
    /// Creates a machine at the start of a run; `previous` is what the state directory says this node held.
    #[must_use]
    pub fn new(previous: Option<SubnetKey>) -> Self {
        Self { state: LeaseState::Starting, previous, failures: 0, retry_at: Duration::ZERO, publishing_failed: false }
    }

    /// Returns the state of the lease.
    #[must_use]
    pub fn state(&self) -> &LeaseState {
        &self.state
    }

    /// Returns the subnets this host uses, held or not. The datapath stays up with them whatever becomes of the lease.
    #[must_use]
    pub fn subnets(&self) -> Option<SubnetKey> {
        match &self.state {
            LeaseState::Starting => self.previous,
            LeaseState::Held(held) => Some(held.subnets),
            LeaseState::Lost { subnets } | LeaseState::TakenByOther { subnets } => Some(*subnets),
        }
    }

    /// Returns the next action. It does not change until something is reported back or [`Input`] changes, so this may
    /// be called often.
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
            // A store that takes no writes may still keep leases alive, so a failure to publish must not end the lease.
            LeaseState::Held(held) if self.publishing_failed && input.now >= held.keep_alive_at => Action::KeepAlive,
            LeaseState::Held(held) if waiting && self.publishing_failed => {
                Action::Nothing { until: Some(self.retry_at.min(held.keep_alive_at)) }
            }
            LeaseState::Held(_) if waiting => Action::Nothing { until: retry_at },
            LeaseState::Held(held) => match input.wanted {
                Some(wanted) if *wanted != held.published => Action::Publish(wanted.clone()),
                _ if input.now >= held.keep_alive_at => Action::KeepAlive,
                _ => {
                    let doubted = held.unseen_since.map(|since| since.saturating_add(OWN_WRITE_SEEN_TIMEOUT));
                    Action::Nothing { until: Some(doubted.map_or(held.keep_alive_at, |at| at.min(held.keep_alive_at))) }
                }
            },
        }
    }

    /// Records what the view says.
    fn look(&mut self, input: &Input<'_>) {
        if let LeaseState::Held(held) = &mut self.state {
            let unseen = input.followed && input.seen_revision < held.revision;
            held.unseen_since = unseen.then(|| held.unseen_since.unwrap_or(input.now));
            if held.unseen_since.is_some_and(|since| input.now >= since.saturating_add(OWN_WRITE_SEEN_TIMEOUT)) {
                // Claiming the lease again finds out what the store has of us.
                self.lost();
                return;
            }
        }
        match &mut self.state {
            LeaseState::Held(held) if input.seen_revision >= held.revision => match input.seen {
                Seen::Nothing => {}
                Seen::Ours(publication) => {
                    // Somebody may have written over it, and what counts is what peers read.
                    if *publication != held.published {
                        held.published = publication.clone();
                    }
                }
                Seen::Gone => self.lost(),
                Seen::Other => self.state = LeaseState::TakenByOther { subnets: held.subnets },
            },
            // Ours again, by a claim whose answer never reached us. Claiming it again finds that out.
            LeaseState::TakenByOther { subnets } if matches!(input.seen, Seen::Gone | Seen::Ours(_)) => {
                self.state = LeaseState::Lost { subnets: *subnets };
            }
            LeaseState::Starting | LeaseState::Held(_) | LeaseState::Lost { .. } | LeaseState::TakenByOther { .. } => {}
        }
    }

    /// Records that a lease was acquired at `now` and written at `revision`; it lives for `ttl`.
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

    /// Records that `published` was written into the lease at `revision`.
    pub fn published(&mut self, published: Publication, revision: Revision) {
        self.succeeded();
        if let LeaseState::Held(held) = &mut self.state {
            held.published = published;
            held.revision = revision;
            held.unseen_since = None;
        }
    }

    /// Records that the store gave the lease another `ttl`. It is kept alive again a third of that later, so two
    /// attempts may fail. `random` spreads agents that started together over a tenth of that third.
    pub fn kept_alive(&mut self, now: Duration, ttl: Duration, random: u64) {
        self.succeeded();
        if let LeaseState::Held(held) = &mut self.state {
            held.expires_at = now.saturating_add(ttl);
            held.keep_alive_at = now.saturating_add(ttl / 3).saturating_sub(fraction(ttl / 30, random));
        }
    }

    /// Records that the last action failed and may succeed later. The wait grows with each failure, and `random` picks
    /// it between half and all of the delay. Returns when the next attempt is due.
    pub fn failed(&mut self, now: Duration, random: u64) -> Duration {
        let delay = FIRST_RETRY_AFTER.saturating_mul(1 << self.failures.min(16)).min(LONGEST_RETRY_AFTER);
        self.failures = self.failures.saturating_add(1);
        self.publishing_failed = false;
        self.retry_at = now.saturating_add(delay / 2).saturating_add(fraction(delay / 2, random));
        self.retry_at
    }

    /// Records that publishing failed and may succeed later. The machine waits as after any failure, but keeps the
    /// lease alive meanwhile.
    pub fn publishing_failed(&mut self, now: Duration, random: u64) {
        self.failed(now, random);
        self.publishing_failed = true;
    }

    /// Records that the store says our lease is gone (keeping it alive or writing into it found that out).
    pub fn lost(&mut self) {
        if let LeaseState::Held(held) = &self.state {
            self.state = LeaseState::Lost { subnets: held.subnets };
            self.succeeded();
        }
    }

    /// Records that claiming found another node with our subnets. The view may not show that yet, so the next attempt
    /// waits as after a failure.
    pub fn taken(&mut self, now: Duration, random: u64) {
        if let Some(subnets) = self.subnets() {
            self.state = LeaseState::TakenByOther { subnets };
            self.failed(now, random);
        }
    }

    /// Records that the store went back to before our last write (wiped, or restored from a backup). From now on the
    /// store's word counts, whatever its revision.
    pub fn store_went_back(&mut self) {
        if let LeaseState::Held(held) = &mut self.state {
            held.revision = 0;
        }
    }

    /// Records that the store answers again after it was away. Actions that waited for that are due now.
    pub fn store_is_back(&mut self) {
        self.succeeded();
    }

    /// Gives the subnets up, because somebody decided so, and takes any free ones.
    pub fn renumber(&mut self) {
        *self = Self::new(None);
    }

    /// Returns true if the store must have let the lease expire by now, as far as we know.
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

/// Returns a fraction of `whole`: the part that `random` is of all 64-bit numbers, in steps of a 65,536th.
fn fraction(whole: Duration, random: u64) -> Duration {
    let part = u32::try_from(random >> 48).unwrap_or(0);
    whole / 65_536 * part
}

#[cfg(test)]
mod tests;
