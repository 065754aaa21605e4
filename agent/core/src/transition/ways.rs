//! One network with all the backends it has on this host just now.
//!
//! A network has one backend by its configuration. While that changes, this host goes on receiving by the earlier ones
//! as long as a peer may send by them. It sends to each peer by the first backend that both have and that its own lease
//! names, as it was read back from the store. Every backend is built as if it were the only one; then only the peers
//! count that are reached by it.

use std::collections::{HashMap, HashSet};

use flatnet_model::{BackendConfig, IfName, Lease, Mtu, NetworkConfig};
use ipnet::IpNet;

use super::{Said, Stage};
use crate::backend::{self, Built, NetworkCtx};
use crate::object::{Datapath, Draft, NexthopId, RouteKey, RouteVia};
use crate::outcome::{PeerDecision, PeerOutcome, WayOutcome};
use crate::problem::Problem;

/// A network as it was built.
pub(crate) struct Ways {
    /// The backends that were built, the configured one first.
    pub(crate) ways: Vec<Way>,
    /// The outcome for each peer, in the order of their subnets.
    pub(crate) peers: Vec<PeerOutcome>,
    /// Problems that did not keep the network from being built.
    pub(crate) problems: Vec<Problem>,
}

/// One backend of a network on this host.
pub(crate) struct Way {
    pub(crate) backend: BackendConfig,
    /// The objects that were built. The peers in it are those that may send by this backend.
    pub(crate) built: Built,
    /// The subnets of the peers that are reached by this backend.
    pub(crate) reached: Vec<IpNet>,
    /// True if this host sends by it, or may do so as soon as it reads what a peer publishes next.
    pub(crate) used: bool,
}

impl Way {
    /// Returns what is reported about this backend.
    pub(crate) fn outcome(&self) -> WayOutcome {
        WayOutcome { backend: self.backend.clone(), devices: self.built.device_names(), used: self.used }
    }
}

impl Ways {
    /// Returns the smallest MTU in bytes: the largest size a container's packet may have whichever way it goes.
    pub(crate) fn mtu(&self) -> Option<Mtu> {
        self.ways.iter().map(|way| way.built.mtu).min()
    }

    /// Returns all tunnel devices, each once.
    pub(crate) fn devices(&self) -> Vec<IfName> {
        self.ways.iter().flat_map(|way| way.built.device_names()).collect()
    }

    /// Returns the carrier of the packets. If the kernel does not carry them all, user space is reported.
    pub(crate) fn datapath(&self) -> Datapath {
        self.ways.iter().map(|way| way.built.datapath).max().unwrap_or(Datapath::Kernel)
    }
}

/// Builds the network with its configured backend and those of `before`. Fails if none of them can be built, with the
/// problem of the configured one. `stage` is that of the network's change.
pub(crate) fn build(
    ctx: &NetworkCtx<'_>,
    before: &[BackendConfig],
    stage: Stage<'_>,
    draft: &mut Draft,
) -> Result<Ways, Problem> {
    if before.is_empty() && ctx.peers.iter().all(|peer| peer.besides.is_empty()) {
        let mut built = backend::build(ctx, draft)?;
        let peers = std::mem::take(&mut built.peers);
        let problems = std::mem::take(&mut built.problems);
        let reached = reached(&peers).collect();
        let backend = ctx.config.backend.clone();
        let way = Way { backend, built: Built { peers: peers.clone(), ..built }, reached, used: true };
        return Ok(Ways { ways: vec![way], peers, problems });
    }
    let backends = std::iter::once(&ctx.config.backend).chain(before);
    let built: Vec<Result<Alone, Problem>> = backends.map(|backend| alone(ctx, backend)).collect();
    merge(ctx, built, stage.said, draft)
}

/// One backend built as if it were the only one.
struct Alone {
    backend: BackendConfig,
    built: Built,
    draft: Draft,
    /// The subnets of peers that may send by this backend.
    sends: HashSet<IpNet>,
    /// The subnets of peers that do not say yet that they receive by it.
    not_yet: HashSet<IpNet>,
}

