//! The schedule of the reconciler's looks at the kernel.

use std::time::Duration;

use tokio::time::Instant;

/// The delay from a kernel event to the look. An `ip link del` comes as dozens of events within a millisecond or two.
const LOOK_AFTER: Duration = Duration::from_millis(10);
/// The least time between two full passes brought about by events, so that somebody else's busy routing daemon does not
/// become our load. It leaves room under the second within which drift must be repaired.
const SHORTEST_NEXT_PASS_AFTER: Duration = Duration::from_millis(100);
/// The inverse of the share of time that full passes may take while events keep coming. With 8,000 peers a look takes
/// tens of milliseconds.
const SHARE: u32 = 10;
/// The longest spacing, whatever a pass takes.
const LONGEST_NEXT_PASS_AFTER: Duration = Duration::from_millis(500);
/// The delay from a quick pass to the check of what it did. Our own changes wake nobody, and a joining fleet brings
/// many quick passes that one look can check together.
const CHECK_AFTER: Duration = Duration::from_millis(500);
/// The interval of looks when nothing was heard. They find what the kernel changes without telling (routes that go with
/// a link), and make up for a lost notification.
const RESYNC_EVERY: Duration = Duration::from_secs(60);
/// The interval at which settings are read that change without a notification (the kernel tells of forwarding, not of
/// `accept_ra`: net/ipv6/addrconf.c). They are some files of a few bytes each, and are repaired within a second.
const GLANCE_EVERY: Duration = Duration::from_millis(400);
/// The first wait after an operation failed.
const FIRST_RETRY_AFTER: Duration = Duration::from_millis(100);
/// The longest wait after an operation failed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The times of past and next passes.
#[derive(Debug)]
pub(super) struct Pace {
    due: Instant,
    glance: Instant,
    last_full: Instant,
    spacing: Duration,
    retry: Duration,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now, glance: now + GLANCE_EVERY, last_full: now, spacing: Duration::ZERO, retry: FIRST_RETRY_AFTER }
    }

    /// Returns the time at which the next full pass is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Returns the time at which settings are to be read again.
    pub(super) fn glance(&self) -> Instant {
        self.glance
    }

    /// Records that settings were read.
    pub(super) fn glanced(&mut self, now: Instant) {
        self.glance = now + GLANCE_EVERY;
    }

    /// Records that the kernel told of a change.
    pub(super) fn kernel_changed(&mut self, now: Instant) {
        self.due = self.due.min((now + LOOK_AFTER).max(self.last_full + self.spacing));
    }

    /// Records that a quick pass ended: what it did is looked at soon.
    pub(super) fn check(&mut self, now: Instant) {
        self.due = self.due.min((now + CHECK_AFTER).max(self.last_full + self.spacing));
    }

    /// Records that a full pass ended that took `took`. Whatever is due because of failures is added by
    /// [`Self::failed`] after this.
    pub(super) fn passed(&mut self, now: Instant, took: Duration) {
        self.last_full = now;
        self.spacing = (took * SHARE).clamp(SHORTEST_NEXT_PASS_AFTER, LONGEST_NEXT_PASS_AFTER);
        self.due = now + RESYNC_EVERY;
    }

    /// Records that the pass that just ended left something undone.
    pub(super) fn failed(&mut self, now: Instant) {
        self.due = self.due.min(now + self.retry);
        self.retry = (self.retry * 2).min(LONGEST_RETRY_AFTER);
    }

    /// Records that the pass that just ended left nothing undone.
    pub(super) fn succeeded(&mut self) {
        self.retry = FIRST_RETRY_AFTER;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_events_brings_one_pass_a_spacing() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.passed(start, Duration::from_millis(30));
        pace.kernel_changed(start + Duration::from_millis(1));
        assert_eq!(pace.due(), start + Duration::from_millis(300));
        pace.kernel_changed(start + Duration::from_millis(299));
        assert_eq!(pace.due(), start + Duration::from_millis(300));
    }

    #[test]
    fn a_quiet_kernel_is_looked_at_soon_after_an_event_and_every_minute() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.passed(start, Duration::from_millis(1));
        assert_eq!(pace.due(), start + RESYNC_EVERY);
        let later = start + Duration::from_secs(5);
        pace.kernel_changed(later);
        assert_eq!(pace.due(), later + LOOK_AFTER);
    }

    #[test]
    fn failures_are_retried_with_growing_waits_and_forgotten_on_success() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for wait in [100, 200, 400] {
            pace.passed(start, Duration::ZERO);
            pace.failed(start);
            assert_eq!(pace.due(), start + Duration::from_millis(wait));
        }
        pace.succeeded();
        pace.passed(start, Duration::ZERO);
        pace.failed(start);
        assert_eq!(pace.due(), start + FIRST_RETRY_AFTER);
    }
}
