//! GRE and WireGuard with whatever carries them here: the kernel where it has the module, else this process.

use flatnet_core::object::{
    Datapath, Encap, GreLink, Link, LinkAddress, LinkKind, NeighbourKey, ObjectKey, RouteKey, RouteVia, WireguardLink,
    WireguardPeer, WireguardPeerKey,
};
use flatnet_core::op::{Action, Object, Op};
use flatnet_kernel::{Kernel, Questions, Scope};
use flatnet_model::{GreKey, IpFamily, Mtu, WireguardKey};

use crate::world::{Subject, address, create, hop, key, link, name, on_device, op, public_key, route, shell, vxlan};

/// A port that nothing else here uses.
const PORT: u16 = 51_897;

/// Returns the datapath that carries GRE over `family`; for the fake it is this process. `None`: there is none, which
/// is reported.
async fn gre_carrier(world: &Subject, family: IpFamily) -> Option<Datapath> {
    let carrier = match world {
        Subject::Fake(_) => Some(Datapath::Userspace),
        Subject::Linux(kernel) => {
            let asked = Questions { gre: true, ..Questions::default() };
            kernel.facts(&asked).await.unwrap().host.features.gre.of(family)
        }
    };
    if carrier.is_none() {
        println!("NOT RUN: this kernel has no GRE over {family}, and /dev/net/tun cannot be opened");
    }
    carrier
}

async fn wireguard_carrier(world: &Subject) -> Option<Datapath> {
    let carrier = match world {
        Subject::Fake(_) => Some(Datapath::Userspace),
        Subject::Linux(kernel) => kernel.facts(&Questions::host([])).await.unwrap().host.features.wireguard,
    };
    if carrier.is_none() {
        println!("NOT RUN: this kernel has no WireGuard, and /dev/net/tun cannot be opened");
    }
    carrier
}

fn gre(tunnel_key: u32, datapath: Datapath) -> Link {
    let kind = LinkKind::Gre(GreLink { key: GreKey::new(tunnel_key), local: [192, 0, 2, 1].into(), datapath });
    Link { kind, mtu: Mtu::new(1472).unwrap(), mac: None, up: true }
}

/// Returns the objects of the path to a peer, as each datapath needs them.
fn gre_peer(device: &str, tunnel_key: u32, subnet: &str, remote: [u8; 4], datapath: Datapath) -> Vec<Object> {
    let net: ipnet::IpNet = subnet.parse().unwrap();
    match datapath {
        Datapath::Kernel => {
            let at = NeighbourKey { device: name(device), address: net.addr() };
            let via = RouteVia::Hop(hop(device, &net.addr().to_string()));
            vec![Object::Neighbour(at, LinkAddress::V4(remote.into())), route(subnet, via)]
        }
        Datapath::Userspace => {
            let (source, remote) = ([192, 0, 2, 1].into(), remote.into());
            let encap = Encap { device: name(device), source, remote, key: GreKey::new(tunnel_key) };
            vec![route(subnet, RouteVia::Encap(encap))]
        }
    }
}

pub async fn a_gre_tunnel_and_its_peers_are_as_asked_and_go_without_a_trace(world: &Subject) {
    let Some(datapath) = gre_carrier(world, IpFamily::V4).await else { return };
    let mut ops = vec![create(link("flatgre5", gre(5, datapath))), create(on_device("flatgre5", "10.0.1.0/32"))];
    let peers: Vec<Object> = [("10.0.2.0/24", [172, 16, 0, 2]), ("10.0.3.0/24", [172, 16, 0, 3])]
        .into_iter()
        .flat_map(|(subnet, remote)| gre_peer("flatgre5", 5, subnet, remote, datapath))
        .collect();
    ops.extend(peers.iter().cloned().map(create));
    world.done(&ops).await;
    let state = world.state().await;
    assert_eq!(state.links.get(&name("flatgre5")), Some(&gre(5, datapath)));
    assert_eq!((state.routes.len(), state.addresses.len()), (2, 1));
    if let Some(shown) = world.oracle("ip -j route show 10.0.2.0/24") {
        assert_eq!((&shown[0]["dev"], &shown[0]["protocol"]), (&"flatgre5".into(), &"91".into()), "{shown}");
    }
    // Everything that can be changed in place is, together with everything that stands on it.
    let smaller = Link { mtu: Mtu::new(1400).unwrap(), ..gre(5, datapath) };
    world.done(&[op(Action::Change, link("flatgre5", smaller.clone()))]).await;
    let changed = world.state().await;
    assert_eq!(changed.links.get(&name("flatgre5")), Some(&smaller));
    assert_eq!(changed.routes, state.routes);
    // A peer moves.
    for object in gre_peer("flatgre5", 5, "10.0.2.0/24", [172, 16, 0, 9], datapath) {
        world.done(&[op(Action::Change, object)]).await;
    }
    world.done(&[op(Action::Delete, peers.last().unwrap().clone())]).await;
    world.done(&[op(Action::Delete, link("flatgre5", smaller))]).await;
    let left = world.state().await;
    assert!(left.links.is_empty() && left.routes.is_empty() && left.neighbours.is_empty(), "{left:?}");
    if let Some(shown) = world.oracle("ip -j route show 10.0.0.0/8") {
        assert_eq!(shown.as_array().unwrap().len(), 0, "{shown}");
    }
}

