//! A host has several networks: one goes on beside two that cannot be programmed for now. The rules that keep strangers
//! out of those and their packets in stay, and a peer that is removed is out of all three.

use std::net::IpAddr;

use flatnet_lab::subnet_env::SubnetEnv;
use flatnet_tests::Families;
use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::run;
use flatnet_tests::oracle;
use flatnet_tests::pinger::assert_reaches;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};
use ipnet::IpNet;
use nix::sys::signal::Signal;

use crate::counter::Counter;
use crate::field::{PORT, VNI, mac};
use crate::generate::crafted;
use crate::packet::{MAGIC, octets, udp_ip};
use crate::sender::Sender;

pub fn tests() -> Vec<Test> {
    let name = "networks_that_wait_stay_shut_and_whoever_is_removed_is_out_of_them";
    vec![Test::new(name, waiting).on_backend("vxlan").on_backend("wireguard")]
}

/// The networks: the one that goes on; one over VXLAN and one that encrypts, which need more of the underlay.
const NETWORKS: [(&str, &str, &str); 3] = [
    ("default", "/coreos.com/network/config", r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan","VNI":1}}"#),
    (
        "blue",
        "/flatnet/networks/blue/config",
        r#"{"Network":"10.200.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:200::/56","Backend":{"Type":"vxlan","VNI":2}}"#,
    ),
    (
        "green",
        "/flatnet/networks/green/config",
        r#"{"Network":"10.201.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:201::/56","Backend":{"Type":"wireguard"}}"#,
    ),
];
const BLUE: u32 = 2;
/// An MTU that is enough for an IPv4 network, and too little for the 1,280 bytes of an IPv6 one in a tunnel.
const SMALL: u32 = 1300;

struct Scene {
    agents: Vec<Agent>,
    lab: Lab,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::without_network(&Shape { underlay: Families::Dual, ..Shape::vxlan(3) });
        for (_, key, config) in NETWORKS {
            lab.etcd.put(key, config, None);
        }
        let mut agents = vec![lab.agent(1), lab.agent(2), lab.agent(3)];
        for agent in &mut agents {
            agent.arguments.extend(NETWORKS.map(|(name, ..)| format!("--network={name}")));
            agent.start();
        }
        let scene = Self { agents, lab };
        (0..3).for_each(|index| scene.wait_for_peers(index, 2));
        scene
    }

    /// Waits until every network of a host has its peers.
    fn wait_for_peers(&self, index: usize, peers: usize) {
        self.agents[index].wait_for_status(&format!("{peers} peers in each network"), |status| {
            let programmed = |network: usize| {
                let listed = status.pointer(&format!("/networks/{network}/peers")).and_then(|list| list.as_array());
                listed.map(|list| list.iter().filter(|peer| peer["state"] == "programmed").count())
            };
            status["state"] == "converged" && (0..NETWORKS.len()).all(|network| programmed(network) == Some(peers))
        });
    }

    /// Returns the subnet a host has leased in a network, IPv4.
    fn subnet(&self, number: u8, network: &str) -> IpNet {
        let file = if network == "default" { "subnet.env".to_owned() } else { format!("{network}.env") };
        let text = std::fs::read_to_string(self.agents[usize::from(number - 1)].run_dir.join(file)).unwrap();
        SubnetEnv::parse(&text).unwrap().v4.unwrap().trunc()
    }

    fn outer(&self, number: u8) -> IpAddr {
        self.lab.topology.host(number).v4.into()
    }

    fn set_mtu(&self, mtu: u32) {
        self.lab.host(1).ok(&format!("ip link set eth0 mtu {mtu}"));
    }

    /// Waits until two networks wait, and one goes on.
    fn wait_until_refused(&self) {
        self.agents[0].wait_for_status("blue and green wait, default goes on", |status| {
            let waits = |name: &str| {
                let problems = status["problems"].as_array().cloned().unwrap_or_default();
                problems.iter().any(|problem| problem["code"] == "underlay-mtu" && problem.to_string().contains(name))
            };
            let goes_on = status.pointer("/networks/0/peers/0/state").is_some_and(|state| state == "programmed");
            waits("blue") && waits("green") && goes_on
        });
    }

    /// Returns the peers of host 1's encrypting tunnel, with what each may send.
    fn wireguard_peers(&self) -> String {
        let argv = ["wg", "show", "flatwg.51820", "allowed-ips"].map(str::to_owned).into();
        let ran = run(&mut self.agents[0].on_host(argv));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stdout
    }
}

/// Returns the number of frames with an IPv4 packet for `address`.
fn sent_to(counter: &Counter, address: IpAddr) -> usize {
    // EtherType after two addresses, then the destination at byte 16 of the IPv4 header.
    let is_for = |frame: &[u8]| frame[12..14] == [8, 0] && frame[30..34] == *octets(address);
    counter.arrivals().iter().filter(|arrival| is_for(&arrival.frame)).count()
}

