//! The way by which a packet comes decides whether its source is believed. Every sender poses as everybody to every
//! target, over every backend and family, whatever reverse-path filtering and a policy of FORWARD do. Each combination
//! is a cell of one table, which is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use flatnet_lab::command_line::CommandLine;
use flatnet_model::IpFamily;
use flatnet_tests::Families;
use flatnet_tests::lab::wire;
use flatnet_tests::netns::Namespace;
use flatnet_tests::pinger::{assert_all_pairs, assert_reaches};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, pause, wait_until};
use ipnet::IpNet;
use nix::sys::signal::Signal;

use crate::counter::Counter;
use crate::field::{FRIEND, Field, LIAR, PORT, STRANGER, VICTIM, VNI, mac, tunnel};
use crate::packet::{MAGIC, ethernet, udp_ip, vxlan};
use crate::sender::{Sender, inside};

pub fn tests() -> Vec<Test> {
    let of = |backend: &'static str| {
        Test::new(format!("a_source_is_believed_only_by_its_own_way::{backend}"), move || matrix(backend))
            .on_backend(backend)
    };
    ["vxlan", "gre", "wireguard", "host-gw"].map(of).into()
}

/// The port at which services listen.
const SERVICE: u16 = 7;
/// A port that leads to one of them.
const PUBLISHED: u16 = 9998;
/// The time for which the last packet sent may be under way.
const UNDER_WAY: Duration = Duration::from_millis(300);

/// The sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// A machine on the link that no agent runs on; the host is its router towards the network.
    Stranger,
    /// A guest on another bridge of the host, as plain Docker's.
    Guest,
    /// A container of the network on the host.
    Container,
}

/// The owner of the address it sends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    /// A container of the host that is attacked.
    Local,
    /// A container of a peer.
    Remote,
    /// Nobody: a subnet of the network that is not leased.
    Unleased,
    /// The host's own address in the network.
    Gateway,
    /// Nobody but itself, outside the network.
    Itself,
}

/// The target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// A container of the host.
    Local,
    /// A container of another host, behind this host's tunnel.
    Remote,
    /// A service of the host, at its address in the network.
    Host,
}

const SENDERS: [By; 3] = [By::Stranger, By::Guest, By::Container];
const POSES: [As; 5] = [As::Local, As::Remote, As::Unleased, As::Gateway, As::Itself];
const TARGETS: [To; 3] = [To::Local, To::Remote, To::Host];

/// One cell: what is sent, and what has to become of it.
#[derive(Clone, Copy, Debug)]
struct Cell {
    by: By,
    posing: As,
    to: To,
    family: IpFamily,
    policy: &'static str,
    rp_filter: u8,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by, posing, to, family, policy, rp_filter } = self;
        write!(f, "{by:?} as {posing:?} to {to:?}, {family}, FORWARD {policy}, rp_filter {rp_filter}")
    }
}

impl Cell {
    fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for (policy, rp_filter) in ["ACCEPT", "DROP"].into_iter().flat_map(|policy| (0..3).map(move |n| (policy, n))) {
            for family in IpFamily::BOTH {
                for (by, posing) in SENDERS.into_iter().flat_map(|by| POSES.map(|posing| (by, posing))) {
                    // A container that poses as a container of its own host says who it is, as far as can be told
                    // there.
                    let is_told = by != By::Container || !matches!(posing, As::Local | As::Itself);
                    let targets = TARGETS.into_iter().filter(|to| is_told && (by, *to) != (By::Container, To::Local));
                    cells.extend(targets.map(|to| Self { by, posing, to, family, policy, rp_filter }));
                }
            }
        }
        cells
    }

    /// Returns true if the packet arrives because it cannot be told from a peer's: with direct routes every machine on
    /// the link looks alike. Where FORWARD drops, our rules let pass packets for this host's containers, and packets
    /// from peer to peer only where the network is its whole range; the lab's IPv4 has bounds.
    fn arrives(&self, backend: &str) -> bool {
        let is_let_pass = self.policy != "DROP" || self.to != To::Remote || self.family == IpFamily::V6;
        backend == "host-gw" && self.by == By::Stranger && self.posing == As::Remote && is_let_pass
    }
}

/// The targets that listen: containers by packet sockets, the host by a service.
struct Targets {
    local: Counter,
    remote: Counter,
    host: UdpSocket,
}

