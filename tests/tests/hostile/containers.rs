//! Containers that pose as a tunnel's end: with their own address, a forged one, or behind a translation.

use std::net::IpAddr;

use flatnet_lab::command_line::CommandLine;
use flatnet_model::IpFamily;
use flatnet_tests::Families;
use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape, wire};
use flatnet_tests::pinger::{assert_all_pairs, assert_reaches};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};

use crate::counter::Counter;
use crate::field::{FRIEND, Field, LIAR, PORT, STRANGER, VICTIM, VNI, mac};
use crate::generate::{allowed, crafted};
use crate::packet::{MAGIC, MARK, udp_ip};
use crate::sender::Sender;

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("a_container_cannot_pose_as_a_tunnels_end", containers).on_backend("vxlan"),
        Test::new("a_foreign_bridge_behind_this_host_cannot_pose_as_a_tunnels_end", foreign_bridge).on_backend("vxlan"),
        Test::new("the_frames_of_one_network_do_not_come_out_in_another", two_networks).on_backend("vxlan"),
    ]
}

/// A published port that leads to tunnels: chosen by an operator who did not think of it.
const PUBLISHED: u16 = 9999;

fn containers() {
    let field = Field::new(Families::Dual);
    assert_all_pairs(&field.lab, &field.agents);
    let container = field.lab.container(VICTIM);
    let sender = Sender::new(&container);
    // The attacking container's own frames are on its host's bridge, as they must be.
    let counters = [
        Counter::start(&field.host(VICTIM), &["eth0", "flbr0", "c1", "lo"]),
        Counter::start(&container, &[]),
        Counter::start(&field.host(FRIEND), &["eth0"]),
        Counter::start(&field.lab.container(FRIEND), &[]),
    ];
    // Reverse path filtering would hide a forged source from what is to be shown.
    for setting in ["all", "default", "flbr0", "eth0"] {
        field.host(VICTIM).ok(&format!("sysctl -qw net.ipv4.conf.{setting}.rp_filter=0"));
    }
    let friend4 = field.outer(FRIEND, IpFamily::V4);
    for rule in [
        "add table ip published".to_owned(),
        "add chain ip published pre { type nat hook prerouting priority -100 ; }".to_owned(),
        format!("add rule ip published pre udp dport {PUBLISHED} dnat to {friend4}:{PORT}"),
        format!("add rule ip published pre udp dport {} redirect to :{PORT}", PUBLISHED + 1),
    ] {
        field.host(VICTIM).ok(&format!("nft {rule}"));
    }
    let mut sent = 0;
    for family in IpFamily::BOTH {
        let outer = |number| field.outer(number, family);
        let own = field.container(VICTIM, family);
        let gateway = field.subnet(VICTIM, family).addr();
        let device = field.subnet(VICTIM, family).network();
        let mut send = |from: IpAddr, to: IpAddr, port: u16, payload: &[u8]| {
            for source_port in 1..=20 {
                sent += u32::from(sender.send(to, &udp_ip(from, to, source_port, port, payload)));
            }
        };
        let into_own = allowed(&field, VICTIM, FRIEND, family);
        let into_friend = allowed(&field, FRIEND, VICTIM, family);
        let liar_into_friend = allowed(&field, FRIEND, LIAR, family);
        // Its own host, at each of its addresses: as itself, and with a peer's forged address.
        for to in [outer(VICTIM), gateway, device] {
            for port in [PORT, PUBLISHED + 1] {
                send(own, to, port, &into_own);
                send(outer(FRIEND), to, port, &into_own);
            }
        }
        // Another host is tried as itself, which masquerading would make its host's address; with the address of a
        // container elsewhere, which it would too; with a peer's; with its own host's.
        for (from, payload) in [
            (own, &into_friend),
            (field.container(LIAR, family), &into_friend),
            ("10.100.77.7".parse().unwrap(), &into_friend),
            (outer(LIAR), &liar_into_friend),
            (outer(VICTIM), &into_friend),
        ] {
            if IpFamily::of(from) != family {
                continue;
            }
            send(from, outer(FRIEND), PORT, payload);
            send(from, gateway, PUBLISHED, payload);
        }
        // Another host's address inside the network: its tunnel hears there too.
        let remote = field.subnet(FRIEND, family);
        send(own, remote.addr(), PORT, &into_friend);
        send(own, remote.network(), PORT, &into_friend);
    }
    for counter in &counters {
        // What comes out of a tunnel still has its inner Ethernet source. (The friend's own addresses inside the
        // network may be spoken to at any port, and may answer that nothing listens there.)
        let decapsulated = counter.arrivals().into_iter().filter(|arrival| arrival.frame[6..12] == MARK);
        let first = decapsulated.clone().next().map(|arrival| format!("{}: {:02x?}", arrival.device, arrival.frame));
        assert_eq!(decapsulated.count(), 0, "{first:?}");
    }
    assert!(sent > 500, "only {sent} packets were let out of the container");
    eprintln!("containers posing as a tunnel's end: {sent} packets, 0 came out of a tunnel");
    // Inside the network the port is nothing special: containers may run tunnels of their own.
    let own = field.container(VICTIM, IpFamily::V4);
    let friend = field.container(FRIEND, IpFamily::V4);
    assert!(sender.send(friend, &udp_ip(own, friend, 1, PORT, MAGIC)));
    wait_until("a container's own tunnel within the network works", SOON, || match counters[3].arrivals().len() {
        0 => Err("nothing arrived".to_owned()),
        _ => Ok(()),
    });
}

