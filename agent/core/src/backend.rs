//! Backends: how a network's packets travel, as functions that add objects to the desired state.
//!
//! A backend sees its own network only, never another backend and never the kernel. The parts that all of them share
//! (the route that catches unknown addresses, the bridge, the firewall, settings) are added by [`crate::desired`].

mod gre;
mod hostgw;
mod peer;
mod vxlan;
mod wireguard;

use std::net::IpAddr;

use flatnet_model::{
    BackendConfig, BackendData, BackendKind, IfName, IpFamily, Lease, Mtu, NetworkConfig, NetworkName, NodeId,
    Publication, SubnetKey, WireguardKey,
};
use ipnet::IpNet;

use crate::facts::HostFacts;
use crate::object::{
    Datapath, Draft, KernelState, Link, LinkKind, NextHop, Nexthop, NexthopId, Route, RouteKey, RouteVia, TunnelId,
};
use crate::outcome::PeerOutcome;
use crate::problem::{Problem, ProblemCode};
use crate::underlay::Underlay;

pub use flatnet_model::vtep_mac;

/// Bytes of headers that a backend adds to an IP packet, so that the result is an IP packet of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overhead(pub u32);

/// A backend, which adds what one network needs to the desired state.
pub trait Backend {
    /// Returns the bytes added to each packet over an underlay of `underlay`.
    fn overhead(&self, underlay: IpFamily) -> Overhead;

    /// Adds devices, addresses and the ways to all peers to `out`. An error means that nothing was added.
    fn desired(&self, ctx: &NetworkCtx<'_>, out: &mut Draft) -> Result<Built, Problem>;

    /// Returns what we publish, given that [`check`] passed.
    fn publication(&self, node: NodeId, underlay: &Underlay, config: &NetworkConfig) -> Publication;
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
        backends.into_iter().map(needs).fold(Self::default(), Self::and)
    }

    /// Returns what either needs.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { key: self.key || other.key, carriers: self.carriers || other.carriers }
    }
}

fn needs(backend: &BackendConfig) -> Needs {
    Needs { key: matches!(backend, BackendConfig::Wireguard(_)), carriers: matches!(backend, BackendConfig::Gre(_)) }
}

/// The public half of the key with which a host's tunnels encrypt.
pub type PublicKey = WireguardKey;

/// Returns the reason why there is no key where no network needs one.
pub(crate) fn key_not_needed() -> Problem {
    Problem::new(ProblemCode::WireguardNoKey, "no network of this host is WireGuard's", "", "")
}

/// Returns the devices by which another program would have the tunnels of `config`. A host has room for one of the two.
pub(crate) fn rivals(config: &NetworkConfig) -> Vec<IfName> {
    let families = IpFamily::BOTH.into_iter().filter(|family| config.pool(*family).is_some());
    match &config.backend {
        BackendConfig::Vxlan(vxlan) => families.filter_map(|family| vxlan::rival(vxlan.vni, family)).collect(),
        BackendConfig::Wireguard(_) | BackendConfig::Gre(_) | BackendConfig::HostGw | BackendConfig::Unsupported(_) => {
            Vec::new()
        }
    }
}

/// Returns the names that another program would give the devices of `desired`, each with our device, where a host has
/// room for one of the two.
pub fn rivals_of(desired: &KernelState) -> impl Iterator<Item = (IfName, &Link)> {
    desired.links.values().filter_map(|link| match &link.kind {
        LinkKind::Vxlan(vxlan) => Some((vxlan::rival(vxlan.vni, IpFamily::of(vxlan.local))?, link)),
        LinkKind::Bridge | LinkKind::Wireguard(_) | LinkKind::Gre(_) | LinkKind::Gre6(_) => None,
    })
}

