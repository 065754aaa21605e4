//! Tests in virtual machines with Debian's kernel: for what this machine's kernel may lack, bad lines, reboots, the
//! installed package. `flatnet_tests::vm` tells how to write one. One lab runs at a time: it fills two cores.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "this is test code: a failed assumption fails the test, with its message"
)]

#[path = "vm/bad_lines.rs"]
mod bad_lines;
#[path = "vm/control_plane.rs"]
mod control_plane;
#[path = "vm/cookbook.rs"]
mod cookbook;
#[path = "vm/gre.rs"]
mod gre;
#[path = "vm/machines.rs"]
mod machines;
#[path = "vm/mesh.rs"]
mod mesh;
#[path = "vm/pings.rs"]
mod pings;
#[path = "vm/quick_start.rs"]
mod quick_start;
#[path = "vm/servers.rs"]
mod servers;
#[path = "vm/thousands.rs"]
mod thousands;
#[path = "vm/vagrant.rs"]
mod vagrant;
#[path = "vm/wireguard.rs"]
mod wireguard;

use std::process::ExitCode;

use flatnet_tests::suite;

fn main() -> ExitCode {
    let groups = [
        machines::tests(),
        mesh::tests(),
        gre::tests(),
        wireguard::tests(),
        bad_lines::tests(),
        servers::tests(),
        control_plane::tests(),
        quick_start::tests(),
        cookbook::tests(),
        vagrant::tests(),
        // Last: where time is short, these are what is left out.
        thousands::tests(),
    ];
    suite::main_of_vms(groups.into_iter().flatten().collect())
}
