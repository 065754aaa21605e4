//! A fleet that is done harm to every second: twenty real agents and a real etcd, with faults of docs/reliability.md
//! chosen by a seed.
//!
//! `make soak` runs it for `SOAK_SECS` (600) seconds, `make test` for a minute; `SOAK_SEED` repeats a choice of faults,
//! `SOAK_HOSTS` makes the fleet smaller. The figures are in docs/reliability.md.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "this is test code: a failed assumption fails the test, with its message; figures are its output"
)]

#[path = "soak/fault.rs"]
mod fault;
#[path = "soak/fleet.rs"]
mod fleet;
#[path = "faults/process.rs"]
#[expect(dead_code, reason = "shared with the faults' tests, which use more of it")]
mod process;
#[path = "faults/scene.rs"]
#[expect(dead_code, reason = "shared with the faults' tests, which use more of it")]
mod scene;
#[path = "soak/usage.rs"]
mod usage;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use flatnet_plane::random::SeededRandom;
use flatnet_tests::suite::{self, Test};
use flatnet_tests::wait::pause;

use crate::fault::Fault;
use crate::fleet::Fleet;
use crate::scene::figure;
use crate::usage::Usage;

/// The pause between two faults.
const PACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let name = "a_fleet_under_a_fault_every_second_ends_exact_and_leaks_nothing";
    suite::main(vec![Test::new(name, soak).on_backend("vxlan")])
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn soak() {
    let secs = setting("SOAK_SECS").unwrap_or(60);
    let hosts = u8::try_from(setting("SOAK_HOSTS").unwrap_or(20)).unwrap();
    let now = || u64::from(SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos());
    let seed = setting("SOAK_SEED").unwrap_or_else(now);
    println!("soak: {hosts} hosts for {secs} s; again: SOAK_SEED={seed} SOAK_SECS={secs} SOAK_HOSTS={hosts} make soak");
    let mut random = SeededRandom::new(seed);
    let mut fleet = Fleet::new(hosts);
    let fresh = Usage::of(&fleet);
    let stream = fleet.stream();
    let began = Instant::now();
    let mut warm = None;
    let mut struck: BTreeMap<Fault, u32> = BTreeMap::new();
    for second in 0..secs {
        fleet.undo_what_is_due();
        let fault = Fault::choose(&mut random, &fleet);
        let host = fault.strike(&mut random, &mut fleet);
        *struck.entry(fault).or_default() += 1;
        println!(
            "soak: {:>7.1} s {fault:?}{}",
            began.elapsed().as_secs_f64(),
            host.map_or_else(String::new, |n| format!(" host{n}"))
        );
        // A quarter of the time fills every cache and every buffer that grows by use.
        if second >= secs / 4 && warm.is_none() {
            warm = Some(Usage::of(&fleet));
        }
        pause((PACE * u32::try_from(second + 1).unwrap()).saturating_sub(began.elapsed()));
    }
    let losses = stream.stop();
    let stopped = Instant::now();
    fleet.undo_everything();
    let exact = fleet.wait_until_exact(stopped);
    fleet.assert_nothing_else_changed();
    let list: Vec<String> = struck.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
    figure(
        "soak: faults",
        format!("{} in {secs} s on {hosts} hosts (seed {seed}): {}", struck.values().sum::<u32>(), list.join(", ")),
    );
    figure("soak: exact everywhere", format!("{:.1} s after the last fault", exact.as_secs_f64()));
    figure("soak: pings between two of the hosts", format!("{} of {} lost", losses.lost.len(), losses.sent));
    Usage::of(&fleet).assert_flat(&fresh, &warm.unwrap_or_else(|| fresh.clone()));
}
