//! Joining: the time from the start of a host's agent to `subnet.env` and to the first packet across.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use flatnet_tests::wait::pause;

use crate::Plan;
use crate::host::{DEADLINE, Daemon, World};
use crate::probe::{Echo, Prober};
use crate::table::{Figures, Table};

/// The subnet that the joining host asks for, and its bridge's address in it.
const SUBNET: &str = "10.15.7.0/24";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 15, 7, 1);

/// Measures the second of two hosts.
pub fn second_of_two(plan: &Plan, table: &mut Table) {
    let world = World::new(2, "vxlan", 0);
    let first = world.start(1, &[]);
    first.env_written();
    let prober = Prober::new(&world.lab.host(1));
    let (mut env, mut answered) = (Figures::default(), Figures::default());
    for _ in 0..2 * plan.runs {
        world.renew_host(2);
        pause(Duration::from_millis(500));
        let _echo = Echo::start(&world.lab.host(2));
        let second = std::thread::scope(|scope| {
            let second = world.start(2, &["--subnet", SUBNET]);
            let began = second.began;
            let probing = scope.spawn(|| prober.until_answered(GATEWAY, DEADLINE));
            env.push_ms(second.env_written() - began);
            answered.push_ms(probing.join().unwrap() - began);
            second
        });
        assert_eq!(second.subnet(), GATEWAY, "the subnet asked for");
        world.forget(second);
    }
    table.row("second of two hosts: start → subnet.env", env.text("ms"), "", "105 ms [66..162]");
    table.row("second of two hosts: start → first packet answered", answered.text("ms"), "", "114 ms [73..186]");
}

/// Measures ten hosts that join at the same moment.
pub fn ten_at_once(plan: &Plan, table: &mut Table) {
    const HOSTS: u8 = 10;
    let world = World::new(HOSTS, "vxlan", 0);
    let (mut last_env, mut all_pairs) = (Figures::default(), Figures::default());
    for _ in 0..plan.runs {
        (1..=HOSTS).for_each(|number| world.renew_host(number));
        pause(Duration::from_millis(500));
        let hosts: Vec<_> = (1..=HOSTS).map(|number| world.lab.host(number)).collect();
        let _echoes: Vec<Echo> = hosts.iter().map(Echo::start).collect();
        let began = Instant::now();
        let agents: Vec<Daemon> = (1..=HOSTS).map(|number| world.start(number, &[])).collect();
        let written = agents.iter().map(Daemon::env_written).max().unwrap();
        last_env.push_ms(written - began);
        let gateways: Vec<Ipv4Addr> = agents.iter().map(Daemon::subnet).collect();
        let pairs = std::thread::scope(|scope| {
            let tries: Vec<_> = hosts
                .iter()
                .enumerate()
                .map(|(from, host)| {
                    let others: Vec<Ipv4Addr> = gateways
                        .iter()
                        .enumerate()
                        .filter(|(to, _)| *to != from)
                        .map(|(_, address)| *address)
                        .collect();
                    scope.spawn(move || {
                        let prober = Prober::new(host);
                        others.into_iter().map(|target| prober.until_answered(target, DEADLINE)).max().unwrap()
                    })
                })
                .collect();
            tries.into_iter().map(|pair| pair.join().unwrap()).max().unwrap()
        });
        all_pairs.push_ms(pairs - began);
        agents.into_iter().for_each(|agent| world.forget(agent));
    }
    table.row("ten hosts at once: last subnet.env", last_env.text("ms"), "", "636 / 397 ms");
    table.row("ten hosts at once: all 90 pairs", all_pairs.text("ms"), "", "644 / 403–408 ms");
}
