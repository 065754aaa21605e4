//! A host and its peers for tests: eth0 with 192.0.2.10/24 and 2001:db8::10/64 and an MTU of 1500.

use flatnet_model::{
    BackendConfig, BackendData, IfName, IpFamily, Lease, Mtu, NetworkConfig, NetworkName, NodeId, Pool, SubnetKey, Vni,
    VxlanConfig, WireguardConfig, WireguardKey,
};

use crate::backend::vtep_mac;
use crate::desired::{Desired, HostInput, NetworkInput, desired};
use crate::facts::{Features, GreSupport, HostFacts, Interface};
use crate::object::{Datapath, KernelState, RouteVia};
use crate::transition::Stage;
use crate::underlay::Underlay;

pub(crate) const NODE: NodeId = NodeId::new(0xa);

pub(crate) fn device(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

pub(crate) fn interface(name: &str, addresses: &[&str]) -> Interface {
    Interface {
        name: device(name),
        up: true,
        loopback: name == "lo",
        mtu: Some(Mtu::new(1500).unwrap()),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ours: false,
    }
}

pub(crate) fn facts() -> HostFacts {
    HostFacts {
        interfaces: vec![interface("lo", &["127.0.0.1/8"]), interface("eth0", &["192.0.2.10/24", "2001:db8::10/64"])],
        features: Features {
            nexthop_objects: true,
            ipv6: true,
            wireguard: Some(Datapath::Kernel),
            gre: gre(Datapath::Kernel),
        },
        ..HostFacts::default()
    }
}

pub(crate) fn gre(datapath: Datapath) -> GreSupport {
    GreSupport { v4: Some(datapath), v6: Some(datapath) }
}

pub(crate) fn underlay() -> Underlay {
    let (v4, v6) = (Some("192.0.2.10".parse().unwrap()), Some("2001:db8::10".parse().unwrap()));
    Underlay { device: device("eth0"), mtu: Mtu::new(1500).unwrap(), v4, v6, public_v4: v4, public_v6: v6 }
}

pub(crate) fn pool(text: &str) -> Pool {
    Pool::new(text.parse().unwrap(), None, None, None).unwrap()
}

pub(crate) fn config(v4: Option<&str>, v6: Option<&str>, backend: BackendConfig) -> NetworkConfig {
    NetworkConfig { v4: v4.map(pool), v6: v6.map(pool), backend, before: Vec::new(), reachable_from: Vec::new() }
}

pub(crate) fn vxlan() -> BackendConfig {
    BackendConfig::Vxlan(VxlanConfig::default())
}

pub(crate) fn wireguard() -> BackendConfig {
    BackendConfig::Wireguard(WireguardConfig::default())
}

/// Returns the key of node number `node`.
pub(crate) fn key(node: u8) -> WireguardKey {
    WireguardKey::new([node; 32]).unwrap()
}

/// Returns a peer as our own agent would publish it, node number `node`.
pub(crate) fn peer(subnets: &str, node: u8, backend: &BackendConfig) -> Lease {
    let data = |family| match backend {
        BackendConfig::Vxlan(vxlan) => BackendData::Vxlan {
            vni: Some(vxlan.vni),
            mac: vtep_mac(NodeId::new(u128::from(node)), Vni::new(1).unwrap(), family),
        },
        BackendConfig::Wireguard(_) => BackendData::Wireguard { public_key: key(node), port: None },
        BackendConfig::Gre(gre) => BackendData::Gre { key: gre.key },
        BackendConfig::HostGw | BackendConfig::Unsupported(_) => BackendData::None,
    };
    Lease {
        subnets: subnets.parse().unwrap(),
        public_ip: Some([192, 0, 2, node].into()),
        public_ipv6: Some(format!("2001:db8::{node}").parse().unwrap()),
        backend: backend.kind(),
        data: data(IpFamily::V4),
        data_v6: data(IpFamily::V6),
        besides: Vec::new(),
        owner: None,
        etcd_lease: None,
        create_revision: i64::from(node),
        mod_revision: i64::from(node),
    }
}

/// Returns the desired state of a host with the one network `config`, whose lease is `own`.
pub(crate) fn one(config: &NetworkConfig, own: &str, peers: &[Lease]) -> Desired {
    with(&facts(), &underlay(), config, own, peers)
}

pub(crate) fn with(
    facts: &HostFacts,
    underlay: &Underlay,
    config: &NetworkConfig,
    own: &str,
    peers: &[Lease],
) -> Desired {
    let name = NetworkName::default_network();
    let peers: Vec<&Lease> = peers.iter().collect();
    let own: SubnetKey = own.parse().unwrap();
    let network = NetworkInput {
        name: &name,
        config,
        stage: Stage::default(),
        own,
        peers: &peers,
        bridge: None,
        masquerade: true,
        guard: None,
    };
    desired(&HostInput {
        store: &[],
        node: NODE,
        key: Ok(key(0xa)),
        underlay,
        facts,
        exposure: &crate::exposure::Exposure::default(),
        networks: &[network],
    })
}

/// Returns true if nothing of any network is programmed: packets to unknown addresses are refused, and the guard lets
/// nobody in.
pub(crate) fn is_shut(desired: &Desired) -> bool {
    let state = &desired.state;
    let refuses = state.routes.values().all(|route| route.via == RouteVia::Unreachable);
    let has_guard = state.ruleset.is_some() && state.peer_sources.is_empty();
    let guard_only =
        KernelState { ruleset: state.ruleset.clone(), routes: state.routes.clone(), ..KernelState::default() };
    refuses && !state.routes.is_empty() && has_guard && *state == guard_only
}

pub(crate) fn codes(desired: &Desired) -> Vec<&str> {
    desired.problems.iter().map(|problem| problem.code.as_str()).collect()
}
