//! Tests in virtual machines: hosts with Debian's kernel, which has what the kernel of a build machine may lack (GRE,
//! WireGuard, netem), and can be rebooted.
//!
//! A machine is a clone of one that was booted once for the whole test program, so a lab of three is up in seconds.
//! Inside, everything runs five to ten times slower than outside: no test asserts a throughput, and deadlines are
//! generous.
//!
//! A test is a function in `tests/tests/vm/`, listed there in `tests()` with [`crate::suite::Test::in_vms`]:
//!
//! ```no_run
//! use flatnet_tests::vm::VmLab;
//! let lab = VmLab::up(3);                              // host1 to host3: 192.168.33.11 to .13, fd33::11 to ::13
//! lab.start_etcd(1);                                   // at lab.endpoint()
//! lab.configure(r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}"#);
//! lab.join_all(&[]);                                   // `agent join … --bridge flbr0` on each, until all converged
//! lab.attach_all();                                    // a container `c1` on each host's bridge
//! lab.assert_all_pairs();
//! let capture = lab.capture("udp port 8472");          // of all that goes between machines, seen from outside them
//! lab.vm(2).ok("ip netns exec c1 ping -c 3 192.168.33.11");
//! let said = lab.vm(2).sh("nft list ruleset | grep -c flatnet");
//! assert_eq!(said.rc, 0, "{}", said.output);
//! assert!(!capture.stop().is_empty());
//! ```
//!
//! The agent that runs there is the one in `FLATNET_AGENT`, else the one beside the test: it must be static, or made
//! for Debian 12 or older. `make test-vm` runs all with the static release; while writing a test, `make vm-image` once,
//! then `cargo build -p flatnet-agent && cargo test -p flatnet-tests --test vm NAME`.

mod capture;
mod host;
mod lab;
mod template;

pub use capture::Capture;
pub use flatnet_lab::vm::{Boot, Image, Ran};
pub use host::Vm;
pub use lab::{VmLab, VmShape};
pub use template::{control_plane_package, package};