impl Targets {
    fn new(field: &Field) -> Self {
        let host = inside(&field.host(VICTIM), || {
            // At every address of both families.
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, SERVICE)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        Self {
            local: Counter::start(&field.lab.container(VICTIM), &[]),
            remote: Counter::start(&field.lab.container(LIAR), &[]),
            host,
        }
    }

    /// Returns the numbers of the cells whose packets arrived, wherever.
    fn arrived(&self) -> BTreeSet<u32> {
        pause(UNDER_WAY);
        let mut numbers: BTreeSet<u32> = [&self.local, &self.remote]
            .into_iter()
            .flat_map(Counter::arrivals)
            .filter_map(|arrival| number(&arrival.frame))
            .collect();
        let mut buffer = [0; 256];
        while let Ok(length) = self.host.recv(&mut buffer) {
            numbers.extend(number(&buffer[..length]));
        }
        numbers
    }
}

/// Returns the payload by which a packet is told, wherever it turns up.
fn payload(number: u32) -> Vec<u8> {
    [&MAGIC[..], &number.to_be_bytes()].concat()
}

fn number(bytes: &[u8]) -> Option<u32> {
    let at = bytes.windows(MAGIC.len()).position(|window| window == MAGIC)? + MAGIC.len();
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().unwrap()))
}

/// Makes a bridge of another engine on the host with a guest, in the container's namespace of the machine without an
/// agent.
fn guest(field: &Field) -> Namespace {
    let (host, guest) = (field.host(VICTIM), field.lab.container(STRANGER));
    let (h, g) = (&host.0, &guest.0);
    wire(
        &[
            format!("ip netns add {g}"),
            format!("ip -n {h} link add docker0 type bridge forward_delay 0"),
            format!("ip -n {h} addr add 172.17.0.1/16 dev docker0"),
            format!("ip -n {h} addr add fd17::1/64 dev docker0 nodad"),
            format!("ip -n {h} link set docker0 up"),
            format!("ip -n {h} link add guest type veth peer name eth0 netns {g}"),
            format!("ip -n {h} link set guest master docker0 up"),
            format!("ip -n {g} addr add 172.17.0.2/16 dev eth0"),
            format!("ip -n {g} addr add fd17::2/64 dev eth0 nodad"),
            format!("ip -n {g} link set lo up"),
            format!("ip -n {g} link set eth0 up"),
            format!("ip -n {g} route add default via 172.17.0.1"),
            format!("ip -n {g} -6 route add default via fd17::1"),
        ]
        .map(|line| CommandLine::words(&line)),
    );
    guest
}