fn waiting() {
    let mut scene = Scene::new();
    let subnets = |number| NETWORKS.map(|(name, ..)| scene.subnet(number, name));
    let (of1, of2, of3) = (subnets(1), subnets(2), subnets(3));
    let host1 = scene.lab.host(1);
    let into = Counter::start(&host1, &["eth0"]);
    let in_clear = Counter::start(&scene.lab.host(2), &[]);
    let devices = [mac(&host1, "flat.1"), mac(&host1, "flat.2")];
    let senders = [1, 2, 3].map(|number| Sender::new(&scene.lab.host(number)));
    let outers = [1, 2, 3].map(|number| scene.outer(number));
    // A frame from a host into host 1's device of a network, with an inner source in `lease`.
    let frame = |by: usize, vni: u32, lease: IpNet| {
        let network = usize::try_from(vni - 1).unwrap();
        let source = lease.hosts().nth(76).unwrap();
        let payload = crafted(vni, devices[network], source, of1[network].network());
        assert!(senders[by - 1].send(outers[0], &udp_ip(outers[by - 1], outers[0], 3, PORT, &payload)));
    };
    let mut arrived = 0;
    let mut arrives = |what: &str, send: &dyn Fn()| {
        wait_until(what, SOON, || {
            send();
            match into.arrivals().len() > arrived {
                true => Ok(()),
                false => Err("no frame came out of the tunnel".to_owned()),
            }
        });
        arrived = into.arrivals().len();
    };
    let forged = || {
        // A peer with another one's source, and with its host's own.
        frame(3, BLUE, of2[1]);
        frame(3, BLUE, of1[1]);
        frame(3, VNI, of2[0]);
    };
    let stay_out = |what: &str, send: &dyn Fn()| {
        let before = into.arrivals().len();
        send();
        assert_eq!(into.arrivals().len(), before, "{what}");
    };
    let leads_nowhere = |address: &str| {
        let found = host1.run(&["ip", "route", "get", address]);
        found.code != 0 || found.stdout.contains("unreachable")
    };
    let nobody = ["10.100.250.9", "10.200.250.9", "10.201.250.9"];

    arrives("a peer's frame before anything waits", &|| frame(2, BLUE, of2[1]));
    scene.set_mtu(SMALL);
    scene.wait_until_refused();
    arrives("a peer's frame into the network that waits", &|| frame(2, BLUE, of2[1]));
    stay_out("forged frames while networks wait", &forged);
    assert_reaches(&scene.lab.host(2), of1[0].network());
    assert!(nobody.iter().all(|address| leads_nowhere(address)), "unknown addresses lead somewhere");

    // Encrypted or dropped, also past the tunnel by somebody else's more specific route.
    let to = of2[2].hosts().nth(76).unwrap();
    host1.ok(&format!("ip route add {to} via {} dev eth0", outers[1]));
    // Refused by the sender's own host, which is what is looked for; or dropped on the way.
    let _ = senders[0].send(to, &udp_ip(of1[2].network(), to, 5, 7, MAGIC));
    assert!(senders[0].send(outers[1], &udp_ip(outers[0], outers[1], 5, 7, MAGIC)));
    wait_until("what is no network's leaves in clear", SOON, || match sent_to(&in_clear, outers[1]) {
        0 => Err("nothing was seen".to_owned()),
        _ => Ok(()),
    });
    assert_eq!(sent_to(&in_clear, to), 0, "of an encrypted network in clear");
    host1.ok(&format!("ip route del {to} via {} dev eth0", outers[1]));

    // The guard comes back as it was wanted for the networks that wait, too.
    host1.ok("nft flush ruleset");
    wait_until("the guard is back", SOON, || {
        let tables = oracle::tables(&host1);
        if tables.iter().any(|table| table == "inet flatnet") { Ok(()) } else { Err(format!("{tables:?}")) }
    });
    arrives("a peer's frame after a flush", &|| frame(2, BLUE, of2[1]));
    stay_out("forged frames after a flush", &forged);

    // The routes that refuse unknown addresses come back.
    host1.ok(&format!("ip route flush proto {} type unreachable", oracle::PROTOCOL));
    for (network, address) in nobody.iter().enumerate() {
        wait_until("unknown addresses lead nowhere again", SOON, || {
            if leads_nowhere(address) { Ok(()) } else { Err(format!("network {network}: {address} leads somewhere")) }
        });
    }

    // After a restart nobody remembers the guard of what waits, so the loaded one is kept.
    scene.agents[0].end(Signal::SIGTERM);
    scene.agents[0].start();
    scene.wait_until_refused();
    arrives("a peer's frame after a restart", &|| frame(2, BLUE, of2[1]));
    stay_out("forged frames after a restart", &forged);
    assert!(nobody.iter().all(|address| leads_nowhere(address)), "unknown addresses lead somewhere");

    // A host that leaves is gone from the network that goes on and from those that wait.
    scene.set_mtu(1500);
    scene.wait_for_peers(0, 2);
    scene.set_mtu(SMALL);
    scene.wait_until_refused();
    arrives("the third host's frame while it is a peer", &|| frame(3, BLUE, of3[1]));
    let ran = scene.agents[2].command(&["leave"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    wait_until("the third host is gone from all networks of the first one", SOON, || {
        let routes = oracle::own_routes(&host1);
        let left: Vec<String> =
            of3.iter().map(ToString::to_string).filter(|subnet| routes.contains_key(subnet.as_str())).collect();
        let peers = scene.wireguard_peers();
        let is_peer = peers.contains(&of3[2].to_string());
        if left.is_empty() && !is_peer { Ok(()) } else { Err(format!("routes {left:?}, WireGuard {peers}")) }
    });
    stay_out("frames of a host that left", &|| {
        frame(3, BLUE, of3[1]);
        frame(3, VNI, of3[0]);
    });
    let routes = oracle::own_routes(&host1);
    assert!(of2.iter().all(|subnet| routes.contains_key(&subnet.to_string())), "who stayed is still there: {routes:?}");
    assert!(scene.wireguard_peers().contains(&of2[2].to_string()));
    arrives("the frame of a peer that stayed", &|| frame(2, BLUE, of2[1]));
    assert_reaches(&scene.lab.host(2), of1[0].network());

    scene.set_mtu(1500);
    scene.wait_for_peers(0, 1);
}
