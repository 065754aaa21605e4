//! No guard, no tunnel, for whatever reason the ruleset fails.

use std::collections::BTreeMap;

use flatnet_core::object::{
    Datapath, GreLink, IptablesChain, IptablesKey, IptablesRule, IptablesVariant, Link, LinkKind, RouteVia, Ruleset,
    WireguardLink,
};
use flatnet_core::op::{Action, Object, ObjectKind, Op, OpOutcome};
use flatnet_core::plan::close_tunnels;
use flatnet_kernel::fake::Strike;
use flatnet_model::{GreKey, IpFamily, Mtu};

use crate::world::{
    Subject, bridge, create, fdb, hop, link, mac, name, neighbour, nexthop, on_device, op, public_key, route, shell,
    sysctl, vxlan,
};

/// Returns a ruleset that nft(8) cannot read and the fake is told to refuse.
fn refused_ruleset() -> Object {
    Object::Ruleset { ruleset: Ruleset { body: "\tno such statement\n".to_owned() }, elements: Vec::new() }
}

fn refuse(world: &Subject) {
    world.behind(|fake| fake.fail(Strike::Kind(ObjectKind::Ruleset), libc::EINVAL), "true");
}

fn tunnel(kind: LinkKind) -> Link {
    Link { kind, mtu: Mtu::new(1400).unwrap(), mac: None, up: true }
}

/// Returns every kind of tunnel, each with something that stands on it.
fn tunnels() -> Vec<Object> {
    let key = GreKey::new(5);
    let gre = GreLink { key, local: [192, 0, 2, 1].into(), datapath: Datapath::Userspace };
    let wireguard = WireguardLink { port: 51_896, public_key: Some(public_key()), datapath: Datapath::Userspace };
    vec![
        link("flat.1", vxlan(1, "192.0.2.1")),
        link("flatgre5", tunnel(LinkKind::Gre(gre))),
        link("flat6gre", tunnel(LinkKind::Gre6(Datapath::Userspace))),
        link("flatwg.51896", tunnel(LinkKind::Wireguard(wireguard))),
        sysctl("net/ipv6/conf/flat.1/accept_ra", "0"),
        sysctl("net/ipv4/ip_forward", "1"),
        on_device("flat.1", "10.0.0.1/32"),
        on_device("flatgre5", "10.0.0.1/32"),
        neighbour("flat.1", "10.0.1.0", mac(1)),
        fdb("flat.1", mac(1), "172.16.0.1"),
        nexthop(7, "flat.1", "10.0.1.0"),
        route("10.0.1.0/24", RouteVia::Object(flatnet_core::object::NexthopId(7))),
        route("10.0.2.0/24", RouteVia::Hop(hop("flatgre5", "10.0.2.0"))),
        Object::Iptables(
            IptablesKey {
                variant: IptablesVariant::Nft,
                family: IpFamily::V4,
                chain: IptablesChain::Input,
                comment: "flatnet:default:tunnel".to_owned(),
            },
            IptablesRule { matches: "-p udp -m udp --dport 8472".split(' ').map(str::to_owned).collect() },
        ),
    ]
}

async fn is_guarded(world: &Subject) -> bool {
    match world {
        Subject::Fake(kernel) => flatnet_kernel::is_guarded(kernel).await,
        Subject::Linux(kernel) => flatnet_kernel::is_guarded(kernel).await,
    }
}

pub async fn without_a_guard_no_tunnel_opens_and_nothing_of_it_is_made(world: &Subject) {
    world.behind(|_| (), "mount -t tmpfs none /run; echo 0 > /proc/sys/net/ipv4/ip_forward");
    refuse(world);
    let harmless = [link("flbr0", bridge()), route("10.0.0.0/16", RouteVia::Unreachable)];
    let mut ops = vec![create(refused_ruleset())];
    ops.extend(tunnels().into_iter().map(create));
    let tunnels = ops.len() - 1;
    ops.extend(harmless.map(create));
    let outcomes = world.apply(&ops).await;
    assert!(matches!(outcomes[0], OpOutcome::Failed(_)), "{:?}", outcomes[0]);
    for (op, outcome) in ops.iter().zip(&outcomes).skip(1).take(tunnels) {
        assert_eq!(*outcome, OpOutcome::Skipped, "{:?} {}", op.action, op.object);
    }
    assert!(outcomes[tunnels + 1..].iter().all(|outcome| *outcome == OpOutcome::Done), "{outcomes:?}");
    assert!(!is_guarded(world).await);
    let state = world.state().await;
    assert_eq!(state.links.keys().map(ToString::to_string).collect::<Vec<_>>(), ["flbr0"]);
    assert_eq!((state.routes.len(), state.addresses.len(), state.iptables), (1, 0, BTreeMap::new()));
    if let Subject::Linux(_) = world {
        assert_eq!(shell("ip -br link | wc -l").trim(), "2", "lo and the bridge: {}", shell("ip -br link"));
        assert_eq!(shell("nft list tables"), "");
        assert_eq!(shell("cat /proc/sys/net/ipv4/ip_forward").trim(), "0", "no router either");
    }
}

