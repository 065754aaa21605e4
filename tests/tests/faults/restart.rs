//! The agent ends and starts again, in every way: no packet is lost and the kernel is left alone.

use std::path::PathBuf;
use std::time::Duration;

use flatnet_tests::lab::Shape;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::pause;
use nix::sys::signal::Signal;

use crate::scene::{Scene, assert_exact, figure, kernel_writes, metric, ms, settled};

/// The number of ends and starts of each kind.
const ROUNDS: u32 = 5;

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for backend in ["vxlan", "host-gw"] {
        for (name, signal) in [("sigkill", Signal::SIGKILL), ("sigterm", Signal::SIGTERM)] {
            let shape = Shape { backend, ..Shape::vxlan(2) };
            let title = format!("a_restart_writes_nothing_to_the_kernel::{}_{name}", backend.replace('-', "_"));
            tests.push(Test::new(title, move || restart(&shape, signal, false)).on_backend(backend));
        }
    }
    for backend in ["gre", "wireguard"] {
        for (name, signal) in [("sigkill", Signal::SIGKILL), ("sigterm", Signal::SIGTERM)] {
            let shape = Shape { backend, ..Shape::vxlan(2) };
            let title = format!("a_restart_leaves_the_state_as_it_is::{backend}_{name}");
            tests.push(Test::new(title, move || carried(&shape, signal)).on_backend(backend));
        }
    }
    let title = "an_upgrade_to_another_binary_loses_nothing";
    tests.push(Test::new(title, || restart(&Shape::vxlan(2), Signal::SIGTERM, true)).on_backend("vxlan"));
    tests
}

fn restart(shape: &Shape, signal: Signal, upgrade: bool) {
    let mut scene = Scene::new(shape);
    let host = scene.lab.host(1);
    let before = settled(&host);
    let stream = scene.stream();
    let (mut writes, mut swaps) = (0, 0);
    for round in 0..ROUNDS {
        scene.agents[0].end(signal);
        pause(Duration::from_millis(300));
        if upgrade {
            scene.agents[0].program = copied(&scene, round);
        }
        scene.agents[0].start();
        scene.agents[0].wait_converged(1);
        // The pass that checks the first ones.
        pause(Duration::from_millis(700));
        writes += kernel_writes(&host);
        swaps = swaps.max(metric(&host, "flatnet_reconcile_ops_total", &["kind=\"ruleset\""]));
    }
    let losses = stream.stop();
    let how = if upgrade { "upgrade to another binary".to_owned() } else { format!("{signal} + start") };
    figure(
        &format!("{how} ({})", shape.backend),
        format!(
            "{} of {} pings lost in {ROUNDS} rounds, {writes} writes to the kernel, at most {swaps} ruleset swaps a start",
            losses.lost.len(),
            losses.sent
        ),
    );
    assert!(losses.lost.is_empty(), "{losses:?}\n{}", scene.agents[0].log());
    assert_eq!(writes, 0, "{}", scene.agents[0].log());
    assert!(swaps <= 1, "{swaps} swaps of the ruleset");
    assert_exact(&host, &before);
}

/// The time without an agent.
const ABSENT: Duration = Duration::from_millis(300);
/// The longest time from the start of an agent until it carries packets again.
const CARRIED_AGAIN: Duration = Duration::from_secs(1);

/// A tunnel that the agent itself carries stands still while no agent runs; one of the kernel's loses nothing.
fn carried(shape: &Shape, signal: Signal) {
    let mut scene = Scene::new(shape);
    if scene.agents[0].status().is_some_and(|status| status["networks"][0]["datapath"] == "kernel") {
        drop(scene);
        return restart(shape, signal, false);
    }
    let host = scene.lab.host(1);
    // The operational state of a TUN device is unknown until its carrier has come and gone once.
    scene.agents[0].end(signal);
    scene.agents[0].start();
    scene.agents[0].wait_converged(1);
    let before = settled(&host);
    let stream = scene.stream();
    for _ in 0..ROUNDS {
        scene.agents[0].end(signal);
        pause(ABSENT);
        scene.agents[0].start();
        scene.agents[0].wait_converged(1);
        pause(Duration::from_millis(700));
    }
    let losses = stream.stop();
    // At 100 a second.
    let still = Duration::from_millis(10 * losses.longest());
    figure(
        &format!("{signal} + start ({}, carried by the agent)", shape.backend),
        format!(
            "packets stand still for {} at most in {ROUNDS} rounds, {} of which no agent runs; the state is exact",
            ms(still),
            ms(ABSENT)
        ),
    );
    assert!(still <= ABSENT + CARRIED_AGAIN, "{losses:?}\n{}", scene.agents[0].log());
    assert_exact(&host, &before);
}

/// Copies the agent's program to another path, which it returns.
fn copied(scene: &Scene, round: u32) -> PathBuf {
    let path = scene.lab.directory.join(format!("agent-{round}"));
    std::fs::copy(flatnet_tests::agent::program(), &path).unwrap();
    path
}
