//! Hostile frames that strangers, cut-off or lying peers, and containers send to the tunnels. None of them may come
//! out.
//!
//! `cargo test -p flatnet-tests --test hostile`. What is delivered is counted by packet sockets, not by our own
//! counters.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "this is test code: a failed assumption fails the test, with its message; figures are shown"
)]

#[path = "hostile/advertisements.rs"]
mod advertisements;
#[path = "hostile/claims.rs"]
mod claims;
#[path = "hostile/containers.rs"]
mod containers;
#[path = "hostile/counter.rs"]
mod counter;
#[path = "hostile/field.rs"]
mod field;
#[path = "hostile/flood.rs"]
mod flood;
#[path = "hostile/generate.rs"]
mod generate;
#[path = "hostile/lan.rs"]
mod lan;
#[path = "hostile/outage.rs"]
mod outage;
#[path = "hostile/packet.rs"]
mod packet;
#[path = "hostile/sender.rs"]
mod sender;
#[path = "hostile/tunnels.rs"]
mod tunnels;
#[path = "hostile/uplinks.rs"]
mod uplinks;
#[path = "hostile/waiting.rs"]
mod waiting;
#[path = "hostile/ways.rs"]
mod ways;

use std::process::ExitCode;

use flatnet_tests::suite;

fn main() -> ExitCode {
    let groups = [
        flood::tests(),
        claims::tests(),
        containers::tests(),
        outage::tests(),
        tunnels::tests(),
        advertisements::tests(),
        lan::tests(),
        uplinks::tests(),
        waiting::tests(),
        ways::tests(),
    ];
    suite::main(groups.into_iter().flatten().collect())
}
