//! The moment when the kernel may take over what this process has encrypted so far, its module having turned up.
//!
//! A peer accepts no handshake that is stamped earlier than the last one it accepted (WireGuard §5.1). The kernel
//! stamps with 2^62 + 10 s and the seconds since 1970 (drivers/net/wireguard/noise.c: `tai64n_now`). The library in
//! user space stamps with 2^62 + 37 s, TAI proper (gotatun's `TimeStamper`). So for 27 s after a handshake of ours
//! nobody accepts the kernel's, and nobody has a reason to begin one: the tunnel would be silent for up to 15 s. There
//! is no hurry, since this process carries on.

use std::time::Duration;

/// The age that the last handshake must have: the 27 s, and 3 s for a clock that is being corrected meanwhile.
const STALE_AFTER: Duration = Duration::from_secs(30);
/// The longest time to wait for that. Sessions are renewed every 120 s (`REKEY_AFTER_TIME`, §6.1), so with one peer the
/// moment comes within 30 s. With many peers there may never be one, and some then pause for a few seconds, once.
const TAKEOVER_WAIT_TIMEOUT: Duration = Duration::from_secs(150);

/// A takeover that is to come.
#[derive(Debug, Default)]
pub struct Takeover {
    /// The time since which the kernel could take over.
    since: Option<Duration>,
    /// True if it was reported that the takeover is due.
    announced: bool,
}

impl Takeover {
    /// Returns true if the kernel may take over now. `youngest` is the time since the latest handshake of any peer, if
    /// there was one; `now` is the time on a clock that is never set.
    pub fn is_due(&mut self, youngest: Option<Duration>, now: Duration) -> bool {
        let since = *self.since.get_or_insert(now);
        youngest.is_none_or(|ago| ago >= STALE_AFTER) || now.saturating_sub(since) >= TAKEOVER_WAIT_TIMEOUT
    }

    /// Returns true, once, when the takeover has become due: whoever waits for it is then to look again.
    pub fn became_due(&mut self, youngest: Option<Duration>, now: Duration) -> bool {
        let due = self.since.is_some() && self.is_due(youngest, now);
        due && !std::mem::replace(&mut self.announced, due)
    }

    /// Forgets the takeover, because there is nothing to take over (any more).
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_waits_until_peers_listen_to_the_kernels_stamps() {
        let mut takeover = Takeover::default();
        let now = 7 * SECOND;
        assert!(!takeover.became_due(None, now), "nobody waits for it yet");
        assert!(!takeover.is_due(Some(2 * SECOND), now));
        assert!(!takeover.became_due(Some(29 * SECOND), now + 27 * SECOND));
        assert!(takeover.became_due(Some(STALE_AFTER), now + 28 * SECOND));
        assert!(!takeover.became_due(Some(STALE_AFTER), now + 29 * SECOND), "once is enough");
        assert!(takeover.is_due(Some(STALE_AFTER), now + 29 * SECOND));
    }

    #[test]
    fn without_a_session_it_comes_at_once_and_among_many_in_the_end() {
        assert!(Takeover::default().is_due(None, SECOND));
        let mut takeover = Takeover::default();
        let now = 7 * SECOND;
        assert!(!takeover.is_due(Some(SECOND), now));
        assert!(!takeover.is_due(Some(SECOND), now + TAKEOVER_WAIT_TIMEOUT - SECOND));
        assert!(takeover.is_due(Some(SECOND), now + TAKEOVER_WAIT_TIMEOUT));
        takeover.forget();
        assert!(!takeover.is_due(Some(SECOND), now + TAKEOVER_WAIT_TIMEOUT));
    }
}
