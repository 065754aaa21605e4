use flatnet_model::PresharedKey;

use super::*;
use crate::desired::Desired;
use crate::fixture::{codes, config, device, facts, key, one, peer, underlay, wireguard, with};
use crate::object::{RouteKey, RouteVia};
use crate::outcome::PeerDecision;

const OWN: &str = "10.100.1.0-24";
const DUAL: &str = "10.100.1.0-24&fd00:100:0:1::-64";

fn v4() -> NetworkConfig {
    config(Some("10.100.0.0/16"), None, wireguard())
}

fn dual(mode: WireguardMode) -> NetworkConfig {
    let backend = flatnet_model::BackendConfig::Wireguard(WireguardConfig { mode, ..WireguardConfig::default() });
    config(Some("10.100.0.0/16"), Some("fd00:100::/48"), backend)
}

fn dual_peer(node: u8) -> Lease {
    let mut lease = peer(&format!("10.100.{node}.0-24&fd00:100:0:{node}::-64"), node, &wireguard());
    lease.public_ipv6 = Some(format!("2001:db8::{node}").parse().unwrap());
    lease
}

fn peers_of(desired: &Desired, name: &str) -> Vec<(WireguardKey, WireguardPeer)> {
    let peers = desired.state.wireguard_peers.iter().filter(|(at, _)| at.device == device(name));
    peers.map(|(at, peer)| (at.public_key, peer.clone())).collect()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn each_peer_is_allowed_its_lease_and_nothing_else() {
    let desired = one(&v4(), OWN, &[peer("10.100.2.0-24", 12, &wireguard()), peer("10.100.3.0-24", 13, &wireguard())]);
    assert_eq!(codes(&desired), [""; 0]);
    let link = &desired.state.links[&device("flatwg.51820")];
    let kind = WireguardLink { port: 51820, public_key: Some(key(0xa)), datapath: Datapath::Kernel };
    assert_eq!((&link.kind, link.mtu.get(), link.up, link.mac), (&LinkKind::Wireguard(kind), 1440, true, None));
    let expected: Vec<_> = [(12, "10.100.2.0/24"), (13, "10.100.3.0/24")]
        .map(|(node, net)| {
            let endpoint = Some(([192, 0, 2, node], 51820).into());
            (key(node), WireguardPeer { endpoint, keepalive_secs: 0, psk: None, allowed: nets(&[net]) })
        })
        .into();
    assert_eq!(peers_of(&desired, "flatwg.51820"), expected);
    let route = desired.state.routes[&RouteKey::to_peer("10.100.2.0/24".parse().unwrap())];
    let hop = NextHop { gateway: [0; 4].into(), device: device("flatwg.51820"), onlink: false };
    assert_eq!(route.via, RouteVia::Hop(hop));
    let unknown = RouteKey::unreachable("10.100.0.0/16".parse().unwrap());
    assert_eq!(desired.state.routes[&unknown].via, RouteVia::Unreachable);
    assert!(desired.networks[0].peers.iter().all(|peer| peer.keys().count() == 2), "{:?}", desired.networks[0].peers);
}

#[test]
fn separate_tunnels_have_a_device_for_each_family() {
    let desired = one(&dual(WireguardMode::Separate), DUAL, &[dual_peer(2)]);
    assert_eq!(codes(&desired), [""; 0]);
    assert_eq!(desired.networks[0].devices, [device("flatwg.51820"), device("flatwg.51821")]);
    assert_eq!(peers_of(&desired, "flatwg.51820")[0].1.allowed, nets(&["10.100.2.0/24"]));
    let (_, over_v6) = &peers_of(&desired, "flatwg.51821")[0];
    assert_eq!(over_v6.endpoint, Some("[2001:db8::2]:51821".parse().unwrap()));
    assert_eq!(over_v6.allowed, nets(&["fd00:100:0:2::/64"]));
    let mtu = |name| desired.state.links[&device(name)].mtu.get();
    assert_eq!((mtu("flatwg.51820"), mtu("flatwg.51821")), (1440, 1420));
}

#[test]
fn one_tunnel_carries_both_families_over_the_underlay_that_was_asked_for() {
    for (mode, endpoint, mtu) in [
        (WireguardMode::Auto, "192.0.2.2:51820", 1420),
        (WireguardMode::Ipv4, "192.0.2.2:51820", 1440),
        (WireguardMode::Ipv6, "[2001:db8::2]:51820", 1420),
    ] {
        let desired = one(&dual(mode), DUAL, &[dual_peer(2)]);
        assert_eq!(codes(&desired), [""; 0], "{mode:?}");
        assert_eq!(desired.networks[0].devices, [device("flatwg.51820")]);
        let (_, peer) = &peers_of(&desired, "flatwg.51820")[0];
        assert_eq!(peer.endpoint, Some(endpoint.parse().unwrap()), "{mode:?}");
        assert_eq!(peer.allowed, nets(&["10.100.2.0/24", "fd00:100:0:2::/64"]), "{mode:?}");
        assert_eq!(desired.state.links[&device("flatwg.51820")].mtu.get(), mtu, "{mode:?}");
        let off = |(sysctl, value): (&crate::object::Sysctl, &String)| {
            sysctl.path().ends_with("disable_ipv6") && value == "1"
        };
        assert!(!desired.state.sysctls.iter().any(off), "{mode:?}");
    }
}

#[test]
fn one_tunnel_needs_one_family_of_underlay_only() {
    let mut facts = facts();
    facts.interfaces[1].addresses.retain(|net| net.addr().is_ipv4());
    let mut underlay = underlay();
    (underlay.v6, underlay.public_v6) = (None, None);
    let desired = with(&facts, &underlay, &dual(WireguardMode::Auto), DUAL, &[dual_peer(2)]);
    assert_eq!(codes(&desired), [""; 0]);
    assert_eq!(peers_of(&desired, "flatwg.51820")[0].1.endpoint, Some("192.0.2.2:51820".parse().unwrap()));
    let desired = with(&facts, &underlay, &dual(WireguardMode::Separate), DUAL, &[dual_peer(2)]);
    assert_eq!(codes(&desired), ["underlay-family"]);
}

#[test]
fn what_a_peer_publishes_is_not_believed_blindly() {
    let good = peer("10.100.2.0-24", 12, &wireguard());
    for (code, change) in [
        ("peer-no-key", (|lease| lease.data = BackendData::None) as fn(&mut Lease)),
        ("duplicate-key", |lease| {
            lease.data = BackendData::Wireguard { public_key: key(0xa), port: None };
        }),
        // The good peer's key, from somewhere else, and in a younger lease.
        ("duplicate-key", |lease| {
            lease.data = BackendData::Wireguard { public_key: key(12), port: None };
        }),
        ("peer-no-address", |lease| lease.public_ip = None),
        ("duplicate-public-ip", |lease| lease.public_ip = Some([192, 0, 2, 10].into())),
    ] {
        let mut bad = peer("10.100.3.0-24", 13, &wireguard());
        change(&mut bad);
        let desired = one(&v4(), OWN, &[good.clone(), bad.clone()]);
        assert_eq!(codes(&desired), [code]);
        assert!(matches!(desired.networks[0].peers[1].decision, PeerDecision::Failed { .. }), "{code}");
        let programmed = peers_of(&desired, "flatwg.51820");
        assert_eq!(programmed.len(), 1, "{code}");
        assert_eq!(programmed[0].1.allowed, nets(&["10.100.2.0/24"]), "{code}");
        assert!(!desired.state.routes.contains_key(&RouteKey::to_peer("10.100.3.0/24".parse().unwrap())), "{code}");
    }
}

#[test]
fn a_host_with_a_left_over_lease_is_one_peer_with_both() {
    let (old, mut new) = (peer("10.100.2.0-24", 12, &wireguard()), peer("10.100.3.0-24", 12, &wireguard()));
    new.create_revision = 99;
    let desired = one(&v4(), OWN, &[old, new]);
    assert_eq!(codes(&desired), [""; 0]);
    let programmed = peers_of(&desired, "flatwg.51820");
    assert_eq!(programmed.len(), 1);
    assert_eq!(programmed[0].1.allowed, nets(&["10.100.2.0/24", "10.100.3.0/24"]));
}

#[test]
fn a_host_that_cannot_carry_it_says_so_and_makes_nothing() {
    let mut facts = facts();
    facts.features.wireguard = None;
    let desired = with(&facts, &underlay(), &v4(), OWN, &[peer("10.100.2.0-24", 12, &wireguard())]);
    assert_eq!(codes(&desired), ["wireguard-unsupported"]);
    assert!(crate::fixture::is_shut(&desired), "{:?}", desired.state);
}

#[test]
fn no_secret_is_in_what_is_printed() {
    let secret = "cHJlc2hhcmVkIHNlY3JldCBub2JvZHkgbWF5IHNlZSE=";
    let psk: PresharedKey = secret.parse().unwrap();
    let options = WireguardConfig { psk: Some(psk), ..WireguardConfig::default() };
    let config = config(Some("10.100.0.0/16"), None, flatnet_model::BackendConfig::Wireguard(options));
    let desired = one(&config, OWN, &[peer("10.100.2.0-24", 12, &wireguard())]);
    assert_eq!(peers_of(&desired, "flatwg.51820")[0].1.psk, Some(psk));
    let plan = crate::plan::plan(&desired.state, &crate::object::Dump::default(), crate::diff::Prune::Yes);
    let shown: String = plan.ops.iter().map(|op| format!("{op:?} {}", op.object)).collect();
    let bytes = format!("{:?}", psk.bytes());
    assert!(!shown.contains(secret) && !shown.contains(&bytes), "{shown}");
}

#[test]
fn a_peer_with_a_new_key_is_there_before_the_old_one_goes() {
    let mut lease = peer("10.100.2.0-24", 12, &wireguard());
    let before = one(&v4(), OWN, std::slice::from_ref(&lease)).state;
    lease.data = BackendData::Wireguard { public_key: key(77), port: None };
    let after = one(&v4(), OWN, &[lease]).state;
    let dump = crate::object::Dump { state: before, ..crate::object::Dump::default() };
    let ops = crate::plan::plan(&after, &dump, crate::diff::Prune::Yes).ops;
    let said: Vec<String> =
        ops.iter().map(|op| format!("{} {}", op.action.as_str(), op.object.kind().as_str())).collect();
    assert_eq!(said, ["create wireguard_peer", "delete wireguard_peer"]);
}

#[test]
fn the_lease_says_how_to_reach_this_host() {
    let publication = |config: &NetworkConfig| {
        let name = flatnet_model::NetworkName::default_network();
        crate::backend::publication(crate::fixture::NODE, Some(key(0xa)), &name, config, &underlay()).unwrap()
    };
    let separate = publication(&dual(WireguardMode::Separate));
    assert_eq!(separate.data, BackendData::Wireguard { public_key: key(0xa), port: Some(51820) });
    assert_eq!(separate.data_v6, BackendData::Wireguard { public_key: key(0xa), port: Some(51821) });
    let auto = publication(&dual(WireguardMode::Auto));
    assert_eq!(auto.data_v6, BackendData::Wireguard { public_key: key(0xa), port: Some(51820) });
    let v4 = publication(&v4());
    assert_eq!((v4.data_v6, v4.public_ipv6), (BackendData::None, None));
}
