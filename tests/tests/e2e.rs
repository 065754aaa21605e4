//! End to end: real agents, a real etcd, real packets, in network namespaces; with root or without.
//!
//! `cargo test -p flatnet-tests --test e2e -- FILTER` runs some of them; `--list` names them.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "this is test code: a failed assumption fails the test, with its message; figures are its output"
)]

#[path = "e2e/absence.rs"]
mod absence;
#[path = "e2e/backend_change.rs"]
mod backend_change;
#[path = "e2e/bad_input.rs"]
mod bad_input;
#[path = "e2e/choices.rs"]
mod choices;
#[path = "e2e/control_plane.rs"]
mod control_plane;
#[path = "e2e/cookbook.rs"]
mod cookbook;
#[path = "e2e/env_files.rs"]
mod env_files;
#[path = "e2e/flannel.rs"]
mod flannel;
#[path = "e2e/host_kept.rs"]
mod host_kept;
#[path = "e2e/isolation.rs"]
mod isolation;
#[path = "e2e/join_and_leave.rs"]
mod join_and_leave;
#[path = "e2e/lab_command.rs"]
mod lab_command;
#[path = "e2e/masquerade.rs"]
mod masquerade;
#[path = "e2e/membership.rs"]
mod membership;
#[path = "e2e/mesh.rs"]
mod mesh;
#[path = "e2e/mtu.rs"]
mod mtu;
#[path = "e2e/network_commands.rs"]
mod network_commands;
#[path = "e2e/restart.rs"]
mod restart;
#[path = "e2e/tls.rs"]
mod tls;
#[path = "e2e/wireguard.rs"]
mod wireguard;

use std::process::ExitCode;

use flatnet_tests::Families;
use flatnet_tests::lab::Shape;
use flatnet_tests::suite::{self, Test};

fn main() -> ExitCode {
    let groups = [
        mesh::tests(),
        absence::tests(),
        restart::tests(),
        host_kept::tests(),
        membership::tests(),
        flannel::tests(),
        env_files::tests(),
        mtu::tests(),
        masquerade::tests(),
        isolation::tests(),
        bad_input::tests(),
        choices::tests(),
        network_commands::tests(),
        join_and_leave::tests(),
        lab_command::tests(),
        tls::tests(),
        wireguard::tests(),
        backend_change::tests(),
        cookbook::tests(),
        control_plane::tests(),
    ];
    suite::main(groups.into_iter().flatten().collect())
}

/// Returns every backend with every family of the overlay; the underlay has what the overlay needs.
fn shapes(hosts: u8) -> Vec<(String, Shape)> {
    let mut shapes = Vec::new();
    for backend in ["vxlan", "gre", "wireguard", "host-gw"] {
        for (name, families) in [("ipv4", Families::V4), ("ipv6", Families::V6), ("dual_stack", Families::Dual)] {
            let shape = Shape { hosts, backend, overlay: families, underlay: families };
            shapes.push((format!("{}_{name}", backend.replace('-', "_")), shape));
        }
    }
    shapes
}

/// Makes one test for each of [`shapes`].
fn for_each_shape(hosts: u8, sentence: &str, body: fn(&Shape)) -> Vec<Test> {
    let test = |(name, shape): (String, Shape)| {
        let backend = shape.backend;
        Test::new(format!("{sentence}::{name}"), move || body(&shape)).on_backend(backend)
    };
    shapes(hosts).into_iter().map(test).collect()
}
