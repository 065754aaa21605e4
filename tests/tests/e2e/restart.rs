//! An agent that ends, in whatever way, and starts again loses no packet.

use std::time::Duration;

use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::pinger::{self, Pinger};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::pause;
use nix::sys::signal::Signal;

use crate::for_each_shape;

/// The time for which the agent is away, and for which it is watched once it is back.
const WHILE: Duration = Duration::from_millis(500);

pub fn tests() -> Vec<Test> {
    let mut tests = for_each_shape(2, "a_restart_loses_no_packet", a_restart_loses_no_packet);
    // Carried by the agent itself, as here, WireGuard and GRE stand still without it: see WireGuard's own tests, and
    // those in virtual machines for the kernel's.
    tests.retain(|test| !test.name.contains("wireguard") && !test.name.contains("gre"));
    tests
}

fn a_restart_loses_no_packet(shape: &Shape) {
    let lab = Lab::new(shape);
    let mut agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let before: Vec<_> = agents[1].subnet().container_addresses().collect();
    let streams: Vec<Pinger> = before.iter().map(|address| Pinger::start(&lab, &lab.container(1), *address)).collect();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for index in [0, 1] {
            agents[index].end(signal);
            pause(WHILE);
            agents[index].start();
            agents[index].wait_converged(1);
            pause(WHILE);
        }
    }
    for (stream, address) in streams.into_iter().zip(&before) {
        let losses = stream.stop();
        assert!(losses.sent > 350, "{losses:?}");
        assert!(losses.lost.is_empty(), "{address}: {losses:?}\n{}\n{}", agents[0].log(), agents[1].log());
    }
    let after: Vec<_> = agents[1].subnet().container_addresses().collect();
    assert_eq!(before, after, "the subnet is kept");
}
