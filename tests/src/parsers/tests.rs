//! The short run: every committed seed as it is, then changed at random, within the time a test run can spare.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{TARGETS, Target};

/// The number of changed inputs for each target: all targets together take some seconds.
const CHANGED: usize = 20_000;
/// The longest time for one target, at which a slow machine stops earlier.
const LONGEST: Duration = Duration::from_secs(4);
/// The least number of inputs, whatever the machine: fewer would prove nothing.
const FEWEST: usize = 200;

fn fuzz_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn seeds(target: Target) -> Vec<Vec<u8>> {
    let directory = fuzz_directory().join("seeds").join(target.name);
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seeds", target.name);
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Runs `input`; a failure shows it as a byte string to be pasted into a test.
fn check(target: Target, input: &[u8]) {
    if catch_unwind(|| (target.run)(input)).is_err() {
        panic!("{} fails on b\"{}\"", target.name, input.escape_ascii());
    }
}

/// Marsaglia's xorshift64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit.max(1)).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        /// Bytes that break length fields, numbers and text.
        const AWKWARD: [u8; 12] = [0, 1, 3, 4, 0x7f, 0x80, 0xff, b'"', b'{', b'-', b'=', b'\n'];
        if self.below(2) == 0 { AWKWARD[self.below(AWKWARD.len())] } else { self.next().to_le_bytes()[0] }
    }

    fn piece<'a>(&mut self, of: &'a [u8]) -> &'a [u8] {
        let start = self.below(of.len());
        &of[start..start + self.below(of.len() - start + 1)]
    }

    /// Makes one to four changes, or bytes that come from nowhere.
    fn change(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        if self.below(16) == 0 {
            return (0..self.below(256)).map(|_| self.byte()).collect();
        }
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(input.len());
            match self.below(6) {
                0 => input.truncate(at),
                1 => input.insert(at, self.byte()),
                2 if !input.is_empty() => drop(input.remove(at)),
                3 if !input.is_empty() => input[at] = self.byte(),
                4 if !input.is_empty() => input[at] ^= 1 << self.below(8),
                _ => {
                    let other = seeds[self.below(seeds.len())].clone();
                    let piece = self.piece(&other);
                    input.splice(at..at, piece.iter().copied());
                }
            }
        }
        input
    }
}

/// Runs the seeds and changed inputs; returns how many changed ones were tried.
fn run(target: Target) -> usize {
    let seeds = seeds(target);
    for seed in &seeds {
        check(target, seed);
    }
    for length in 0..=seeds[0].len() {
        check(target, &seeds[0][..length]);
    }
    let (mut random, began) = (Random(0x2545_f491_4f6c_dd1d), Instant::now());
    for done in 0..CHANGED {
        if done >= FEWEST && began.elapsed() > LONGEST {
            return done;
        }
        check(target, &random.change(&seeds));
    }
    CHANGED
}

#[test]
fn no_parser_fails_on_any_bytes() {
    let threads = TARGETS.map(|target| (target.name, std::thread::spawn(move || run(target))));
    for (name, thread) in threads {
        let done = thread.join().unwrap_or_else(|failure| std::panic::resume_unwind(failure));
        assert!(done >= FEWEST, "{name}: {done}");
    }
}

#[test]
fn every_target_has_a_fuzz_program_and_every_program_a_target() {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| format!("{}.rs", target.name)).collect();
    let files = fs::read_dir(fuzz_directory().join("fuzz_targets")).unwrap();
    let files: BTreeSet<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, files);
}