pub async fn a_guard_that_cannot_be_changed_guards_what_is_there_and_nothing_new(world: &Subject) {
    let (ruleset, elements) = crate::firewall::wanted();
    world.done(&[create(Object::Ruleset { ruleset, elements }), create(link("flat.1", vxlan(1, "192.0.2.1")))]).await;
    refuse(world);
    let new = vxlan(2, "192.0.2.1");
    let ops = [
        op(Action::Change, refused_ruleset()),
        create(link("flat.2", new)),
        create(on_device("flat.2", "10.1.0.1/32")),
        create(neighbour("flat.1", "10.0.1.0", mac(1))),
        op(Action::Change, link("flat.1", Link { mtu: Mtu::new(1400).unwrap(), ..vxlan(1, "192.0.2.1") })),
    ];
    let outcomes = world.apply(&ops).await;
    assert!(
        matches!(
            &outcomes[..],
            [OpOutcome::Failed(_), OpOutcome::Skipped, OpOutcome::Skipped, OpOutcome::Done, OpOutcome::Done]
        ),
        "{outcomes:?}"
    );
    assert!(is_guarded(world).await);
    // The guard is gone and cannot be loaded again. Tunnels that are open are closed, and stay so until there is a
    // guard.
    match world {
        Subject::Fake(fake) => fake.edit(|state| state.ruleset = None),
        // Nobody else deletes the copy that this process holds; an agent that starts has none.
        Subject::Linux(_) => world.done(&[op(Action::Delete, refused_ruleset())]).await,
    }
    assert!(!is_guarded(world).await);
    let open = world.state().await;
    world.done(&close_tunnels(&open)).await;
    let closed = world.state().await;
    assert!(closed.links.values().all(|link| !link.up) && closed.links.len() == open.links.len(), "{closed:?}");
    let ops: Vec<Op> = [create(refused_ruleset())]
        .into_iter()
        .chain(open.links.iter().map(|(name, link)| op(Action::Change, Object::Link(*name, link.clone()))))
        .chain([create(nexthop(7, "flat.1", "10.0.1.0"))])
        .collect();
    let outcomes = world.apply(&ops).await;
    assert!(matches!(&outcomes[..], [OpOutcome::Failed(_), OpOutcome::Skipped, OpOutcome::Skipped]), "{outcomes:?}");
    assert_eq!(world.state().await.links.get(&name("flat.1")).map(|link| link.up), Some(false));
}

/// A port is not opened to everybody for a device that could not be made: whoever listens there instead is not ours.
pub async fn no_port_is_opened_for_a_wireguard_device_that_is_not_there(world: &Subject) {
    world.behind(|fake| fake.fail(Strike::Kind(ObjectKind::Link), libc::EADDRINUSE), "mount -t tmpfs none /run");
    let wireguard = WireguardLink { port: 51_895, public_key: Some(public_key()), datapath: Datapath::Userspace };
    // The device's name is somebody else's.
    world.behind(|_| (), "ip link add flatwg.51895 type bridge");
    let rule = |comment: &str, port: &str| {
        let (variant, family, chain) = (IptablesVariant::Nft, IpFamily::V4, IptablesChain::Input);
        let matches = format!("-p udp -m udp --dport {port}").split(' ').map(str::to_owned).collect();
        create(Object::Iptables(
            IptablesKey { variant, family, chain, comment: comment.to_owned() },
            IptablesRule { matches },
        ))
    };
    let ops = [
        create(link("flatwg.51895", tunnel(LinkKind::Wireguard(wireguard)))),
        rule("flatnet:a:tunnel", "51895"),
        rule("flatnet:b:tunnel", "51894"),
    ];
    let outcomes = world.apply(&ops).await;
    assert!(matches!(&outcomes[..], [OpOutcome::Failed(_), OpOutcome::Skipped, OpOutcome::Done]), "{outcomes:?}");
}
