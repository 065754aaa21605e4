//! Every fault that an operator, another program, a kernel, a network or a store is known for, done to a running overlay:
//! real agents, a real etcd, real packets. Each test prints what it measured as one line `figure: ROW: …`; docs/reliability.md
//! holds them.
//!
//! `cargo test -p flatnet-tests --test faults -- FILTER` runs some of them; `--list` names them. `FLATNET_FAULTS_LONG=1`
//! keeps etcd away for 60 s rather than 20.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "this is test code: a failed assumption fails the test, with its message; figures are its output"
)]

#[path = "faults/device.rs"]
mod device;
#[path = "faults/drift.rs"]
mod drift;
#[path = "faults/restart.rs"]
mod restart;
#[path = "faults/scene.rs"]
mod scene;

use std::process::ExitCode;

use flatnet_tests::suite;

fn main() -> ExitCode {
    let groups = [device::tests(), drift::tests(), restart::tests()];
    suite::main(groups.into_iter().flatten().collect())
}
