//! An etcd of three members of which one hangs, dies, or is cut off from the others.

use std::fs::File;
use std::process::Child;
use std::time::{Duration, Instant};

use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::Namespace;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::process::cpu_time;
use crate::scene::{agent, figure, ms, shell};
use crate::store::until_programmed;

/// The bar: over to another member.
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

/// Three members on hosts 2, 3 and 4 of a lab; killed when dropped.
struct Cluster {
    members: Vec<(Namespace, String, Child)>,
}

impl Cluster {
    fn start(lab: &Lab) -> Self {
        let address = |number: u8| lab.topology.host(number).v4.to_string();
        let all: Vec<String> = (2..=4).map(|number| format!("m{number}=http://{}:2380", address(number))).collect();
        let members = (2..=4)
            .map(|number| {
                let (host, ip) = (lab.host(number), address(number));
                let log = File::create(lab.directory.join(format!("m{number}.log"))).unwrap();
                let argv = [
                    "etcd".to_owned(),
                    format!("--name=m{number}"),
                    format!("--data-dir={}", lab.directory.join(format!("m{number}")).display()),
                    format!("--listen-client-urls=http://{ip}:2379"),
                    format!("--advertise-client-urls=http://{ip}:2379"),
                    format!("--listen-peer-urls=http://{ip}:2380"),
                    format!("--initial-advertise-peer-urls=http://{ip}:2380"),
                    format!("--initial-cluster={}", all.join(",")),
                    "--unsafe-no-fsync".to_owned(),
                ];
                let mut command = host.command(&argv);
                command.stdout(log.try_clone().unwrap()).stderr(log);
                (host, format!("http://{ip}:2379"), command.spawn().unwrap())
            })
            .collect();
        let cluster = Self { members };
        for index in 0..3 {
            wait_until("every member answers", SOON, || {
                let ran = cluster.ctl(index, &["endpoint", "health"]);
                if ran.0 == 0 { Ok(()) } else { Err(ran.1) }
            });
        }
        cluster
    }

    fn ctl(&self, index: usize, arguments: &[&str]) -> (u8, String) {
        let (host, endpoint, _) = &self.members[index];
        let prefix =
            ["env", "ETCDCTL_API=3", "etcdctl", "--dial-timeout=2s", "--command-timeout=5s", "--endpoints", endpoint];
        let argv: Vec<&str> = prefix.iter().chain(arguments).copied().collect();
        let ran = host.run(&argv);
        (ran.code, format!("{}{}", ran.stdout, ran.stderr))
    }

    fn signal(&self, index: usize, signal: Signal) {
        kill(Pid::from_raw(self.members[index].2.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (_, _, child) in &mut self.members {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn over(name: &str, fault: &Fault) {
    // The lab's own etcd is not used.
    let lab = Lab::without_network(&Shape::vxlan(4));
    let cluster = Cluster::start(&lab);
    let (code, said) = cluster.ctl(0, &["put", "/coreos.com/network/config", &Shape::vxlan(1).config().to_string()]);
    assert_eq!(code, 0, "{said}");
    let mut agent = agent(&lab, 1, &[]);
    agent.arguments[1].clone_from(&cluster.members[0].1);
    for (_, endpoint, _) in &cluster.members[1..] {
        agent.arguments.insert(2, endpoint.clone());
    }
    // The first that is named is the first that is used.
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
        Fault::Hung => cluster.signal(0, Signal::SIGSTOP),
        Fault::Dead => cluster.signal(0, Signal::SIGKILL),
        Fault::CutOff => drop(shell(
            &cluster.members[0].0,
            "nft add table inet cut; nft add chain inet cut in '{ type filter hook input priority 0; }'; \
             nft add chain inet cut out '{ type filter hook output priority 0; }'; \
             for side in sport dport; do nft add rule inet cut in tcp $side 2380 drop; nft add rule inet cut out tcp $side 2380 drop; done",
        )),
    }
    wait_until("the majority takes writes", SOON, || {
        let (code, said) = cluster.ctl(1, &["put", "/coreos.com/network/subnets/10.100.250.0-24", &value(98)]);
        if code == 0 { Ok(()) } else { Err(said) }
    });
    let written = since.elapsed();
    let seen = until_programmed(&host, 250, 98, "02:00:00:00:00:98", since);
    flatnet_tests::wait::pause(Duration::from_secs(10).saturating_sub(since.elapsed()));
    let watched = since.elapsed();
    let cpu = cpu_time(agent.pid().unwrap()) - cpu;
    let again = Instant::now();
    let (code, said) = cluster.ctl(2, &["put", "/coreos.com/network/subnets/10.100.251.0-24", &value(97)]);
    assert_eq!(code, 0, "{said}");
    let next = until_programmed(&host, 251, 97, "02:00:00:00:00:97", again);
    agent.wait_converged(2);
    if matches!(fault, Fault::Hung) {
        cluster.signal(0, Signal::SIGCONT);
    }
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
