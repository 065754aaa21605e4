//! An etcd of three members, one of which hangs, dies, or is cut off from the others.

use std::time::{Duration, Instant};

use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::members::Members;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};
use serde_json::json;

use crate::process::cpu_time;
use crate::scene::{agent, figure, ms, shell};
use crate::store::until_programmed;

/// The longest time until the agent is over at another member.
const OVER: Duration = Duration::from_secs(5);

pub fn tests() -> Vec<Test> {
    [("hung", Fault::Hung), ("dead", Fault::Dead), ("cut_off_from_its_majority", Fault::CutOff)]
        .into_iter()
        .map(|(name, fault)| {
            Test::new(format!("agents_go_over_to_another_etcd_member::{name}"), move || over(name, &fault))
                .on_backend("vxlan")
        })
        .collect()
}

enum Fault {
    Hung,
    Dead,
    CutOff,
}

fn over(name: &str, fault: &Fault) {
    // The lab's own etcd is not used.
    let lab = Lab::without_network(&Shape::vxlan(4));
    let mut cluster = Members::start(&lab, 2);
    let put = |cluster: &Members, at: usize, key: &str, value: &str| {
        let ran = cluster.ctl(at, &["put", &format!("/coreos.com/network/{key}"), value]);
        if ran.code == 0 { Ok(()) } else { Err(ran.stderr) }
    };
    put(&cluster, 0, "config", &Shape::vxlan(1).config().to_string()).unwrap();
    let mut agent = agent(&lab, 1, &[]);
    // The first that is named is the first that is used.
    agent.arguments.splice(1..2, cluster.endpoints());
    agent.start();
    agent.wait_converged(0);
    let host = lab.host(1);
    let value = |address: u8| {
        json!({ "PublicIP": format!("192.168.33.{address}"), "BackendType": "vxlan",
            "BackendData": { "VNI": 1, "VtepMAC": format!("02:00:00:00:00:{address}") } })
        .to_string()
    };
    let cpu = cpu_time(agent.pid().unwrap());
    let since = Instant::now();
    match fault {
        Fault::Hung => cluster.hang(0),
        Fault::Dead => cluster.kill(0),
        Fault::CutOff => drop(shell(
            cluster.namespace(0),
            "nft add table inet cut; nft add chain inet cut in '{ type filter hook input priority 0; }'; \
             nft add chain inet cut out '{ type filter hook output priority 0; }'; \
             for side in sport dport; do nft add rule inet cut in tcp $side 2380 drop; nft add rule inet cut out tcp $side 2380 drop; done",
        )),
    }
    wait_until("the majority takes writes", SOON, || put(&cluster, 1, "subnets/10.100.250.0-24", &value(98)));
    let written = since.elapsed();
    let seen = until_programmed(&host, 250, 98, "02:00:00:00:00:98", since);
    flatnet_tests::wait::pause(Duration::from_secs(10).saturating_sub(since.elapsed()));
    let watched = since.elapsed();
    let cpu = cpu_time(agent.pid().unwrap()) - cpu;
    let again = Instant::now();
    put(&cluster, 2, "subnets/10.100.251.0-24", &value(97)).unwrap();
    let next = until_programmed(&host, 251, 97, "02:00:00:00:00:97", again);
    agent.wait_converged(2);
    figure(
        &format!("one of three etcd members {}", name.replace('_', " ")),
        format!(
            "the majority took a write after {}, the agent had it {} after the fault, the next one in {}; CPU of the agent {} in {} s",
            ms(written),
            ms(seen),
            ms(next),
            ms(cpu),
            watched.as_secs()
        ),
    );
    assert!(seen.saturating_sub(written) <= OVER || seen <= OVER, "{seen:?}, written after {written:?}");
    assert!(cpu <= watched / 10, "{cpu:?} of {watched:?}");
}
