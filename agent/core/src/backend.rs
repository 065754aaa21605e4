//! Backends: how a network's packets travel, as functions that add objects to the desired state.
//!
//! Each is one file, which implements `Backend` for the model's configuration of it; `of` alone tells them apart.
//! A backend sees its own network only, never another backend and never the kernel. The parts that all of them share
//! (the route that catches unknown addresses, the bridge, the firewall, settings) are added by [`crate::desired`].

mod gre;
mod hostgw;
mod identities;
mod mtu;
mod peer;
mod rival;
mod unsupported;
mod vxlan;
mod wireguard;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_model::{
    BackendConfig, BackendData, IfName, IpFamily, Lease, Mtu, NetworkConfig, NetworkName, NodeId, Publication,
    SubnetKey, WireguardKey,
};
use ipnet::IpNet;

use crate::facts::HostFacts;
use crate::object::{Datapath, Draft, NextHop, Nexthop, NexthopId, Route, RouteKey, RouteVia, TunnelId};
use crate::outcome::PeerOutcome;
use crate::problem::{Problem, ProblemCode};
use crate::underlay::Underlay;

pub use flatnet_model::vtep_mac;
pub use mtu::Overhead;
pub(crate) use rival::rivals;
pub use rival::{problem as rival_problem, rivals_of};

/// The public half of the key with which a host's tunnels encrypt.
pub type PublicKey = WireguardKey;

/// A backend, which adds what one network needs to the desired state.
pub(crate) trait Backend {
    /// Returns the things that it needs beside the store and the usual facts.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Returns true if packets of the network may come by the underlay as they are.
    fn has_direct_routes(&self) -> bool {
        false
    }

    /// Returns the families of the underlay that it uses.
    fn underlays(&self, network: &NetworkConfig, underlay: &Underlay) -> Vec<IpFamily> {
        let _ = underlay;
        families(network).collect()
    }

    /// Checks that it can be built on `underlay` at all.
    fn check(&self, name: &NetworkName, network: &NetworkConfig, underlay: &Underlay) -> Result<(), Problem> {
        self.underlays(network, underlay).into_iter().try_for_each(|family| has_address(name, underlay, family))
    }

    /// Checks that this host can build it, as far as that does not depend on the underlay.
    fn supported(&self, name: &NetworkName, network: &NetworkConfig, host: &Abilities<'_>) -> Result<(), Problem> {
        let _ = (name, network, host);
        Ok(())
    }

    /// Returns the tunnel device of the network's addresses of `family`; `None`: there is none.
    fn device(&self, family: IpFamily) -> Option<IfName> {
        let _ = family;
        None
    }

    /// Returns how the packets of that device look on the underlay.
    fn wire(&self, family: IpFamily) -> Option<Wire> {
        let _ = family;
        None
    }

    /// Returns the device that another program would have instead, where a host has room for only one of the two.
    fn rival(&self, family: IpFamily) -> Option<IfName> {
        let _ = family;
        None
    }

    /// Returns the words for two networks whose tunnels have one [`TunnelId`].
    fn clash(&self) -> Option<Clash> {
        None
    }

    /// Returns the bytes added to each packet over an underlay of `underlay`.
    fn overhead(&self, underlay: IpFamily) -> Overhead;

    /// Returns the underlay addresses to publish: those of the network's families only, as flannel does.
    fn addresses(&self, network: &NetworkConfig, underlay: &Underlay) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let (v4, v6) = (network.v4.is_some(), network.v6.is_some());
        (underlay.public_v4.filter(|_| v4), underlay.public_v6.filter(|_| v6))
    }

    /// Returns what the host `node`, whose key is `key`, publishes for `family`. `None`: it lacks the key.
    fn data(&self, node: NodeId, key: Option<PublicKey>, family: IpFamily) -> Option<BackendData>;

    /// Adds devices, addresses and the ways to all peers to `out`, given that the checks passed. An error means that
    /// nothing was added.
    fn desired(&self, ctx: &NetworkCtx<'_>, out: &mut Draft) -> Result<Built, Problem>;
}

/// Returns the backend that is configured. Nowhere else is one told from another.
fn of(config: &BackendConfig) -> &dyn Backend {
    match config {
        BackendConfig::Vxlan(vxlan) => vxlan,
        BackendConfig::Gre(gre) => gre,
        BackendConfig::Wireguard(wireguard) => wireguard,
        BackendConfig::HostGw => &hostgw::HostGw,
        BackendConfig::Unsupported(kind) => kind,
    }
}

/// The things that a network may need beside the store and the facts. They are made or looked for only where a network
/// needs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// True if it needs the key with which this host's tunnels encrypt.
    pub key: bool,
    /// True if it needs to know who can carry its tunnels ([`crate::facts::Features::gre`]). Looking makes the kernel
    /// load its modules.
    pub carriers: bool,
}

