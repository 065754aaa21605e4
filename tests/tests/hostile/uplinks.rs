//! A host with two cards on the underlay: a peer's packets that come in by another way than the answers go.
//!
//! Both cards are veths here, so the second one is like a container's interface. The rule's own tests show what a card
//! without a kind, a bond or a VLAN beside it is taken for.

use flatnet_lab::command_line::CommandLine;
use flatnet_tests::lab::{Lab, Shape, wire};
use flatnet_tests::oracle;
use flatnet_tests::pinger::{assert_does_not_reach, assert_reaches};
use flatnet_tests::suite::Test;

pub fn tests() -> Vec<Test> {
    let name = "a_peers_packet_may_come_by_the_underlay_whatever_the_way_back_and_by_no_containers_interface";
    vec![Test::new(name, two_cards).on_backend("vxlan")]
}

fn two_cards() {
    let lab = Lab::new(&Shape::vxlan(2));
    let agents = lab.join_all();
    lab.attach_all(&agents);
    let (host, peer, switch) = (lab.host(1), lab.host(2), lab.underlay());
    wire(
        &[
            format!("ip -n {} link add second type veth peer name eth1 netns {}", switch.0, host.0),
            format!("ip -n {} link set second master br0 up", switch.0),
            format!("ip -n {} link set eth1 up", host.0),
        ]
        .map(|line| CommandLine::words(&line)),
    );
    let (own, other) = (lab.topology.host(1).v4, lab.topology.host(2).v4);
    let mac = |of: &flatnet_tests::netns::Namespace, device: &str| {
        oracle::link(of, device).unwrap()["address"].as_str().unwrap().to_owned()
    };
    let comes_by = |device: &str| {
        peer.ok(&format!("ip neigh replace {own} lladdr {} dev eth0 nud permanent", mac(&host, device)));
    };
    let forged = || {
        let listed = host.json("nft -j list chain inet flatnet forged_8472_1").to_string();
        listed
            .split("\"packets\":")
            .skip(1)
            .filter_map(|rest| rest.split([',', '}']).next()?.trim().parse::<u64>().ok())
            .sum::<u64>()
    };
    let (here, there) = (lab.container(1), lab.container(2));
    let of = |index: usize| agents[index].subnet().container_addresses().next().unwrap();
    host.ok(&format!("ip neigh replace {other} lladdr {} dev eth1 nud permanent", mac(&peer, "eth0")));
    for rp_filter in [0, 2] {
        let set = format!("for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {rp_filter} > $file; done");
        assert_eq!(host.run(&["sh", "-c", &set]).code, 0);
        // In by the underlay's card, out by the other one.
        comes_by("eth0");
        host.ok(&format!("ip route add {other}/32 dev eth1 src {own}"));
        let dropped = forged();
        assert_reaches(&there, of(0));
        assert_reaches(&here, of(1));
        assert_eq!(forged(), dropped, "rp_filter {rp_filter}: a peer's packet was taken for forged");
        // The other way round: as if a container had sent it with the peer's address.
        host.ok(&format!("ip route del {other}/32 dev eth1"));
        comes_by("eth1");
        assert_does_not_reach(&there, of(0));
        assert!(forged() > dropped, "rp_filter {rp_filter}: dropped, but not as forged");
    }
    comes_by("eth0");
    assert_reaches(&there, of(0));
}
