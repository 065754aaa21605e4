//! The harness of the tests that cross crates: hosts as network namespaces, a real etcd, real agents, real packets.
//!
//! Everything happens in one sandbox per test program ([`flatnet_lab::sandbox`]): a pid, network and mount
//! namespace, and without root a user namespace. So nothing that a test leaves behind outlives the program, whatever
//! ends it.
//!
//! State is asserted with foreign tools ([`oracle`]): never with our own dump.
//!
//! ```no_run
//! use flatnet_tests::{lab::{Lab, Shape}, pinger};
//! let lab = Lab::new(&Shape::vxlan(2));
//! let agents = lab.join_all();
//! lab.attach_all(&agents);
//! pinger::assert_all_pairs(&lab, &agents);
//! ```
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "this crate is test code: a failed assumption fails the test, with its message"
)]

pub mod agent;
pub mod clock;
pub mod control_plane;
pub mod etcd;
pub mod flannel;
pub mod lab;
pub mod length;
pub mod members;
pub mod modules;
pub mod netns;
pub mod oracle;
pub mod parsers;
pub mod pinger;
pub mod prose;
pub mod requirements;
pub mod suite;
pub mod vm;
pub mod wait;

pub use flatnet_lab::Families;