impl Alone {
    /// Returns the subnets of the peers that this backend reaches, if it is chosen for them.
    fn reaches(&self) -> impl Iterator<Item = IpNet> {
        reached(&self.built.peers).filter(|subnet| !self.not_yet.contains(subnet))
    }
}

fn alone(ctx: &NetworkCtx<'_>, backend: &BackendConfig) -> Result<Alone, Problem> {
    let configured = *backend == ctx.config.backend;
    // A peer that said it no longer sends by this backend may have to do so again, if the network changes back, before
    // that is read here. A network that is to be encrypted waits until it is read.
    let may_resume = !backend::encrypts(&ctx.config.backend);
    let (mut sends, mut not_yet) = (HashSet::new(), HashSet::new());
    let mut leases: Vec<Lease> = Vec::with_capacity(ctx.peers.len());
    for peer in ctx.peers {
        match peer.under(backend) {
            Some((lease, used)) => {
                if used || configured || may_resume {
                    sends.extend(lease.subnets.iter());
                }
                leases.push(lease);
            }
            // A peer that does not say which backends it has left behind may send by any of them, before this host
            // reads that it receives by them.
            None => match backend::expected(peer, backend).filter(|_| is_silent(peer, ctx)) {
                Some(lease) => {
                    sends.extend(lease.subnets.iter());
                    not_yet.extend(lease.subnets.iter());
                    leases.push(lease);
                }
                // The backend reports what is wrong with the lease.
                None if configured => leases.push((*peer).clone()),
                None => {}
            },
        }
    }
    let peers: Vec<&Lease> = leases.iter().collect();
    let config = NetworkConfig { backend: backend.clone(), ..ctx.config.clone() };
    let mut draft = Draft::default();
    let built = backend::build(&NetworkCtx { config: &config, peers: &peers, ..*ctx }, &mut draft)?;
    Ok(Alone { backend: backend.clone(), built, draft, sends, not_yet })
}

/// Returns true if a peer says nothing of the change that this host sees. It may be at any stage of the change.
fn is_silent(peer: &Lease, ctx: &NetworkCtx<'_>) -> bool {
    peer.besides.is_empty() || peer.under(&ctx.config.backend).is_none()
}

fn merge(
    ctx: &NetworkCtx<'_>,
    built: Vec<Result<Alone, Problem>>,
    said: Said<'_>,
    draft: &mut Draft,
) -> Result<Ways, Problem> {
    let mut problems = Vec::new();
    let mut failed = None;
    let mut alone = Vec::with_capacity(built.len());
    for result in built {
        match result {
            Ok(way) => alone.push(way),
            Err(problem) => {
                failed.get_or_insert_with(|| problem.clone());
                problems.push(problem);
            }
        }
    }
    if let (true, Some(problem)) = (alone.is_empty(), failed) {
        return Err(problem);
    }
    let choice = choose(&alone, ctx, said);
    let peers = ctx.peers.iter().map(|peer| outcome(peer, &alone, &choice)).collect();
    let follows = |peer: &&Lease| peer.owner.is_none() || peer.under(&ctx.config.backend).is_some();
    let all_follow = ctx.peers.iter().all(follows);
    let mut ways = Vec::with_capacity(alone.len());
    for (index, mut way) in alone.into_iter().enumerate() {
        // It does not matter if an earlier backend cannot reach a peer: the configured one is going to, or says why
        // not.
        if way.backend == ctx.config.backend {
            problems.append(&mut way.built.problems);
        }
        let reached: Vec<IpNet> = way.reaches().filter(|subnet| choice.get(subnet) == Some(&index)).collect();
        let used = !all_follow || !reached.is_empty();
        way.built.peers.retain(|peer| peer.subnets.iter().any(|subnet| way.sends.contains(&subnet)));
        let rank = u8::try_from(index).unwrap_or(u8::MAX);
        add(way.draft, rank, |subnet| choice.get(&subnet) == Some(&index), draft);
        ways.push(Way { backend: way.backend, built: way.built, reached, used });
    }
    let mut peers: Vec<PeerOutcome> = peers;
    peers.sort_by_key(|peer| peer.subnets);
    Ok(Ways { ways, peers, problems })
}