/// Returns the problem of a rival that is there and is not to be taken over. `what`: what it is.
#[must_use]
pub fn rival_problem(device: IfName, what: &str) -> Problem {
    Problem::new(
        ProblemCode::FlannelDevice,
        format!("{device} ({what}) was left by flanneld and holds the VNI this network needs"),
        "stop flanneld on this host, then join with --take-over: the subnet is kept",
        device,
    )
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
    /// The public half of our WireGuard key, or the reason why there is none.
    pub wireguard: Result<WireguardKey, &'a Problem>,
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
    if let BackendConfig::Unsupported(kind) = &config.backend {
        return Err(Problem::new(
            ProblemCode::BackendUnsupported,
            format!("network {name}: the backend {:?} is not supported", kind.as_str()),
            "supported are vxlan, wireguard, gre and host-gw: agent network update NAME --backend vxlan",
            name,
        ));
    }
    let needed = match &config.backend {
        BackendConfig::Wireguard(wireguard) => wireguard::underlays(wireguard, config, underlay),
        BackendConfig::Vxlan(_) | BackendConfig::Gre(_) | BackendConfig::HostGw | BackendConfig::Unsupported(_) => {
            IpFamily::BOTH.into_iter().filter(|family| config.pool(*family).is_some()).collect()
        }
    };
    for family in needed {
        if underlay.address(family).is_none() {
            return Err(Problem::new(
                ProblemCode::UnderlayFamily,
                format!("network {name} needs {family}, but the underlay {} has no {family} address", underlay.device),
                format!(
                    "give {} an {family} address, choose another interface with --iface, or leave {family} out of the network",
                    underlay.device
                ),
                name,
            ));
        }
        if config.backend == BackendConfig::HostGw && underlay.address(family) != underlay.public_address(family) {
            return Err(Problem::new(
                ProblemCode::PublicIpHostGw,
                format!("network {name}: host-gw cannot publish an address that is not the one of {}", underlay.device),
                "leave out --public-ip and --public-ipv6, or use the backend vxlan",
                name,
            ));
        }
    }
    Ok(())
}

/// Checks that this host can build `config`, as far as that does not depend on the underlay. This is also asked before
/// a lease is taken.
pub(crate) fn check_host(
    name: &NetworkName,
    config: &NetworkConfig,
    facts: &HostFacts,
    key: Result<WireguardKey, &Problem>,
) -> Result<(), Problem> {
    match &config.backend {
        BackendConfig::Wireguard(_) => {
            wireguard::supported(facts, name)?;
            key.map(drop).map_err(Clone::clone)
        }
        BackendConfig::Gre(_) => gre::supported(name, config, facts),
        BackendConfig::Vxlan(_) | BackendConfig::HostGw | BackendConfig::Unsupported(_) => Ok(()),
    }
}

/// Returns what a node publishes in its lease of the network `name`. `key` is the public WireGuard key that its devices
/// have.
pub fn publication(
    node: NodeId,
    key: Option<WireguardKey>,
    name: &NetworkName,
    config: &NetworkConfig,
    underlay: &Underlay,
) -> Result<Publication, Problem> {
    check(name, config, underlay)?;
    Ok(match &config.backend {
        BackendConfig::Vxlan(vxlan) => vxlan::Vxlan(*vxlan).publication(node, underlay, config),
        BackendConfig::Wireguard(options) => {
            let key = key.ok_or_else(|| {
                Problem::new(
                    ProblemCode::WireguardNoKey,
                    format!("network {name}: this host has no WireGuard key to publish yet"),
                    "the agent goes on by itself once its device has one; agent doctor looks at the key file",
                    name,
                )
            })?;
            wireguard::Wireguard { config: *options, key }.publication(node, underlay, config)
        }
        BackendConfig::Gre(gre) => gre::Gre(*gre).publication(node, underlay, config),
        BackendConfig::HostGw | BackendConfig::Unsupported(_) => hostgw::HostGw.publication(node, underlay, config),
    })
}

/// Builds one network with its backend.
pub(crate) fn build(ctx: &NetworkCtx<'_>, out: &mut Draft) -> Result<Built, Problem> {
    check(ctx.name, ctx.config, ctx.underlay)?;
    check_host(ctx.name, ctx.config, ctx.facts, ctx.wireguard)?;
    match &ctx.config.backend {
        BackendConfig::Vxlan(vxlan) => vxlan::Vxlan(*vxlan).desired(ctx, out),
        BackendConfig::Gre(gre) => gre::Gre(*gre).desired(ctx, out),
        BackendConfig::Wireguard(config) => {
            let key = ctx.wireguard.map_err(Clone::clone)?;
            wireguard::Wireguard { config: *config, key }.desired(ctx, out)
        }
        BackendConfig::HostGw | BackendConfig::Unsupported(_) => hostgw::HostGw.desired(ctx, out),
    }
}

