//! Timings, beside those of the batch tools for the same objects in the same run. They are printed, not asserted:
//! `cargo test --release -p flatnet-kernel --test conformance -- --ignored --nocapture scale`

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use flatnet_core::object::{NextHop, RouteVia};
use flatnet_core::op::{Action, Object as OpObject, Op};

use crate::world::{Subject, World, create, in_namespace, link, made, peers, shell, vxlan};

/// Returns what `ip -batch` and `bridge -batch` read to make the same objects.
fn batches(ops: &[Op]) -> (String, String) {
    let (mut ip, mut bridge) = (String::new(), String::new());
    for op in ops {
        match &op.object {
            OpObject::Neighbour(key, mac) => {
                writeln!(ip, "neigh add {} lladdr {mac} dev {} nud permanent protocol 91", key.address, key.device)
                    .unwrap();
            }
            OpObject::Fdb(key, to) => {
                writeln!(bridge, "fdb add {} dev {} dst {to} self permanent", key.mac, key.device).unwrap();
            }
            OpObject::Nexthop(id, nexthop) => {
                let NextHop { gateway, device, .. } = nexthop.via;
                writeln!(ip, "nexthop add id {} via {gateway} dev {device} onlink proto 91", id.0).unwrap();
            }
            OpObject::Route(key, route) => {
                let RouteVia::Object(id) = route.via else { panic!("{route:?}") };
                writeln!(ip, "route add {} nhid {} proto 91", key.destination, id.0).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    (ip, bridge)
}

async fn ours(world: &Subject, ops: &[Op]) -> (Duration, Duration, Duration) {
    world.done(&[create(link("flat.1", vxlan(1, "192.0.2.1")))]).await;
    let begun = Instant::now();
    world.done(ops).await;
    let applied = begun.elapsed();
    let begun = Instant::now();
    let state = world.state().await;
    let dumped = begun.elapsed();
    assert_eq!(state.routes.len(), made(ops).routes.len());
    let first = ops.first().cloned().unwrap();
    let begun = Instant::now();
    world.done(&[Op { action: Action::Change, ..first }]).await;
    let single = begun.elapsed();
    shell("ip link del flat.1");
    (applied, dumped, single)
}

fn theirs(directory: &std::path::Path) -> Duration {
    shell("ip link add flat.1 type vxlan id 1 dstport 8472 local 192.0.2.1 nolearning; ip link set flat.1 up");
    let begun = Instant::now();
    shell(&format!("ip -batch {0}/ip && bridge -batch {0}/bridge", directory.display()));
    let took = begun.elapsed();
    shell("ip link del flat.1");
    took
}

async fn measure(world: &Subject) {
    let directory = std::env::temp_dir().join(format!("flatnet-scale-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for count in [1_000, 4_000, 8_000] {
        let ops = peers("flat.1", count);
        let (ip, bridge) = batches(&ops);
        std::fs::write(directory.join("ip"), ip).unwrap();
        std::fs::write(directory.join("bridge"), bridge).unwrap();
        let mut rounds: Vec<_> = Vec::new();
        for _ in 0..5 {
            let (applied, dumped, single) = ours(world, &ops).await;
            rounds.push((applied, theirs(&directory), dumped, single));
        }
        let median = |of: fn(&(Duration, Duration, Duration, Duration)) -> Duration| {
            let mut values: Vec<_> = rounds.iter().map(of).collect();
            values.sort();
            values[values.len() / 2]
        };
        let (ours, theirs) = (median(|round| round.0), median(|round| round.1));
        println!(
            "{count} peers: apply {ours:?}, batch tools {theirs:?}, ratio {:.2}; dump {:?}; one operation {:?}",
            ours.as_secs_f64() / theirs.as_secs_f64(),
            median(|round| round.2),
            median(|round| round.3),
        );
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
#[ignore = "prints timings"]
fn apply_beside_the_batch_tools() {
    in_namespace("scale::apply_beside_the_batch_tools", || World::linux().run(|world| Box::pin(measure(world))));
}
