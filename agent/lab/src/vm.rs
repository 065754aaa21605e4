//! Virtual machines: a host with Debian's kernel, where this machine's kernel lacks what a lab shows.
//!
//! QEMU emulates (TCG): no KVM is needed, a machine boots in about six seconds and runs five to ten times slower than
//! this one. It starts from an [`Image`] made beforehand, with a second disk that holds what this run brings
//! ([`payload`]). It answers over a serial port ([`Guest`]), so it needs no network to be talked to.
//!
//! A [`Machine`] is one process. It is killed when dropped; one started in the lab's sandbox also ends with the
//! sandbox.

mod guest;
mod image;
mod machine;
mod monitor;
mod payload;

pub use guest::{Guest, Ran};
pub use image::Image;
pub use machine::{Boot, Card, Machine, MachinePlan};
pub use monitor::Monitor;
pub use payload::payload;
