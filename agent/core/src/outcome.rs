//! The outcome for each network and peer when the desired state was made.

use std::net::IpAddr;

use flatnet_model::{BackendConfig, IfName, IpFamily, Mac, Mtu, NetworkConfig, NetworkName, SubnetKey, WireguardKey};

use crate::object::{
    Datapath, FdbKey, NeighbourKey, NexthopId, PeerSource, RouteKey, SetName, TunnelId, WireguardPeerKey,
};
use crate::op::ObjectKey;
use crate::problem::Problem;

/// The verdict on a configuration: whether this host could serve a network by it.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The configuration that was judged.
    pub config: NetworkConfig,
    /// The reason why it could not; `None` if it could.
    pub refused: Option<Problem>,
}

/// The outcome for one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkOutcome {
    /// The network's name.
    pub name: NetworkName,
    /// Bytes that a container's packet may have, the smaller of the families' values; `None`: the network is not
    /// programmed.
    pub mtu: Option<Mtu>,
    /// The tunnel devices; empty for direct routes.
    pub devices: Vec<IfName>,
    /// The carrier of the packets.
    pub datapath: Datapath,
    /// The backends by which this host receives: the configured one, then earlier ones. If empty, the network is not
    /// programmed.
    pub ways: Vec<WayOutcome>,
    /// Every peer, ordered by subnet.
    pub peers: Vec<PeerOutcome>,
}

/// One backend of a network on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayOutcome {
    /// The backend.
    pub backend: BackendConfig,
    /// The backend's tunnel devices; empty for direct routes.
    pub devices: Vec<IfName>,
    /// True if this host sends by this backend, or may do so as soon as it reads what a peer publishes next.
    pub used: bool,
}

/// The outcome for one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerOutcome {
    /// The peer's lease.
    pub subnets: SubnetKey,
    /// The decision about this peer.
    pub decision: PeerDecision,
}

/// The decision about a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerDecision {
    /// Objects are wanted for all of the peer's subnets; [`PeerOutcome::keys`] names them.
    Programmed(Paths),
    /// The peer is left alone on purpose, because it belongs to another backend.
    Ignored {
        /// The reason, in one clause.
        reason: String,
    },
    /// The peer cannot be reached the way this network works (host-gw, and it is not on our link).
    Unreachable {
        /// The reason, in one clause.
        reason: String,
    },
    /// The data that the peer publishes cannot be used.
    Failed {
        /// The reason, in one clause.
        reason: String,
    },
}

/// The paths to a peer, one for each family in which it has a subnet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// The path to its IPv4 subnet.
    pub v4: Option<Path>,
    /// The path to its IPv6 subnet.
    pub v6: Option<Path>,
}

impl Paths {
    /// Sets the path of `family`.
    pub fn set(&mut self, family: IpFamily, path: Path) {
        match family {
            IpFamily::V4 => self.v4 = Some(path),
            IpFamily::V6 => self.v6 = Some(path),
        }
    }
}

/// The path to one subnet of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The device packets leave through: the tunnel's, or the underlay's for a direct route.
    pub device: IfName,
    /// The peer's underlay address.
    pub outer: IpAddr,
    /// The tunnel, with what it needs for this peer; `None`: a direct route.
    pub tunnel: Option<Tunnel>,
    /// True if the route goes through a nexthop object.
    pub nexthop_object: bool,
    /// The peer's key, where packets are encrypted for it.
    pub key: Option<WireguardKey>,
}

/// A tunnel to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The identifier by which its packets are told from others.
    pub id: TunnelId,
    /// The way in which the device finds the peer.
    pub reach: Reach,
}

/// The objects that a tunnel needs for one peer beside the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A neighbour and a forwarding entry, with the peer's Ethernet address in the tunnel.
    Forwarding(Mac),
    /// A neighbour.
    Neighbour,
    /// Nothing, because the route itself names the tunnel's ends.
    Route,
}

impl PeerOutcome {
    /// Returns the objects wanted for this peer alone. If an operation on one of them failed, this peer is not
    /// reachable.
    pub fn keys(&self) -> impl Iterator<Item = ObjectKey> {
        let paths = match self.decision {
            PeerDecision::Programmed(paths) => paths,
            PeerDecision::Ignored { .. } | PeerDecision::Unreachable { .. } | PeerDecision::Failed { .. } => {
                Paths::default()
            }
        };
        let of = |family, path: Option<Path>| Some((self.subnets.of(family)?, path?));
        [of(IpFamily::V4, paths.v4), of(IpFamily::V6, paths.v6)].into_iter().flatten().flat_map(|(subnet, path)| {
            let device = path.device;
            let nexthop = match subnet.addr() {
                IpAddr::V4(base) if path.nexthop_object => Some(ObjectKey::Nexthop(NexthopId::of_subnet(base))),
                IpAddr::V4(_) | IpAddr::V6(_) => None,
            };
            let tunnel = path.tunnel.map(|tunnel| {
                let (family, prefix_len) = (IpFamily::of(path.outer), subnet.prefix_len());
                let set = SetName { tunnel: tunnel.id, family, prefix_len };
                let source = ObjectKey::PeerSource(PeerSource { set, outer: path.outer, inner: subnet });
                let neighbour = ObjectKey::Neighbour(NeighbourKey { device, address: subnet.addr() });
                match tunnel.reach {
                    Reach::Forwarding(mac) => {
                        [Some(source), Some(neighbour), Some(ObjectKey::Fdb(FdbKey { device, mac }))]
                    }
                    Reach::Neighbour => [Some(source), Some(neighbour), None],
                    Reach::Route => [Some(source), None, None],
                }
            });
            let is_direct = path.tunnel.is_none() && path.key.is_none();
            let direct = [subnet, path.outer.into()].map(|net| ObjectKey::PeerSource(PeerSource::direct(net)));
            let direct = is_direct.then_some(direct).into_iter().flatten();
            let encrypted =
                path.key.map(|public_key| ObjectKey::WireguardPeer(WireguardPeerKey { device, public_key }));
            tunnel
                .into_iter()
                .flatten()
                .flatten()
                .chain(direct)
                .chain(nexthop)
                .chain(encrypted)
                .chain([ObjectKey::Route(RouteKey::to_peer(subnet))])
        })
    }
}