/// Chooses the backend by which each subnet is reached. It is the first that reaches the subnet, has its devices, and
/// by which this host sends according to its lease. A subnet that is reached by another backend now is not moved to a
/// device that may turn out to be impossible. Nor is it moved to a backend that the peer may be about to give up,
/// because the peer has not read yet that it is used ([`super::kept`] is the other half).
fn choose(alone: &[Alone], ctx: &NetworkCtx<'_>, said: Said<'_>) -> HashMap<IpNet, usize> {
    let is_there = |way: &Alone| {
        let mut devices = way.built.devices.iter();
        devices.all(|(_, device)| ctx.facts.interface(*device).is_some_and(|interface| interface.ours))
    };
    let doubt = |way: &Alone| match (is_there(way), said.sends_by(&way.backend)) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    };
    let mut order: Vec<(u8, usize)> = alone.iter().enumerate().map(|(index, way)| (doubt(way), index)).collect();
    order.sort_unstable();
    let mut choice = HashMap::new();
    for (_, index) in order {
        let Some(way) = alone.get(index) else { continue };
        for subnet in way.reaches() {
            choice.entry(subnet).or_insert(index);
        }
    }
    choice
}

fn reached(peers: &[PeerOutcome]) -> impl Iterator<Item = IpNet> {
    let programmed = peers.iter().filter(|peer| matches!(peer.decision, PeerDecision::Programmed(_)));
    programmed.flat_map(|peer| peer.subnets.iter())
}

/// Returns the outcome for `peer`, as the backend that reaches it says, or else as the first that knows of it says.
fn outcome(peer: &Lease, alone: &[Alone], choice: &HashMap<IpNet, usize>) -> PeerOutcome {
    let chosen = peer.subnets.iter().find_map(|subnet| choice.get(&subnet)).and_then(|index| alone.get(*index));
    let unexpected = alone.iter().filter(|way| !peer.subnets.iter().any(|subnet| way.not_yet.contains(&subnet)));
    let found = chosen.into_iter().chain(unexpected).find_map(|way| {
        let at = way.built.peers.binary_search_by_key(&peer.subnets, |outcome| outcome.subnets).ok()?;
        way.built.peers.get(at).cloned()
    });
    let reason = || format!("its backend is {}, which this host does not have", peer.backend);
    found.unwrap_or_else(|| PeerOutcome { subnets: peer.subnets, decision: PeerDecision::Ignored { reason: reason() } })
}

/// Adds what one backend wants, without the routes to peers that are reached by another. If such a route itself names
/// its tunnel's ends, it stays behind the other one, since in user space it also says what is received.
fn add(mut way: Draft, rank: u8, reaches: impl Fn(IpNet) -> bool, draft: &mut Draft) {
    let nexthops: HashSet<NexthopId> = way
        .routes
        .iter()
        .filter(|(key, _)| reaches(key.destination))
        .filter_map(|(_, route)| if let RouteVia::Object(id) = route.via { Some(id) } else { None })
        .collect();
    way.nexthops.retain(|(id, _)| nexthops.contains(id));
    for (key, route) in way.routes {
        if reaches(key.destination) {
            draft.routes.push((key, route));
        } else if matches!(route.via, RouteVia::Encap(_)) {
            draft.routes.push((RouteKey::behind(key.destination, rank), route));
        }
    }
    for (name, link) in way.links {
        match draft.links.iter_mut().find(|(other, _)| *other == name) {
            // Networks may share a device, as those of GRE over IPv6 do.
            Some((_, shared)) => shared.mtu = shared.mtu.min(link.mtu),
            None => draft.links.push((name, link)),
        }
    }
    draft.addresses.append(&mut way.addresses);
    draft.neighbours.append(&mut way.neighbours);
    draft.fdb.append(&mut way.fdb);
    draft.wireguard_peers.append(&mut way.wireguard_peers);
    draft.nexthops.append(&mut way.nexthops);
}
