//! Thousands of peers under each backend: the time from the start of an agent on an empty host to the last route,
//! VXLAN's beside it.

use std::time::Duration;

use flatnet_tests::wait::pause;

use crate::Plan;
use crate::host::{DEADLINE, World};
use crate::process::cpu_seconds;
use crate::routes::Routes;
use crate::table::{Figures, Table, short};

/// The number of peers of each backend.
const PEERS: u32 = 4_000;

/// Measures starts with [`PEERS`] leases, the backends in turn, so that all see the same machine.
pub fn measure(plan: &Plan, table: &mut Table) {
    let backends = ["vxlan", "gre", "wireguard"];
    let worlds = backends.map(|backend| World::new(1, backend, PEERS));
    let mut took = backends.map(|_| (Figures::default(), Figures::default()));
    for _ in 0..plan.runs {
        for (world, (all, cpu)) in worlds.iter().zip(&mut took) {
            world.renew_host(1);
            let routes = Routes::watch(&world.lab.host(1));
            let agent = world.start(1, &[]);
            let programmed = routes.wait(PEERS, DEADLINE) - agent.began;
            all.push_ms(programmed);
            pause(Duration::from_secs(1));
            cpu.0.push(cpu_seconds(agent.pid()));
            drop(routes);
            world.forget(agent);
        }
    }
    let vxlan = took[0].0.median();
    for (backend, (all, cpu)) in backends.into_iter().zip(&took) {
        let reference = format!("{} of vxlan's; processor time {}", short(all.median() / vxlan), cpu.text("s"));
        table.row(format!("{backend}: start → {PEERS} peers programmed"), all.text("ms"), reference, "");
    }
}
