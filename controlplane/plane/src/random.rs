//! Randomness as a value: the agent uses the kernel's, a simulation its seed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A source of random numbers.
pub trait Random: Send {
    /// Returns 64 uniform bits.
    fn next_u64(&mut self) -> u64;

    /// Returns `base` varied by ± 25 %: many agents that fail at once do not come back at once.
    fn jitter(&mut self, base: Duration) -> Duration {
        let percent = u32::try_from(self.next_u64() % 51).unwrap_or(25) + 75;
        base.saturating_mul(percent) / 100
    }
}

/// The kernel's random source (`getrandom(2)`).
#[derive(Clone, Copy, Debug, Default)]
pub struct OsRandom;

impl Random for OsRandom {
    fn next_u64(&mut self) -> u64 {
        // It fails only before the pool is seeded at early boot; a constant then merely makes collisions likelier,
        // and the transactions sort those out.
        getrandom::u64().unwrap_or(0x9e37_79b9_7f4a_7c15)
    }
}

/// A reproducible source: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct SeededRandom(u64);

impl SeededRandom {
    /// Starts from `seed`; the same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl Random for SeededRandom {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// One source for all parts of a node.
#[derive(Clone, Debug, Default)]
pub enum NodeRandom {
    /// The kernel's.
    #[default]
    Os,
    /// A simulation's, shared by all parts, so that one seed decides everything.
    Seeded(Arc<Mutex<SeededRandom>>),
}

impl NodeRandom {
    /// Starts from `seed`; the same seed gives the same numbers in the same order of asking.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self::Seeded(Arc::new(Mutex::new(SeededRandom::new(seed))))
    }
}

impl Random for NodeRandom {
    fn next_u64(&mut self) -> u64 {
        match self {
            Self::Os => OsRandom.next_u64(),
            Self::Seeded(source) => source.lock().unwrap_or_else(PoisonError::into_inner).next_u64(),
        }
    }
}

/// Exponential backoff with jitter.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first` and doubles each time, up to `cap`.
    #[must_use]
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, next: first }
    }

    /// Returns the time to wait now, and lengthens the next one.
    pub fn wait(&mut self, random: &mut impl Random) -> Duration {
        let wait = random.jitter(self.next);
        self.next = self.next.saturating_mul(2).min(self.cap);
        wait
    }

    /// Starts again from the first wait, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}