/// Returns the tunnel devices of `config`, each with its family and the identifier of its packets. WireGuard devices
/// have no identifier; they have their port.
pub(crate) fn devices(config: &NetworkConfig) -> Vec<(IpFamily, IfName, Option<TunnelId>)> {
    let families = IpFamily::BOTH.into_iter().filter(|family| config.pool(*family).is_some());
    let device = |family| match &config.backend {
        BackendConfig::Vxlan(vxlan) => {
            Some((vxlan::device_name(vxlan.vni, family).ok()?, Some(TunnelId::Vxlan(vxlan.vni))))
        }
        BackendConfig::Gre(gre) => Some((gre::device_of(gre.key, family)?, Some(TunnelId::Gre(gre.key)))),
        BackendConfig::Wireguard(wireguard) => {
            Some((crate::object::wireguard_device(wireguard.port_of(family)).ok()?, None))
        }
        BackendConfig::HostGw | BackendConfig::Unsupported(_) => None,
    };
    families.filter_map(|family| device(family).map(|(name, id)| (family, name, id))).collect()
}

/// Predicts the lease of a peer that runs our agent and does not say yet that it receives by `backend`. `None`: the
/// lease cannot be known, or would be of no use.
pub(crate) fn expected(peer: &Lease, backend: &BackendConfig) -> Option<Lease> {
    let owner = peer.owner.as_ref()?;
    let (data, data_v6) = match backend {
        BackendConfig::Vxlan(vxlan) => {
            let data =
                |family| BackendData::Vxlan { vni: Some(vxlan.vni), mac: vtep_mac(owner.node, vxlan.vni, family) };
            (data(IpFamily::V4), data(IpFamily::V6))
        }
        BackendConfig::Gre(gre) => (BackendData::Gre { key: gre.key }, BackendData::Gre { key: gre.key }),
        BackendConfig::HostGw => (BackendData::None, BackendData::None),
        // Keys are only known once they are published.
        BackendConfig::Wireguard(_) | BackendConfig::Unsupported(_) => return None,
    };
    Some(Lease { backend: backend.kind(), data, data_v6, ..peer.clone() })
}

/// Returns the publication with the addresses of the network's families only, as flannel does.
fn published(underlay: &Underlay, config: &NetworkConfig, backend: BackendKind) -> Publication {
    Publication {
        public_ip: underlay.public_v4.filter(|_| config.v4.is_some()),
        public_ipv6: underlay.public_v6.filter(|_| config.v6.is_some()),
        backend,
        data: BackendData::None,
        data_v6: BackendData::None,
        besides: Vec::new(),
    }
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

/// Returns the network's MTU: the configured one if it fits, or else the largest that fits.
fn fitting_mtu(
    ctx: &NetworkCtx<'_>,
    family: IpFamily,
    overhead: Overhead,
    configured: Option<Mtu>,
    problems: &mut Vec<Problem>,
) -> Result<Mtu, Problem> {
    let too_small = || {
        Problem::new(
            ProblemCode::UnderlayMtu,
            format!(
                "network {}: the underlay {} has an MTU of {} bytes, too small for {family} with {} bytes of headers",
                ctx.name, ctx.underlay.device, ctx.underlay.mtu, overhead.0
            ),
            format!("ip link set {} mtu 1500, as far as the network between the hosts carries it", ctx.underlay.device),
            ctx.underlay.device,
        )
    };
    let fits = ctx.underlay.mtu.less(overhead.0).map_err(|_| too_small())?;
    let mtu = match configured {
        Some(configured) if configured > fits => {
            problems.push(Problem::new(
                ProblemCode::MtuTooLarge,
                format!(
                    "network {}: the configured MTU {configured} does not fit {} ({} bytes less {} of headers); {fits} is used",
                    ctx.name, ctx.underlay.device, ctx.underlay.mtu, overhead.0
                ),
                format!("agent network update {} --mtu {fits}, or raise the underlay's MTU on every host", ctx.name),
                ctx.name,
            ));
            fits
        }
        Some(configured) => configured,
        None => fits,
    };
    if family == IpFamily::V4 || mtu.get() >= Mtu::MIN_IPV6 {
        return Ok(mtu);
    }
    Err(match configured {
        Some(configured) if configured == mtu => Problem::new(
            ProblemCode::MtuTooSmall,
            format!(
                "network {}: the configured MTU {configured} is too small for IPv6 (RFC 8200: 1280 bytes)",
                ctx.name
            ),
            format!("agent network update {} --mtu {fits}", ctx.name),
            ctx.name,
        ),
        Some(_) | None => too_small(),
    })
}
