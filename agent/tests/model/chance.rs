//! The chance in a run: everything that the seed decides.

use std::time::Duration;

use flatnet_plane::random::{Random, SeededRandom};

/// Numbers that follow from a seed.
#[derive(Clone, Debug)]
pub struct Chance(SeededRandom);

impl Chance {
    /// Creates the numbers of a seed: the same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(SeededRandom::new(seed))
    }

    /// Returns 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Returns a number in `0..limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.bits() % u64::try_from(limit.max(1)).unwrap()).unwrap()
    }

    /// Returns true once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Returns one of `items`.
    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }

    /// Returns a time in `low..high` milliseconds.
    pub fn millis(&mut self, low: usize, high: usize) -> Duration {
        Duration::from_millis(u64::try_from(low + self.below(high - low)).unwrap())
    }
}
