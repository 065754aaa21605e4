//! The watch over the wall clock: this host gets a new WireGuard key when the clock is set back.
//!
//! A handshake carries the time, and a peer refuses one that is not later than the last it has seen of that key
//! (WireGuard whitepaper, section 5.1). A host whose clock went back by a day would start no handshake for a day, and
//! nobody would see why. Peers have no past with a new key. So the key is replaced, in the order that loses nothing.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::files::state_dir::StateDir;
use crate::node::rotation::{Rotation, RotationError};
use crate::report::chain;
use crate::wiring::context::Context;
use crate::wiring::part::{Part, Stop};

/// The step back that is tolerated. A handshake is tried for 90 s (WireGuard whitepaper, `Rekey-Attempt-Time`), so the
/// same attempt makes up for refusals during a third of that.
const TOLERATED_STEP_BACK: Duration = Duration::from_secs(30);
/// The interval between looks.
const CLOCK_CHECK_EVERY: Duration = Duration::from_secs(5);
/// The wait before another try to replace the key. An agent that starts follows the store within milliseconds.
const KEY_RETRY_AFTER: Duration = Duration::from_millis(500);
/// The latest time is written down once it is this much later than the one on disk: a restart may not know of as much.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// The latest times that handshakes may have carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Horizon {
    /// The latest time by the wall clock: a kernel's tunnel takes the time from there for each handshake.
    latest: SystemTime,
    /// The time when this process began, and with it its tunnels in user space. They count on from there, whoever sets
    /// the clock.
    started: SystemTime,
    /// The time for which this process has run.
    up: Duration,
    /// The time that is on disk.
    written: Option<SystemTime>,
}

impl Horizon {
    /// Creates the horizon of a process that begins `now`. `written`: the time that an earlier run wrote down.
    fn new(written: Option<SystemTime>, now: SystemTime) -> Self {
        let latest = written.map_or(now, |written| written.max(now));
        Self { latest, started: now, up: Duration::ZERO, written }
    }

    /// Takes note of the time, and of how long this process has run. Returns how far the clock is behind the latest
    /// time, if that is more than is tolerated.
    fn look(&mut self, now: SystemTime, up: Duration) -> Option<Duration> {
        (self.latest, self.up) = (self.latest.max(now), up);
        self.latest.duration_since(now).ok().filter(|back| *back > TOLERATED_STEP_BACK)
    }

    /// Takes note that the key was replaced: nobody has a past with the new one. A tunnel in user space may go on from
    /// its old time with the new key too. It may instead have been given a successor, which begins at the clock's time,
    /// but that is not known here, and being too late does no harm.
    fn replaced(&mut self, now: SystemTime) {
        (self.latest, self.written) = (now, None);
    }

    /// Returns the time to be written down, if that is due: a process that starts later has to be ahead of it.
    fn due(&self) -> Option<SystemTime> {
        let latest = self.started.checked_add(self.up).map_or(self.latest, |counted| counted.max(self.latest));
        let is_due = |written| latest.duration_since(written).is_ok_and(|later| later >= WRITE_EVERY);
        self.written.is_none_or(is_due).then_some(latest)
    }
}

/// Makes the part that watches the clock. It ends before the node leaves: it would write a key that nobody needs any
/// more.
pub fn part<P, K>(context: &Context<P, K>) -> Part {
    Part::new("clock", Stop::Effect, keep(Arc::clone(&context.setup.dir), Rotation::of(context)))
}

/// Replaces the key of `rotation` whenever the wall clock was set back. Runs for ever.
async fn keep(dir: Arc<StateDir>, rotation: Rotation) {
    let began = Instant::now();
    let mut horizon = Horizon::new(dir.read_clock(), SystemTime::now());
    let mut said = None;
    loop {
        let mut wait = CLOCK_CHECK_EVERY;
        if rotation.is_needed() {
            let now = SystemTime::now();
            if let Some(back) = horizon.look(now, began.elapsed()) {
                let by = back.as_secs();
                match rotation.clone().run().await {
                    // A key that is not published yet is in use all the same, and publishing it is tried for as long as
                    // it takes.
                    Ok(_) | Err(RotationError::Unpublished(_)) => {
                        tracing::warn!(
                            by,
                            "the clock was set back by so many seconds: this host has a new WireGuard key"
                        );
                        horizon.replaced(now);
                        said = None;
                    }
                    Err(error) if said.as_ref() != Some(&error) => {
                        wait = KEY_RETRY_AFTER;
                        tracing::warn!(
                            error = chain(&error),
                            by,
                            "the clock was set back by so many seconds: peers refuse handshakes until this host has a new WireGuard key"
                        );
                        said = Some(error);
                    }
                    Err(_) => wait = KEY_RETRY_AFTER,
                }
            }
            if let Some(latest) = horizon.due() {
                match dir.write_clock(latest) {
                    Ok(()) => horizon.written = Some(latest),
                    Err(error) => tracing::debug!(error = chain(&error), "the time is not written down"),
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn up(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn only_a_clock_that_went_back_far_is_told_of_and_also_across_a_restart() {
        let mut horizon = Horizon::new(None, at(1_000));
        assert_eq!(horizon.due(), Some(at(1_000)), "a first time is written at once");
        horizon.written = horizon.due();
        for now in [1_010, 5_000, 4_970] {
            assert_eq!(horizon.look(at(now), up(20)), None, "{now}");
        }
        assert_eq!(horizon.due(), Some(at(5_000)));
        assert_eq!(horizon.look(at(4_969), up(20)), Some(up(31)));
        let mut again = Horizon::new(Some(at(5_000)), at(2_000));
        assert_eq!(again.look(at(2_000), up(0)), Some(up(3_000)));
        assert_eq!(Horizon::new(Some(at(5_000)), at(5_059)).due(), None);
        assert_eq!(Horizon::new(Some(at(5_000)), at(5_060)).due(), Some(at(5_060)));
    }

    #[test]
    fn a_new_key_is_used_on_from_the_old_time_by_what_runs_in_this_process() {
        let mut horizon = Horizon::new(None, at(90_000));
        assert!(horizon.look(at(1_000), up(100)).is_some());
        horizon.replaced(at(1_000));
        assert_eq!(horizon.look(at(1_005), up(105)), None, "once is enough");
        assert_eq!(horizon.due(), Some(at(90_105)), "the next process has to be later than that, or take another key");
        let mut next = Horizon::new(Some(at(90_105)), at(1_200));
        assert!(next.look(at(1_200), up(0)).is_some());
        next.replaced(at(1_200));
        assert_eq!(next.due(), Some(at(1_200)));
    }
}
