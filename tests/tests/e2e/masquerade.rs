//! The source address others see of containers: their own inside the network, the host's outside of it.

use std::net::IpAddr;

use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::Namespace;
use flatnet_tests::pinger;
use flatnet_tests::suite::Test;

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("containers_keep_their_address_next_to_dockers_masquerade", next_to_docker).on_backend("vxlan"),
        Test::new("containers_leave_the_network_with_the_hosts_address_only_if_told", to_the_outside)
            .on_backend("vxlan"),
    ]
}

fn next_to_docker() {
    let lab = Lab::new(&Shape::vxlan(2));
    let agents = lab.join_all();
    lab.attach_all(&agents);
    let host = lab.host(1);
    let subnet = agents[0].subnet().gateways().next().unwrap().trunc();
    // What dockerd adds for its default bridge.
    host.ok(&format!("iptables-nft -t nat -A POSTROUTING -s {subnet} ! -o docker0 -j MASQUERADE"));
    let (from, to) = (container_address(&agents[0]), container_address(&agents[1]));
    let seen = Sources::count(&lab.container(2), &[from]);
    pinger::assert_reaches(&lab.container(1), to);
    assert!(seen.packets(from) > 0, "the peer's container sees another address: {}", seen.listing());
    assert_eq!(seen.others(), 0, "{}", seen.listing());
}

fn to_the_outside() {
    for masquerade in ["true", "false"] {
        let lab = Lab::new(&Shape::vxlan(1));
        let mut agent = lab.agent(1).with(&["--bridge", "flbr0", "--ip-masq", masquerade]);
        agent.start();
        agent.wait_converged(0);
        lab.attach(&agent);
        let (container, host): (IpAddr, IpAddr) = (container_address(&agent), "192.168.33.11".parse().unwrap());
        // The underlay's gateway is outside the network.
        let outside = lab.underlay();
        let gateway: IpAddr = "192.168.33.1".parse().unwrap();
        let seen = Sources::count(&outside, &[container, host]);
        let ran = lab.container(1).run(&["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", &gateway.to_string()]);
        let (masqueraded, plain) = (seen.packets(host), seen.packets(container));
        if masquerade == "true" {
            assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
            assert!(masqueraded >= 2 && plain == 0, "{}", seen.listing());
        } else {
            assert!(plain >= 2 && masqueraded == 0, "{}", seen.listing());
        }
    }
}

fn container_address(agent: &Agent) -> IpAddr {
    agent.subnet().container_addresses().next().unwrap()
}

/// Counts echo requests that arrive in a namespace, by their source.
struct Sources {
    namespace: Namespace,
}

impl Sources {
    fn count(namespace: &Namespace, sources: &[IpAddr]) -> Self {
        namespace.ok("nft add table inet seen");
        namespace.ok("nft add chain inet seen in { type filter hook prerouting priority -400 ; }");
        for source in sources {
            namespace.ok(&format!("nft add rule inet seen in icmp type echo-request ip saddr {source} counter accept"));
        }
        namespace.ok("nft add rule inet seen in icmp type echo-request counter comment others");
        Self { namespace: namespace.clone() }
    }

    fn packets(&self, source: IpAddr) -> u64 {
        self.on_line(&format!("ip saddr {source} "))
    }

    fn others(&self) -> u64 {
        self.on_line("others")
    }

    fn on_line(&self, mark: &str) -> u64 {
        let listing = self.listing();
        let line = listing.lines().find(|line| line.contains(mark)).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "packets").unwrap();
        words[at + 1].parse().unwrap()
    }

    fn listing(&self) -> String {
        self.namespace.ok("nft list table inet seen")
    }
}
