//! The agent ends and starts again, in every way: no packet is lost and the kernel is left alone.

use std::path::PathBuf;
use std::time::Duration;

use flatnet_tests::lab::Shape;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::pause;
use nix::sys::signal::Signal;

use crate::scene::{Scene, assert_exact, figure, kernel_writes, metric, settled};

/// Ends and starts of each kind.
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

/// The agent's program under another path.
fn copied(scene: &Scene, round: u32) -> PathBuf {
    let path = scene.lab.directory.join(format!("agent-{round}"));
    std::fs::copy(flatnet_tests::agent::program(), &path).unwrap();
    path
}