/// A bridge as with plain Docker beside us: its subnet is masqueraded, and so becomes a peer's address.
fn foreign_bridge() {
    let field = Field::new(Families::V4);
    assert_all_pairs(&field.lab, &field.agents);
    let host = field.host(VICTIM);
    // The container of the machine without an agent has no other use here.
    let foreign = field.lab.container(STRANGER);
    let name = &foreign.0;
    wire(
        &[
            format!("ip netns add {name}"),
            format!("ip -n {} link add foreign type veth peer name eth0 netns {name}", host.0),
            format!("ip -n {} addr add 172.17.0.1/16 dev foreign", host.0),
            format!("ip -n {} link set foreign up", host.0),
            format!("ip -n {name} addr add 172.17.0.2/16 dev eth0"),
            format!("ip -n {name} link set eth0 up"),
            format!("ip -n {name} route add default via 172.17.0.1"),
        ]
        .map(|line| CommandLine::words(&line)),
    );
    for rule in [
        "add table ip foreign",
        "add chain ip foreign post { type nat hook postrouting priority 100 ; }",
        "add rule ip foreign post ip saddr 172.17.0.0/16 masquerade",
    ] {
        host.ok(&format!("nft {rule}"));
    }
    let family = IpFamily::V4;
    let friend = field.outer(FRIEND, family);
    // It reaches the other host, as its own host's address: all that is missing for a forged tunnel packet is the port.
    assert_reaches(&foreign, friend);
    let counters = [
        Counter::start(&field.host(FRIEND), &["eth0"]),
        Counter::start(&field.lab.container(FRIEND), &[]),
        Counter::start(&host, &["eth0", "foreign"]),
    ];
    let sender = Sender::new(&foreign);
    let own: IpAddr = "172.17.0.2".parse().unwrap();
    for source_port in 1..=100 {
        for (from, to, payload) in [
            (own, friend, allowed(&field, FRIEND, VICTIM, family)),
            (field.outer(LIAR, family), friend, allowed(&field, FRIEND, LIAR, family)),
            (field.outer(FRIEND, family), field.outer(VICTIM, family), allowed(&field, VICTIM, FRIEND, family)),
        ] {
            assert!(sender.send(to, &udp_ip(from, to, source_port, PORT, &payload)));
        }
    }
    for counter in &counters {
        counter.assert_none("from a foreign bridge");
    }
    eprintln!("a foreign bridge posing as a tunnel's end: 300 packets, 0 came out of a tunnel");
    // A packet that has no address of this host on its way is somebody else's tunnel, though it has our number.
    host.ok("nft delete table ip foreign");
    let theirs = Counter::start(&field.host(STRANGER), &[]);
    let stranger = field.outer(STRANGER, family);
    for source_port in 1..=10 {
        let payload = allowed(&field, FRIEND, VICTIM, family);
        assert!(sender.send(stranger, &udp_ip(own, stranger, source_port, PORT, &payload)));
    }
    wait_until("somebody else's tunnel passes through this host", SOON, || match theirs.arrivals().len() {
        10 => Ok(()),
        other => Err(format!("{other} of 10 arrived")),
    });
}

fn two_networks() {
    let lab = Lab::without_network(&Shape::vxlan(3));
    for (key, config) in [
        ("/coreos.com/network/config", r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan","VNI":1}}"#),
        ("/flatnet/networks/blue/config", r#"{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#),
    ] {
        lab.etcd.put(key, config, None);
    }
    let mut agents = vec![lab.agent(1), lab.agent(2), lab.agent(3)];
    for agent in &mut agents {
        let networks: &[&str] = if agent.number == 3 { &["default"] } else { &["default", "blue"] };
        agent.arguments.extend(networks.iter().map(|name| format!("--network={name}")));
        agent.start();
    }
    for agent in &agents {
        agent.wait_converged(2);
    }
    agents[0].wait_for_status("blue has its peer", |status| {
        status.pointer("/networks/1/peers/0/state").is_some_and(|state| state == "programmed")
    });
    let subnet = |agent: &Agent, file: &str| {
        let text = std::fs::read_to_string(agent.run_dir.join(file)).unwrap();
        flatnet_lab::subnet_env::SubnetEnv::parse(&text).unwrap().v4.unwrap().addr()
    };
    let outer = |number: u8| IpAddr::V4(lab.topology.host(number).v4);
    let counter = Counter::start(&lab.host(1), &["eth0"]);
    let devices = [mac(&lab.host(1), "flat.1"), mac(&lab.host(1), "flat.2")];
    let (default1, blue1) = (subnet(&agents[0], "subnet.env"), subnet(&agents[0], "blue.env"));
    let (default2, blue2) = (subnet(&agents[1], "subnet.env"), subnet(&agents[1], "blue.env"));
    let default3 = subnet(&agents[2], "subnet.env");
    let senders = [2, 3].map(|number| Sender::new(&lab.host(number)));
    let send = |by: u8, vni: u32, source: IpAddr, to: IpAddr| {
        let device = devices[usize::try_from(vni - 1).unwrap()];
        let packet = udp_ip(outer(by), outer(1), 3, PORT, &crafted(vni, device, source, to));
        assert!(senders[usize::from(by - 2)].send(outer(1), &packet));
    };
    for _ in 0..50 {
        for to in [default1, blue1] {
            // A host outside `blue`, with any source; a member of both, with the other network's source.
            for source in [default3, default2, blue2, blue1] {
                send(3, 2, source, to);
            }
            for source in [blue2, blue1, default3] {
                send(2, VNI, source, to);
            }
            send(2, 2, default2, to);
        }
    }
    counter.assert_none("of another network's frames");
    eprintln!("two networks: 800 frames with the other network's VNI or source, 0 came out");
    send(2, 2, blue2, blue1);
    assert_eq!(counter.arrivals().len(), 1, "the member's own frame arrives");
}