/// Sets how sources are checked on every device of the host, and the policy of FORWARD. Waits until members still reach
/// each other.
fn configure(field: &Field, policy: &str, rp_filter: u8) {
    let host = field.host(VICTIM);
    let set = format!("for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {rp_filter} > $file; done");
    let ran = host.run(&["sh", "-c", &set]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for program in ["iptables-nft", "ip6tables-nft"] {
        host.ok(&format!("{program} -P FORWARD {policy}"));
    }
    for family in IpFamily::BOTH {
        assert_reaches(&field.lab.container(VICTIM), field.container(LIAR, family));
        assert_reaches(&field.lab.container(FRIEND), field.container(VICTIM, family));
        assert_reaches(&field.lab.container(FRIEND), field.subnet(VICTIM, family).addr());
    }
}

fn matrix(backend: &'static str) {
    let mut field = Field::with(backend, Families::Dual);
    assert_all_pairs(&field.lab, &field.agents);
    let guest = guest(&field);
    let stranger = field.host(STRANGER);
    for family in IpFamily::BOTH {
        let (network, option) = if family == IpFamily::V4 { ("10.100.0.0/16", "") } else { ("fd00:100::/56", "-6 ") };
        stranger.ok(&format!("ip {option}route add {network} via {}", field.outer(VICTIM, family)));
    }
    let senders = [stranger, guest, field.lab.container(VICTIM)].map(|namespace| Sender::new(&namespace));
    let targets = Targets::new(&field);
    let cells = Cell::all();
    let send = |cell: &Cell, number: u32| {
        let sender = &senders[SENDERS.iter().position(|by| *by == cell.by).unwrap()];
        let (source, target) = (source(&field, cell), target(&field, cell));
        let packet = udp_ip(source, target, SERVICE, SERVICE, &payload(number));
        assert!(sender.send(target, &packet), "{cell}: the sender's own kernel does not let it out");
    };
    let mut set = None;
    for (number, cell) in (0..).zip(&cells) {
        if set != Some((cell.policy, cell.rp_filter)) {
            // What was sent under the last settings is judged by them.
            pause(UNDER_WAY);
            configure(&field, cell.policy, cell.rp_filter);
            set = Some((cell.policy, cell.rp_filter));
        }
        send(cell, number);
    }
    let arrived = targets.arrived();
    let mut wrong = Vec::new();
    for (number, cell) in (0..).zip(&cells) {
        let (arrives, expected) = (arrived.contains(&number), cell.arrives(backend));
        let word = |arrives| if arrives { "arrives" } else { "dropped" };
        eprintln!("{backend}: {cell}: {}", word(arrives));
        // Strict filtering may drop more than the table does.
        if arrives != expected && (arrives || cell.rp_filter != 1) {
            wrong.push(format!("{cell}: {}, expected: {}", word(arrives), word(expected)));
        }
    }
    assert!(wrong.is_empty(), "{backend}: {} of {} cells:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
    published(&field, &senders[0], &targets);
    if backend == "vxlan" {
        out_of_the_tunnel(&field, &targets);
    }
    opened(&mut field, &senders, &targets);
    // The same packets arrive by the network's own way.
    wait_until("members' packets are seen where those of others are looked for", SOON, || {
        for (family, base) in IpFamily::BOTH.into_iter().zip([1_000_000, 1_000_100]) {
            let friend = Sender::new(&field.lab.container(FRIEND));
            let own = field.container(FRIEND, family);
            let to =
                [field.container(VICTIM, family), field.container(LIAR, family), field.subnet(VICTIM, family).addr()];
            for (number, to) in (base..).zip(to) {
                friend.send(to, &udp_ip(own, to, SERVICE, SERVICE, &payload(number)));
            }
        }
        let missing: Vec<u32> = [0, 1, 2, 100, 101, 102].map(|number| 1_000_000 + number).into();
        let arrived = targets.arrived();
        let missing: Vec<u32> = missing.into_iter().filter(|number| !arrived.contains(number)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    });
}

/// A published port is for everybody, also where it is an address of the network that does the publishing.
fn published(field: &Field, stranger: &Sender, targets: &Targets) {
    configure(field, "ACCEPT", 2);
    let host = field.host(VICTIM);
    for rule in [
        "add table inet published".to_owned(),
        "add chain inet published pre { type nat hook prerouting priority -100 ; }".to_owned(),
        format!(
            "add rule inet published pre meta nfproto ipv4 udp dport {PUBLISHED} dnat ip to {}:{SERVICE}",
            field.container(VICTIM, IpFamily::V4)
        ),
        format!(
            "add rule inet published pre meta nfproto ipv6 udp dport {PUBLISHED} dnat ip6 to [{}]:{SERVICE}",
            field.container(VICTIM, IpFamily::V6)
        ),
    ] {
        host.ok(&format!("nft {rule}"));
    }
    wait_until("published ports are reached", SOON, || {
        for (family, number) in IpFamily::BOTH.into_iter().zip([2_000_000, 2_000_001]) {
            let to = field.outer(VICTIM, family);
            let from = itself(field, By::Stranger, family);
            stranger.send(to, &udp_ip(from, to, SERVICE, PUBLISHED, &payload(number)));
        }
        let arrived = targets.arrived();
        if [2_000_000, 2_000_001].iter().all(|number| arrived.contains(number)) {
            Ok(())
        } else {
            Err(format!("{arrived:?}"))
        }
    });
}

/// A peer's packets to addresses of this host other than its own in the network: a service at every address does not
/// get them, only those for the one.
fn out_of_the_tunnel(field: &Field, targets: &Targets) {
    let liar = Sender::new(&field.host(LIAR));
    let send = |family, to: IpAddr, number| {
        let outer = field.outer(VICTIM, family);
        let inner = udp_ip(field.container(LIAR, family), to, SERVICE, SERVICE, &payload(number));
        let ethertype = if family == IpFamily::V4 { 0x0800 } else { 0x86dd };
        let frame = ethernet(mac(&field.host(VICTIM), tunnel(family)), ethertype, &inner);
        let packet = udp_ip(field.outer(LIAR, family), outer, SERVICE, PORT, &vxlan(0x08, VNI, 0, &frame));
        assert!(liar.send(outer, &packet));
    };
    let others: [(IpFamily, &str); 7] = [
        (IpFamily::V4, "172.17.0.1"),
        (IpFamily::V4, "192.168.33.11"),
        (IpFamily::V4, "224.0.0.1"),
        (IpFamily::V4, "255.255.255.255"),
        (IpFamily::V6, "fd17::1"),
        (IpFamily::V6, "fd33::11"),
        (IpFamily::V6, "ff02::1"),
    ];
    let IpNet::V4(own) = field.subnet(VICTIM, IpFamily::V4) else { panic!("a subnet of the family") };
    let broadcast = (IpFamily::V4, own.broadcast().into());
    let others = others.map(|(family, text)| (family, text.parse().unwrap())).into_iter().chain([broadcast]);
    let others: Vec<(u32, (IpFamily, IpAddr))> = (3_000_000..).zip(others).collect();
    for (number, (family, to)) in &others {
        send(*family, *to, *number);
    }
    for (family, number) in IpFamily::BOTH.into_iter().zip([3_000_100, 3_000_101]) {
        send(family, field.subnet(VICTIM, family).addr(), number);
    }
    let arrived = targets.arrived();
    for number in [3_000_100, 3_000_101] {
        assert!(arrived.contains(&number), "{number}: this host's own address in the network: {arrived:?}");
    }
    let wrong: Vec<_> = others.iter().filter(|(number, _)| arrived.contains(number)).collect();
    assert!(wrong.is_empty(), "out of the tunnel to {wrong:?}");
}

/// The host's user opens the network to the stranger and the guest, and the store to containers. They get there,
/// whatever FORWARD's policy is. Before, containers and guests do not reach the store.
fn opened(field: &mut Field, senders: &[Sender], targets: &Targets) {
    let store: SocketAddr = "192.168.33.10:2379".parse().unwrap();
    let reaches_store = |namespace: &Namespace| {
        let connected = inside(namespace, || TcpStream::connect_timeout(&store, Duration::from_millis(500)));
        connected.is_ok()
    };
    let guest = field.lab.container(STRANGER);
    // Plain Docker would.
    for rule in [
        "add table ip foreign",
        "add chain ip foreign post { type nat hook postrouting priority 100 ; }",
        "add rule ip foreign post ip saddr 172.17.0.0/16 masquerade",
    ] {
        field.host(VICTIM).ok(&format!("nft {rule}"));
    }
    for namespace in [&field.lab.container(VICTIM), &guest] {
        assert!(!reaches_store(namespace), "{} reaches the store", namespace.0);
    }
    assert!(reaches_store(&field.host(VICTIM)), "the host itself");
    let agent = &mut field.agents[usize::from(VICTIM - 1)];
    agent.end(Signal::SIGTERM);
    agent.arguments.extend(
        ["--expose=192.168.33.0/24", "--expose=fd33::/64", "--expose=docker0", "--containers-reach-store"]
            .map(str::to_owned),
    );
    agent.start();
    agent.wait_converged(2);
    for namespace in [&field.lab.container(VICTIM), &guest] {
        wait_until("containers reach the store if they may", SOON, || {
            if reaches_store(namespace) { Ok(()) } else { Err(namespace.0.clone()) }
        });
    }
    for (policy, base) in [("ACCEPT", 4_000_000), ("DROP", 4_000_100)] {
        configure(field, policy, 2);
        let mut expected = BTreeMap::new();
        let senders = [(By::Stranger, &senders[0]), (By::Guest, &senders[1])];
        let cells = senders.into_iter().flat_map(|(by, sender)| IpFamily::BOTH.map(|family| (by, sender, family)));
        let cells = cells.flat_map(|cell| [To::Local, To::Remote].map(|to| (cell, to)));
        for (number, ((by, sender, family), to)) in (base..).zip(cells) {
            let target = if to == To::Local { field.container(VICTIM, family) } else { field.container(LIAR, family) };
            let packet = udp_ip(itself(field, by, family), target, SERVICE, SERVICE, &payload(number));
            assert!(sender.send(target, &packet));
            expected.insert(number, format!("{by:?} to {to:?}, {family}, FORWARD {policy}"));
        }
        let arrived = targets.arrived();
        let missing: Vec<&String> =
            expected.iter().filter(|(number, _)| !arrived.contains(number)).map(|(_, what)| what).collect();
        assert!(missing.is_empty(), "exposed, but did not arrive: {missing:?}");
    }
}

/// Returns the address a cell's sender poses with.
fn source(field: &Field, cell: &Cell) -> IpAddr {
    let nth = |number: u8| field.subnet(number, cell.family).trunc().hosts().nth(76).unwrap();
    match cell.posing {
        As::Local => nth(VICTIM),
        As::Remote => nth(FRIEND),
        As::Unleased => match cell.family {
            // In a subnet that is handed out, but to nobody.
            IpFamily::V4 => {
                let leased = |at: &IpAddr| {
                    field.agents.iter().any(|agent| agent.subnet().gateways().any(|net| net.contains(at)))
                };
                let mut free = (190..200).map(|octet| IpAddr::from([10, 100, octet, 7])).filter(|at| !leased(at));
                free.next().unwrap()
            }
            IpFamily::V6 => "fd00:100:0:fe:1234::7".parse().unwrap(),
        },
        As::Gateway => field.subnet(VICTIM, cell.family).addr(),
        As::Itself => itself(field, cell.by, cell.family),
    }
}

fn itself(field: &Field, by: By, family: IpFamily) -> IpAddr {
    match (by, family) {
        (By::Stranger, _) => field.outer(STRANGER, family),
        (By::Guest, IpFamily::V4) => "172.17.0.2".parse().unwrap(),
        (By::Guest, IpFamily::V6) => "fd17::2".parse().unwrap(),
        (By::Container, _) => field.container(VICTIM, family),
    }
}

fn target(field: &Field, cell: &Cell) -> IpAddr {
    match cell.to {
        To::Local => field.container(VICTIM, cell.family),
        To::Remote => field.container(LIAR, cell.family),
        To::Host => field.subnet(VICTIM, cell.family).addr(),
    }
}