impl Needs {
    /// Returns what any of `backends` needs.
    #[must_use]
    pub fn of<'a>(backends: impl IntoIterator<Item = &'a BackendConfig>) -> Self {
        backends.into_iter().map(|backend| of(backend).needs()).fold(Self::default(), Self::and)
    }

    /// Returns what either needs.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { key: self.key || other.key, carriers: self.carriers || other.carriers }
    }
}

/// The things that decide whether a host can build a network, beside its underlay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities<'a> {
    /// The facts about the host.
    pub facts: &'a HostFacts,
    /// The public half of our key, or the reason why there is none.
    pub key: Result<PublicKey, &'a Problem>,
}

/// The way in which a tunnel's packets are told from others on the underlay, and who judges them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// The guard judges what carries the identifier.
    Guarded {
        /// The identifier.
        id: TunnelId,
        /// The UDP destination port; 0 for a protocol that has no ports.
        port: u16,
    },
    /// The device judges by itself what comes to its UDP port.
    Encrypted {
        /// The port.
        port: u16,
    },
}

impl Wire {
    /// Returns the identifier that the guard judges.
    pub(crate) fn id(self) -> Option<TunnelId> {
        match self {
            Self::Guarded { id, .. } => Some(id),
            Self::Encrypted { .. } => None,
        }
    }
}

/// The words for two networks on one host whose tunnels have one identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clash {
    pub code: ProblemCode,
    /// The identifier, as people call it.
    pub id: String,
    /// The option of `network update` that gives another one.
    pub option: &'static str,
}

/// The input that a backend decides from.
#[derive(Clone, Copy, Debug)]
pub struct NetworkCtx<'a> {
    /// This node's identity.
    pub node: NodeId,
    /// The interface and addresses that carry the tunnels.
    pub underlay: &'a Underlay,
    /// The facts about the host, as they were found.
    pub facts: &'a HostFacts,
    /// The network's name.
    pub name: &'a NetworkName,
    /// The network's configuration.
    pub config: &'a NetworkConfig,
    /// Our subnets.
    pub own: SubnetKey,
    /// The public half of our key, or the reason why there is none.
    pub key: Result<PublicKey, &'a Problem>,
    /// The other leases.
    pub peers: &'a [&'a Lease],
    /// The ranges of all networks of this host. No tunnel can end inside one.
    pub overlays: &'a [IpNet],
}

impl NetworkCtx<'_> {
    /// Returns the families of the network in which we have a subnet.
    pub(crate) fn families(&self) -> impl Iterator<Item = (IpFamily, IpNet)> {
        IpFamily::BOTH.into_iter().filter_map(|family| {
            self.config.pool(family)?;
            Some((family, self.own.of(family)?))
        })
    }

    /// Makes the problem of a lease that is of none of the network's families.
    fn no_subnet(&self) -> Problem {
        Problem::new(
            ProblemCode::NoSubnet,
            format!("network {}: this host's lease {} is of none of its families", self.name, self.own),
            "agent leave --renumber takes a new one",
            self.name,
        )
    }

    /// Makes the problem of what the checks should have ruled out.
    fn internal(&self, message: String) -> Problem {
        Problem::new(ProblemCode::Internal, message, "report this as a bug", self.name)
    }
}

/// The result of building a network with a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The smallest MTU of the network's families, in bytes.
    pub mtu: Mtu,
    /// Tunnel devices, with the family of their overlay and underlay.
    pub devices: Vec<(IpFamily, IfName)>,
    /// The outcome for every peer.
    pub peers: Vec<PeerOutcome>,
    /// Problems that did not keep the network from being built.
    pub problems: Vec<Problem>,
    /// The carrier of the packets.
    pub datapath: Datapath,
}

impl Built {
    /// Returns the tunnel devices, each once.
    #[must_use]
    pub fn device_names(&self) -> Vec<IfName> {
        let mut names: Vec<IfName> = self.devices.iter().map(|(_, device)| *device).collect();
        names.dedup();
        names
    }
}

/// Checks that `config` can be built on `underlay` at all. This is asked before a lease is taken: a lease that cannot
/// be served would draw traffic into a hole.
pub fn check(name: &NetworkName, config: &NetworkConfig, underlay: &Underlay) -> Result<(), Problem> {
    of(&config.backend).check(name, config, underlay)
}

/// Checks that this host can build `config`, as far as that does not depend on the underlay. This is also asked before
/// a lease is taken.
pub(crate) fn check_host(name: &NetworkName, config: &NetworkConfig, host: &Abilities<'_>) -> Result<(), Problem> {
    of(&config.backend).supported(name, config, host)
}

/// Returns what a node publishes in its lease of the network `name`. `key` is the public half of the key that its
/// devices have.
pub fn publication(
    node: NodeId,
    key: Option<PublicKey>,
    name: &NetworkName,
    config: &NetworkConfig,
    underlay: &Underlay,
) -> Result<Publication, Problem> {
    check(name, config, underlay)?;
    let backend = of(&config.backend);
    let data = |family| match config.pool(family) {
        Some(_) => backend.data(node, key, family).ok_or_else(|| wireguard::no_key_yet(name)),
        None => Ok(BackendData::None),
    };
    let (public_ip, public_ipv6) = backend.addresses(config, underlay);
    let (data, data_v6) = (data(IpFamily::V4)?, data(IpFamily::V6)?);
    Ok(Publication { public_ip, public_ipv6, data, data_v6, ..Publication::of(config.backend.kind()) })
}

