//! The run of seeds: one after the other, on all processors.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use flatnet_controlplane::simulation;

use crate::steps;
use crate::store::Mutant;
use crate::world::{Way, World};

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Returns the panic of a task of this thread, if there was one.
pub fn panicked() -> Option<String> {
    PANIC.with_borrow(Clone::clone)
}

/// A seed that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The seed.
    pub seed: u64,
    /// The kind of run.
    pub way: Way,
    /// The reason of the failure.
    pub why: String,
    /// The trace of what happened last.
    pub trace: String,
}

/// Runs one seed.
pub fn one(seed: u64, way: Way, mutant: Mutant) -> Result<(), Failed> {
    hook();
    PANIC.with_borrow_mut(|panic| *panic = None);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .event_interval(7)
        .build()
        .unwrap();
    simulation::follow_tokios_clock();
    runtime.block_on(async {
        let mut world = World::new(seed, way, mutant);
        steps::run(&mut world).await.map_err(|why| Failed { seed, way, why, trace: world.trace.tail() })
    })
}

/// Runs `count` seeds from `first` on until one fails. Returns how many passed, and how long they took.
pub fn many(first: u64, count: u64, way: Way, mutant: Mutant) -> Result<(u64, Duration), Box<Failed>> {
    let (passed, took, mut failed) = spread(first, count, way, mutant, Stop::AtFirst);
    failed.sort_by_key(|failed| failed.seed);
    match failed.into_iter().next() {
        Some(failed) => Err(Box::new(failed)),
        None => Ok((passed, took)),
    }
}

/// Runs `count` seeds from `first` on. Returns all that fail.
pub fn all(first: u64, count: u64, way: Way) -> Vec<Failed> {
    spread(first, count, way, Mutant::None, Stop::AtEnd).2
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    AtFirst,
    AtEnd,
}

/// Runs seeds on all processors. No other seeds run meanwhile, so that the time taken says something.
fn spread(first: u64, count: u64, way: Way, mutant: Mutant, stop: Stop) -> (u64, Duration, Vec<Failed>) {
    static ALL_PROCESSORS: Mutex<()> = Mutex::new(());
    let _mine = ALL_PROCESSORS.lock().unwrap_or_else(PoisonError::into_inner);
    let began = Instant::now();
    let next = AtomicU64::new(first);
    let end = first + count;
    let failed = Mutex::new(Vec::new());
    let passed = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || (stop == Stop::AtFirst && !failed.lock().unwrap().is_empty()) {
                        return;
                    }
                    match one(seed, way, mutant) {
                        Ok(()) => drop(passed.fetch_add(1, Ordering::Relaxed)),
                        Err(failure) => failed.lock().unwrap().push(failure),
                    }
                }
            });
        }
    });
    (passed.into_inner(), began.elapsed(), failed.into_inner().unwrap())
}

/// Keeps the panics of a seed's tasks, which the runtime would swallow.
fn hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANIC.with_borrow_mut(|panic| *panic = Some(info.to_string()));
            before(info);
        }));
    });
}
