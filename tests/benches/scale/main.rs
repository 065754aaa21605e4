//! Speed and size: a benchmark that prints a table. Nothing is asserted on time.
//!
//! Real agents, a real etcd with its data in memory, synthetic leases in flannel's format; all in one sandbox of its
//! own. Every figure stands beside a reference taken in the same run, alternating with it, because machines differ from
//! minute to minute: believe the ratios. The method is in docs/benchmarks.md.
//!
//! `make bench`, or `cargo bench -p flatnet-tests --bench scale -- [--quick] [--only PART] [--leases N,N…]`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints, and one whose assumption fails has no figures to give"
)]

mod cold;
mod datapath;
mod host;
mod join;
mod leases;
mod live;
mod peers;
mod probe;
mod process;
mod reference;
mod routes;
mod table;
mod writer;

use std::process::ExitCode;

use flatnet_lab::sandbox;
use flatnet_tests::Families;
use flatnet_tests::suite::end_with_the_launcher;
use table::Table;

/// The extent of a measurement.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Numbers of leases.
    pub leases: Vec<u32>,
    /// Repetitions of a start, a burst, a join, a stream.
    pub runs: usize,
    /// Single new leases measured at each number of leases.
    pub samples: usize,
    /// The only part to run; all if `None`.
    pub only: Option<String>,
}

impl Plan {
    fn of(arguments: &[String]) -> Self {
        let value = |flag: &str| {
            let at = arguments.iter().position(|argument| argument == flag)?;
            Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{flag} needs a value")).clone())
        };
        let quick = arguments.iter().any(|argument| argument == "--quick");
        let mut plan = if quick {
            Self { leases: vec![100, 1_000, 8_000], runs: 3, samples: 20, only: None }
        } else {
            Self { leases: vec![100, 1_000, 4_000, 8_000], runs: 5, samples: 100, only: None }
        };
        plan.only = value("--only");
        if let Some(leases) = value("--leases") {
            plan.leases = leases.split(',').map(|number| number.parse().expect("--leases takes numbers")).collect();
        }
        plan
    }

    fn has(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

fn main() -> ExitCode {
    if sandbox::is_inside() {
        return inside();
    }
    let launched = sandbox::launch(|command| {
        command.envs(std::env::var_os("FLATNET_AGENT").map(|value| ("FLATNET_AGENT", value)));
    });
    match launched.and_then(|mut launched| launched.wait()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}

fn inside() -> ExitCode {
    if let Err(failure) = sandbox::settle() {
        return failure.report();
    }
    end_with_the_launcher();
    let plan = Plan::of(&std::env::args().collect::<Vec<_>>());
    let mut table = Table::default();
    table.note("machine", &process::machine());
    table.note("agent", &process::binary());
    for leases in &plan.leases {
        if plan.has("start") {
            cold::measure(*leases, &plan, &mut table);
        }
        if plan.has("live") {
            live::measure(*leases, &plan, &mut table);
        }
    }
    if plan.has("join") {
        join::second_of_two(&plan, &mut table);
        join::ten_at_once(&plan, &mut table);
    }
    if plan.has("datapath") {
        for backend in ["vxlan", "host-gw", "gre", "wireguard"] {
            for families in [Families::V4, Families::V6] {
                datapath::measure(backend, families, &plan, &mut table);
            }
        }
        datapath::wireguard_go(&plan, &mut table);
    }
    if plan.has("peers") {
        peers::measure(&plan, &mut table);
    }
    println!("\n{}", table.render());
    ExitCode::SUCCESS
}