/// Builds one network with its backend.
pub(crate) fn build(ctx: &NetworkCtx<'_>, out: &mut Draft) -> Result<Built, Problem> {
    check(ctx.name, ctx.config, ctx.underlay)?;
    check_host(ctx.name, ctx.config, &Abilities { facts: ctx.facts, key: ctx.key })?;
    of(&ctx.config.backend).desired(ctx, out)
}

/// Returns the tunnel devices of `config`, each with the family of its addresses and its packets on the underlay.
pub(crate) fn devices(config: &NetworkConfig) -> Vec<(IpFamily, IfName, Wire)> {
    let backend = of(&config.backend);
    families(config).filter_map(|family| Some((family, backend.device(family)?, backend.wire(family)?))).collect()
}

/// Returns how the packets of a tunnel device look on the underlay.
pub(crate) fn wire(backend: &BackendConfig, family: IpFamily) -> Option<Wire> {
    of(backend).wire(family)
}

/// Returns true if packets of the network may come by the underlay as they are.
pub(crate) fn has_direct_routes(backend: &BackendConfig) -> bool {
    of(backend).has_direct_routes()
}

/// Returns true if a network of `backend` goes through tunnels that encrypt, or not at all.
#[must_use]
pub fn encrypts(backend: &BackendConfig) -> bool {
    IpFamily::BOTH.into_iter().any(|family| matches!(wire(backend, family), Some(Wire::Encrypted { .. })))
}

/// Returns the UDP ports on which the tunnels of `config` listen.
pub(crate) fn udp_ports(config: &NetworkConfig) -> Vec<u16> {
    let ports = families(config).filter_map(|family| match wire(&config.backend, family)? {
        Wire::Guarded { port: 0, .. } => None,
        Wire::Guarded { port, .. } | Wire::Encrypted { port } => Some(port),
    });
    ports.collect()
}

/// Returns the words for what both have, if the tunnels of both have one identifier: over one family, a host has room
/// for only one of them.
pub(crate) fn clash(one: &BackendConfig, other: &BackendConfig) -> Option<Clash> {
    let id = |backend: &BackendConfig| wire(backend, IpFamily::V4)?.id();
    if id(one)? == id(other)? { of(one).clash() } else { None }
}

/// Predicts the lease of a peer that runs our agent and does not say yet that it receives by `backend`. `None`: the
/// lease cannot be known, or would be of no use.
pub(crate) fn expected(peer: &Lease, backend: &BackendConfig) -> Option<Lease> {
    let owner = peer.owner.as_ref()?;
    // Keys are only known once they are published.
    let data = |family| of(backend).data(owner.node, None, family);
    let (data, data_v6) = (data(IpFamily::V4)?, data(IpFamily::V6)?);
    Some(Lease { backend: backend.kind(), data, data_v6, ..peer.clone() })
}

/// Returns the reason why there is no key where no network needs one.
pub(crate) fn key_not_needed() -> Problem {
    wireguard::no_network()
}

/// Returns the families in which a network has addresses.
fn families(config: &NetworkConfig) -> impl Iterator<Item = IpFamily> {
    IpFamily::BOTH.into_iter().filter(|family| config.pool(*family).is_some())
}

/// Checks that the underlay has an address of `family`.
fn has_address(name: &NetworkName, underlay: &Underlay, family: IpFamily) -> Result<(), Problem> {
    if underlay.address(family).is_some() {
        return Ok(());
    }
    Err(Problem::new(
        ProblemCode::UnderlayFamily,
        format!("network {name} needs {family}, but the underlay {} has no {family} address", underlay.device),
        format!(
            "give {} an {family} address, choose another interface with --iface, or leave {family} out of the network",
            underlay.device
        ),
        name,
    ))
}

impl Draft {
    /// Adds the route to `subnet` by `hop`, through a nexthop object where that is wanted and possible. Returns true if
    /// a nexthop object is used.
    pub fn route(&mut self, subnet: IpNet, hop: NextHop, nexthop_objects: bool) -> bool {
        let object = match subnet.addr() {
            // The kernel takes id 0 as "choose one".
            IpAddr::V4(base) if nexthop_objects && !base.is_unspecified() => Some(NexthopId::of_subnet(base)),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        };
        let via = match object {
            Some(id) => {
                self.nexthops.push((id, Nexthop { via: hop }));
                RouteVia::Object(id)
            }
            None => RouteVia::Hop(hop),
        };
        self.routes.push((RouteKey::to_peer(subnet), Route { via, source: None }));
        object.is_some()
    }
}

#[cfg(test)]
mod tests;
