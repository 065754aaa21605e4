//! By which way a packet comes decides whether its source is believed: every sender, posing as everybody, to every target, over
//! every backend and family, whatever reverse-path filtering and a policy of FORWARD do. Each combination is a cell of one
//! table, which is printed.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use flatnet_agent::lab::command_line::CommandLine;
use flatnet_model::IpFamily;
use flatnet_tests::Families;
use flatnet_tests::lab::wire;
use flatnet_tests::netns::Namespace;
use flatnet_tests::pinger::{assert_all_pairs, assert_reaches};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, pause, wait_until};

use crate::counter::Counter;
use crate::field::{FRIEND, Field, LIAR, STRANGER, VICTIM};
use crate::packet::{MAGIC, udp_ip};
use crate::sender::{Sender, inside};

pub fn tests() -> Vec<Test> {
    let of = |backend: &'static str| {
        Test::new(format!("a_source_is_believed_only_by_its_own_way::{backend}"), move || matrix(backend))
            .on_backend(backend)
    };
    ["vxlan", "gre", "wireguard", "host-gw"].map(of).into()
}

/// Where services listen.
const SERVICE: u16 = 7;
/// How long what was sent last may be under way.
const UNDER_WAY: Duration = Duration::from_millis(300);

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// A machine on the link that no agent runs on; the host is its router towards the network.
    Stranger,
    /// A guest on another bridge of the host, as plain Docker's.
    Guest,
    /// A container of the network on the host.
    Container,
}

/// Whose address it sends with.
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
}

/// To whom.
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
const POSES: [As; 4] = [As::Local, As::Remote, As::Unleased, As::Gateway];
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
                    // Posing as a container of its own host a container says who it is, as far as can be told there.
                    let is_told = (by, posing) != (By::Container, As::Local);
                    let targets = TARGETS.into_iter().filter(|to| is_told && (by, *to) != (By::Container, To::Local));
                    cells.extend(targets.map(|to| Self { by, posing, to, family, policy, rp_filter }));
                }
            }
        }
        cells
    }

    /// Whether it cannot be told from a peer's: with direct routes every machine on the link looks alike.
    fn arrives(&self, backend: &str) -> bool {
        backend == "host-gw" && self.by == By::Stranger && self.posing == As::Remote
    }
}

/// What listens: containers by packet sockets, the host by a service.
struct Targets {
    local: Counter,
    remote: Counter,
    host: Vec<UdpSocket>,
}

impl Targets {
    fn new(field: &Field) -> Self {
        let host = inside(&field.host(VICTIM), || {
            IpFamily::BOTH.map(|family| {
                let socket = UdpSocket::bind((field.subnet(VICTIM, family).addr(), SERVICE)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            })
        });
        Self {
            local: Counter::start(&field.lab.container(VICTIM), &[]),
            remote: Counter::start(&field.lab.container(LIAR), &[]),
            host: host.into(),
        }
    }

    /// The numbers of the cells whose packets arrived, wherever.
    fn arrived(&self) -> BTreeSet<u32> {
        pause(UNDER_WAY);
        let mut numbers: BTreeSet<u32> = [&self.local, &self.remote]
            .into_iter()
            .flat_map(Counter::arrivals)
            .filter_map(|arrival| number(&arrival.frame))
            .collect();
        let mut buffer = [0; 256];
        for socket in &self.host {
            while let Ok(length) = socket.recv(&mut buffer) {
                numbers.extend(number(&buffer[..length]));
            }
        }
        numbers
    }
}

/// What a packet is told by, wherever it turns up.
fn payload(number: u32) -> Vec<u8> {
    [&MAGIC[..], &number.to_be_bytes()].concat()
}

fn number(bytes: &[u8]) -> Option<u32> {
    let at = bytes.windows(MAGIC.len()).position(|window| window == MAGIC)? + MAGIC.len();
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().unwrap()))
}

/// A bridge of another engine on the host with a guest, in the container's namespace of the machine without an agent.
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

/// Sets how sources are checked on every device of the host, and what FORWARD does; waits until members still reach each
/// other.
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
    let field = Field::with(backend, Families::Dual);
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

/// The address a cell's sender poses with.
fn source(field: &Field, cell: &Cell) -> IpAddr {
    let nth = |number: u8| field.subnet(number, cell.family).trunc().hosts().nth(76).unwrap();
    match cell.posing {
        As::Local => nth(VICTIM),
        As::Remote => nth(FRIEND),
        As::Unleased => match cell.family {
            IpFamily::V4 => "10.100.250.7".parse().unwrap(),
            IpFamily::V6 => "fd00:100:0:fe:1234::7".parse().unwrap(),
        },
        As::Gateway => field.subnet(VICTIM, cell.family).addr(),
    }
}

fn target(field: &Field, cell: &Cell) -> IpAddr {
    match cell.to {
        To::Local => field.container(VICTIM, cell.family),
        To::Remote => field.container(LIAR, cell.family),
        To::Host => field.subnet(VICTIM, cell.family).addr(),
    }
}
