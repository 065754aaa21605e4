//! In virtual machines with Debian's kernel: what this machine's kernel may lack, bad lines, reboots, the installed package.
//! How to write one: `flatnet_tests::vm`. One lab at a time: it fills two cores.
#![expect(clippy::unwrap_used, reason = "this is test code: a failed assumption fails the test, with its message")]

#[path = "vm/machines.rs"]
mod machines;
#[path = "vm/mesh.rs"]
mod mesh;

use std::process::ExitCode;

use flatnet_tests::suite;

fn main() -> ExitCode {
    let groups = [machines::tests(), mesh::tests()];
    suite::main_of_vms(groups.into_iter().flatten().collect())
}
