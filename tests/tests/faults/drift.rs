//! Every kind of our objects deleted or changed by somebody else, one after the other: repaired within a second and
//! counted by kind.

use std::time::{Duration, Instant};

use flatnet_tests::Families;
use flatnet_tests::lab::Shape;
use flatnet_tests::suite::Test;

use crate::scene::{SECOND, Scene, assert_exact, drift, figure, ms, settled, shell, until_exact};

/// A change by somebody else: its name, the kind it is counted as, and a script.
type Doing = (&'static str, &'static str, &'static str);

/// The changes, with `$PEER` and `$PEER6` (the peer's subnets), `$NET` and `$NET6` (the network's), `$OWN` (our
/// tunnel's address), `$SET` and `$CHAIN` of our table.
const VXLAN: [Doing; 36] = [
    ("route deleted", "route", "ip route del $PEER"),
    ("route replaced", "route", "ip route replace $PEER dev eth0 proto 91"),
    ("IPv6 route deleted", "route", "ip -6 route del $PEER6"),
    ("unreachable route deleted", "route", "ip route del unreachable $NET proto 91 metric 91000"),
    ("unreachable IPv6 route deleted", "route", "ip -6 route del unreachable $NET6 proto 91 metric 91000"),
    (
        "all our routes flushed",
        "route",
        "for f in 4 6; do ip -$f route show proto 91 | sed 's/nhid [0-9]* //; s/ proto 91//; s/ pref medium//' | while read r; do ip -$f route del $r proto 91 || true; done; done",
    ),
    ("neighbour deleted", "neighbour", "ip neigh del ${PEER%/*} dev flat.1"),
    ("neighbour changed", "neighbour", "ip neigh replace ${PEER%/*} lladdr 02:00:00:00:00:99 nud permanent dev flat.1"),
    (
        "IPv6 neighbour deleted",
        "neighbour",
        "ip -6 neigh del $(ip -6 neigh show dev flat6.1 nud permanent | cut -d' ' -f1) dev flat6.1",
    ),
    ("neighbours flushed", "neighbour", "ip neigh flush dev flat.1 nud permanent"),
    ("forwarding entry deleted", "fdb", "bridge fdb del $PEERMAC dev flat.1"),
    ("forwarding entry changed", "fdb", "bridge fdb replace $PEERMAC dev flat.1 dst 192.168.33.99 self permanent"),
    (
        "foreign forwarding entry with a remote",
        "fdb",
        "bridge fdb append 02:00:00:00:00:98 dev flat.1 dst 192.168.33.98 self permanent",
    ),
    ("IPv6 forwarding entry deleted", "fdb", "bridge fdb del $PEERMAC6 dev flat6.1"),
    ("address deleted", "address", "ip addr del $OWN dev flat.1"),
    (
        "bridge address deleted",
        "address",
        "ip addr del $(ip -o -4 addr show dev flbr0 | tr -s ' ' | cut -d' ' -f4) dev flbr0",
    ),
    (
        "IPv6 bridge address deleted",
        "address",
        "ip -6 addr del $(ip -o -6 addr show dev flbr0 scope global | tr -s ' ' | cut -d' ' -f4) dev flbr0",
    ),
    ("foreign address on our device", "address", "ip addr add 172.30.0.1/32 dev flat.1"),
    ("nexthop deleted", "nexthop", "ip nexthop del id $NHID"),
    ("nexthop changed", "nexthop", "ip nexthop replace id $NHID via 192.168.33.12 dev eth0 proto 91"),
    ("ip_forward off", "sysctl", "sysctl -qw net.ipv4.ip_forward=0"),
    ("IPv6 forwarding off", "sysctl", "sysctl -qw net.ipv6.conf.all.forwarding=0"),
    ("forwarding of the device off", "sysctl", "sysctl -qw net/ipv4/conf/flat.1/forwarding=0"),
    ("forwarding of the bridge off", "sysctl", "sysctl -qw net/ipv4/conf/flbr0/forwarding=0"),
    ("IPv6 off on the device", "sysctl", "sysctl -qw net/ipv6/conf/flat6.1/disable_ipv6=1"),
    ("accept_ra of the device on", "sysctl", "sysctl -qw net/ipv6/conf/flat6.1/accept_ra=1"),
    ("MTU changed", "link", "ip link set flat.1 mtu 1400"),
    ("Ethernet address changed", "link", "ip link set flat.1 address 02:00:00:00:00:97"),
    // The agent may be faster than the last of it.
    (
        "device renamed",
        "link",
        "ip link set flat.1 down; ip link set flat.1 name other7; ip link set other7 up || true",
    ),
    ("learning switched on", "link", "ip link set flat.1 type vxlan learning"),
    ("nft table deleted", "ruleset", "nft delete table inet flatnet"),
    ("nft chain flushed", "ruleset", "nft flush chain inet flatnet guard"),
    ("nft rule added to our chain", "ruleset", "nft insert rule inet flatnet guard accept"),
    ("nft set flushed", "peer_source", "nft flush set inet flatnet peers4_1_24"),
    ("nft element added", "peer_source", "nft add element inet flatnet peers4_1_24 { 192.168.33.66 . 0x0a644200 }"),
    ("device set down", "link", "ip link set flat6.1 down"),
];

const HOST_GW: [Doing; 4] = [
    ("route deleted (host-gw)", "route", "ip route del $PEER"),
    ("route changed (host-gw)", "route", "ip route replace $PEER via 192.168.33.1 dev eth0 proto 91"),
    ("IPv6 route deleted (host-gw)", "route", "ip -6 route del $PEER6"),
    (
        "all our routes flushed (host-gw)",
        "route",
        "for f in 4 6; do ip -$f route show proto 91 | sed 's/nhid [0-9]* //; s/ proto 91//; s/ pref medium//' | while read r; do ip -$f route del $r proto 91 || true; done; done",
    ),
];

const GRE: [Doing; 9] = [
    ("route deleted (gre)", "route", "ip route del $PEER"),
    ("route replaced (gre)", "route", "ip route replace $PEER dev eth0 proto 91"),
    ("IPv6 route deleted (gre)", "route", "ip -6 route del $PEER6"),
    ("unreachable route deleted (gre)", "route", "ip route del unreachable $NET proto 91 metric 91000"),
    ("foreign address on our device (gre)", "address", "ip addr add 172.30.0.1/32 dev flatgre0"),
    ("MTU changed (gre)", "link", "ip link set flatgre0 mtu 1300"),
    ("IPv6 MTU changed (gre)", "link", "ip link set flat6gre mtu 1300"),
    ("nft table deleted (gre)", "ruleset", "nft delete table inet flatnet"),
    ("nft set flushed (gre)", "peer_source", "nft flush set inet flatnet $SET"),
];

const WIREGUARD: [Doing; 8] = [
    ("route deleted (wireguard)", "route", "ip route del $PEER"),
    ("route replaced (wireguard)", "route", "ip route replace $PEER dev eth0 proto 91"),
    ("IPv6 route deleted (wireguard)", "route", "ip -6 route del $PEER6"),
    ("unreachable IPv6 route deleted (wireguard)", "route", "ip -6 route del unreachable $NET6 proto 91 metric 91000"),
    ("foreign address on our device (wireguard)", "address", "ip addr add 172.30.0.1/32 dev flatwg.51820"),
    ("MTU changed (wireguard)", "link", "ip link set flatwg.51820 mtu 1300"),
    ("nft table deleted (wireguard)", "ruleset", "nft delete table inet flatnet"),
    ("nft rule added to our chain (wireguard)", "ruleset", "nft insert rule inet flatnet $CHAIN accept"),
];

pub fn tests() -> Vec<Test> {
    let shape = |backend| Shape { hosts: 2, backend, overlay: Families::Dual, underlay: Families::Dual };
    let mut tests = Vec::new();
    for (part, doings) in VXLAN.chunks(12).enumerate() {
        let name = format!("what_somebody_else_changes_is_repaired_and_counted::vxlan_{}", part + 1);
        tests.push(Test::new(name, move || each_is_repaired(&shape("vxlan"), doings)).on_backend("vxlan"));
    }
    let name = "what_somebody_else_changes_is_repaired_and_counted::host_gw";
    tests.push(Test::new(name, move || each_is_repaired(&shape("host-gw"), &HOST_GW)));
    for (name, doings) in [("gre", GRE.as_slice()), ("wireguard", WIREGUARD.as_slice())] {
        let title = format!("what_somebody_else_changes_is_repaired_and_counted::{name}");
        tests.push(Test::new(title, move || each_is_repaired(&shape(name), doings)).on_backend(name));
    }
    tests.push(Test::new("a_changed_alias_is_not_ours_to_take_back_silently", alias).on_backend("vxlan"));
    tests
}

/// Returns the names that scripts use.
fn names(scene: &Scene) -> String {
    let peer = scene.agents[1].subnet();
    let own = scene.agents[0].subnet();
    let host = scene.lab.host(1);
    let word = |line: &str| shell(&host, line).trim().to_owned();
    format!(
        "PEER={} PEER6={} OWN={}/32 NET=10.100.64.0/18 NET6=fd00:100::/56 PEERMAC={} PEERMAC6={} NHID={} SET={} CHAIN={}; ",
        peer.v4.map(|net| net.trunc().to_string()).unwrap_or_default(),
        peer.v6.map(|net| net.trunc().to_string()).unwrap_or_default(),
        own.v4.map(|net| net.network().to_string()).unwrap_or_default(),
        word("bridge fdb show dev flat.1 2>/dev/null | grep dst | cut -d' ' -f1 || true"),
        word("bridge fdb show dev flat6.1 2>/dev/null | grep dst | cut -d' ' -f1 || true"),
        word("ip nexthop show proto 91 | head -1 | cut -d' ' -f2"),
        word("nft list table inet flatnet | awk '/set peers4/ { print $2; exit }'"),
        word("nft list table inet flatnet | awk '/^\\tchain/ { print $2; exit }'"),
    )
}

fn each_is_repaired(shape: &Shape, doings: &[Doing]) {
    let scene = Scene::new(shape);
    let host = scene.lab.host(1);
    let before = settled(&host);
    let names = names(&scene);
    let mut slow = Vec::new();
    let mut worst = Duration::ZERO;
    for (what, kind, script) in doings {
        let counted = drift(&host, kind);
        let since = Instant::now();
        shell(&host, &format!("{names}{script}"));
        let took = until_exact(what, &host, &before, since);
        worst = worst.max(took);
        let counted = drift(&host, kind) - counted;
        figure(what, format!("exact after {}, drift {kind} +{counted}", ms(took)));
        if took > SECOND || counted == 0 {
            slow.push(format!("{what}: {took:?}, drift {kind} +{counted}"));
        }
    }
    assert_exact(&host, &before);
    assert!(slow.is_empty(), "later than a second, or not counted:\n{}", slow.join("\n"));
}

/// A device that lost our mark is no longer known as ours: it is reported as a conflict, and is right again once it is
/// gone or marked.
fn alias() {
    let scene = Scene::new(&Shape::vxlan(2));
    let host = scene.lab.host(1);
    let before = settled(&host);
    shell(&host, "ip link set flat.1 alias somebody");
    let since = Instant::now();
    scene.agents[0].wait_for_problem("foreign-object");
    let said = since.elapsed();
    let stream = scene.stream();
    shell(&host, "ip link set flat.1 alias flatnet");
    let since = Instant::now();
    let took = until_exact("alias put back", &host, &before, since);
    scene.agents[0].wait_converged(1);
    let losses = stream.stop();
    figure(
        "alias changed",
        format!(
            "said as a conflict after {}, exact {} after it was put back, {} lost",
            ms(said),
            ms(took),
            losses.lost.len()
        ),
    );
    assert!(said <= SECOND && losses.lost.is_empty());
    assert_exact(&host, &before);
}