pub async fn a_route_moves_between_a_gre_tunnel_and_another_device(world: &Subject) {
    let Some(datapath) = gre_carrier(world, IpFamily::V4).await else { return };
    let through_gre = gre_peer("flatgre5", 5, "10.0.2.0/24", [172, 16, 0, 2], datapath);
    let mut ops = vec![create(link("flatgre5", gre(5, datapath))), create(link("flat.1", vxlan(1, "192.0.2.1")))];
    ops.extend(through_gre.iter().cloned().map(create));
    world.done(&ops).await;
    let through_vxlan = route("10.0.2.0/24", RouteVia::Hop(hop("flat.1", "10.0.2.0")));
    let via = |object: &Object| if let Object::Route(_, route) = object { Some(route.via) } else { None };
    for wanted in [&through_vxlan, through_gre.last().unwrap(), &through_vxlan] {
        world.done(&[op(Action::Change, wanted.clone())]).await;
        assert_eq!(world.state().await.routes.get(&key("10.0.2.0/24")).map(|route| route.via), via(wanted));
    }
    // One route stays behind the other, and neither is taken for the other.
    let Some(RouteVia::Encap(encap)) = through_gre.last().and_then(via) else { return };
    let behind = RouteKey::behind("10.0.2.0/24".parse().unwrap(), 1);
    let object = Object::Route(behind, flatnet_core::object::Route { via: RouteVia::Encap(encap), source: None });
    world.done(&[create(object.clone())]).await;
    assert_eq!(world.state().await.routes.len(), 2);
    world.done(&[op(Action::Delete, object)]).await;
    assert_eq!(world.state().await.routes.get(&key("10.0.2.0/24")).map(|route| route.via), via(&through_vxlan));
}

fn wireguard(port: u16, datapath: Datapath) -> Link {
    let kind = LinkKind::Wireguard(WireguardLink { port, public_key: Some(public_key()), datapath });
    Link { kind, mtu: Mtu::new(1420).unwrap(), mac: None, up: true }
}

fn wireguard_peer(number: u8, allowed: &[&str]) -> Object {
    let device = name(&format!("flatwg.{PORT}"));
    let key = WireguardPeerKey { device, public_key: WireguardKey::new([number; 32]).unwrap() };
    let endpoint = Some((address(&format!("172.16.0.{number}")), PORT).into());
    let allowed = allowed.iter().map(|net| net.parse().unwrap()).collect();
    Object::WireguardPeer(key, WireguardPeer { endpoint, keepalive_secs: 0, psk: None, allowed })
}

/// Returns a tunnel of each kind that can be had here, with a peer each; a WireGuard device has two.
pub async fn every_tunnel(world: &Subject) -> Vec<Op> {
    let mut ops = Vec::new();
    if let Subject::Linux(_) = world {
        // The socket of a WireGuard device in user space is this test's own.
        shell("mount -t tmpfs none /run");
    }
    if let Some(datapath) = gre_carrier(world, IpFamily::V4).await {
        ops.push(create(link("flatgre5", gre(5, datapath))));
        let peer = gre_peer("flatgre5", 5, "10.6.2.0/24", [172, 16, 0, 2], datapath);
        ops.extend(peer.into_iter().map(create));
    }
    if let Some(datapath) = wireguard_carrier(world).await {
        ops.push(create(link(&format!("flatwg.{PORT}"), wireguard(PORT, datapath))));
        ops.extend([wireguard_peer(2, &["10.7.2.0/24"]), wireguard_peer(3, &["10.7.3.0/24"])].map(create));
    }
    // In the order of a plan.
    ops.sort_by_key(|op| op.object.kind());
    ops
}

pub async fn a_wireguard_device_and_its_peers_are_as_asked(world: &Subject) {
    let Some(datapath) = wireguard_carrier(world).await else { return };
    let device = format!("flatwg.{PORT}");
    if let Subject::Linux(_) = world {
        // Its socket is this test's own.
        shell("mount -t tmpfs none /run");
    }
    let look = async || world.look(&Scope::also([ObjectKey::Link(name(&device))])).await.state;
    let (two, three) = (wireguard_peer(2, &["10.0.2.0/24"]), wireguard_peer(3, &["10.0.3.0/24", "fd00:3::/64"]));
    let ops: Vec<Op> = [link(&device, wireguard(PORT, datapath)), two.clone(), three.clone()].map(create).into();
    world.done(&ops).await;
    let state = look().await;
    assert_eq!(state.links.get(&name(&device)), Some(&wireguard(PORT, datapath)));
    let peers = |state: &flatnet_core::object::KernelState| {
        state.wireguard_peers.iter().map(|(key, peer)| Object::WireguardPeer(*key, peer.clone())).collect::<Vec<_>>()
    };
    assert_eq!(peers(&state), [two.clone(), three.clone()]);
    // A prefix that is given to one peer is taken from the other, which keeps the rest.
    let more = wireguard_peer(2, &["10.0.2.0/24", "10.0.3.0/24"]);
    world.done(&[op(Action::Change, more.clone())]).await;
    let less = wireguard_peer(3, &["fd00:3::/64"]);
    if datapath == Datapath::Userspace {
        // The process's own device goes on listing it for the other too, until that peer is set.
        world.done(&[op(Action::Change, less.clone())]).await;
    }
    assert_eq!(peers(&look().await), [more.clone(), less]);
    world.done(&[op(Action::Delete, more)]).await;
    assert_eq!(look().await.wireguard_peers.len(), 1);
    world.done(&[op(Action::Delete, link(&device, wireguard(PORT, datapath)))]).await;
    let left = look().await;
    assert!(left.links.is_empty() && left.wireguard_peers.is_empty(), "{left:?}");
    if let Some(shown) = world.oracle("ip -j link show") {
        assert!(!shown.to_string().contains("flatwg"), "{shown}");
    }
}
