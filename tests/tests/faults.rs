//! Every fault that an operator, another program, a kernel, a network or a store is known for, done to a running
//! overlay: real agents, a real etcd, real packets. Each test prints what it measured as one line `figure: ROW: …`;
//! docs/reliability.md holds them.
//!
//! `cargo test -p flatnet-tests --test faults -- FILTER` runs some of them; `--list` names them.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "this is test code: a failed assumption fails the test, with its message; figures are its output"
)]

#[path = "faults/cluster.rs"]
mod cluster;
#[path = "faults/device.rs"]
mod device;
#[path = "faults/drift.rs"]
mod drift;
#[path = "faults/firewall.rs"]
mod firewall;
#[path = "faults/garbage.rs"]
mod garbage;
#[path = "faults/lease.rs"]
mod lease;
#[path = "faults/leave.rs"]
mod leave;
#[path = "faults/process.rs"]
mod process;
#[path = "faults/resources.rs"]
mod resources;
#[path = "faults/restart.rs"]
mod restart;
#[path = "faults/scene.rs"]
mod scene;
#[path = "faults/start.rs"]
mod start;
#[path = "faults/store.rs"]
mod store;
#[path = "faults/underlay.rs"]
mod underlay;

use std::process::ExitCode;

use flatnet_tests::suite;

fn main() -> ExitCode {
    let groups = [
        device::tests(),
        drift::tests(),
        firewall::tests(),
        restart::tests(),
        start::tests(),
        store::tests(),
        cluster::tests(),
        lease::tests(),
        underlay::tests(),
        garbage::tests(),
        resources::tests(),
        leave::tests(),
    ];
    suite::main(groups.into_iter().flatten().collect())
}
