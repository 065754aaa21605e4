//! Claiming a subnet in a node's name, and what may be published with it.

use std::net::IpAddr;
use std::time::Duration;

use flatnet_model::keys::{NetworkKeys, presence as presence_key};
use flatnet_model::state::{ConfigState, NetworkState};
use flatnet_model::{BackendData, EtcdLease, IpFamily, Lease, NetworkConfig, NodeId, Publication, SubnetKey, vtep_mac};
use flatnet_proto::controlplane::v1 as proto;
use ipnet::IpNet;
use tonic::{Code, Status};

use super::{CONFIG_LIMIT, NodeService};
use crate::server::caller::NodeCaller;
use crate::server::hub::{FIRST_READ_TIMEOUT, Hub};
use crate::server::registry;
use flatnet_plane::allocate::{self, Claim, ClaimRequest, KnownLeases, Origin};
use flatnet_plane::flannel::decode_config;
use flatnet_plane::presence;
use flatnet_plane::random::OsRandom;
use flatnet_plane::store::{KeyRange, Store};
use flatnet_plane::wire::{self, refusal};

/// A lease's shortest and longest time to live, in seconds. The shortest is what the agent's flag allows, the longest
/// is for a host that is away over a holiday. A longer one would keep a subnet from everybody for ever.
const TTL_SECS: std::ops::RangeInclusive<u64> = 10..=30 * 24 * 3600;

/// The configuration to claim under.
enum Under {
    /// The store's.
    Stored(ConfigState),
    /// The caller's own, for the lease it holds and nothing else.
    Offered(NetworkConfig),
}

impl<S: Store> NodeService<S> {
    pub(super) async fn do_acquire(
        &self,
        caller: &NodeCaller,
        message: &proto::AcquireRequest,
    ) -> Result<Claim, Status> {
        let keys = self.keys(&message.network)?;
        let owner = wire::owner(caller.node, message.instance.as_ref())?;
        let previous =
            Some(message.previous.as_str()).filter(|text| !text.is_empty()).map(wire::subnets).transpose()?;
        let publication = wire::publication(&message.publication, any_subnets()?)?;
        if !TTL_SECS.contains(&message.ttl_secs) {
            return Err(Status::invalid_argument("a lease lives 10 s to 30 days: --lease-ttl"));
        }
        registry::check_may_hold(self.store(), caller.node).await?;
        check_own_addresses(caller.node, &publication)?;
        let (config, refresh_only) = match self.config_for(&keys, caller.node, previous, &message.config).await? {
            Under::Stored(ConfigState::Valid(config)) => (ConfigState::Valid(config), false),
            // No hub is made for a network that is not there.
            Under::Stored(_) => {
                let network = keys.network().to_string();
                return Err(refusal::acquire(&allocate::AcquireError::NoConfig { network }));
            }
            Under::Offered(config) => (ConfigState::Valid(config), true),
        };
        if let (Some(previous), ConfigState::Valid(config)) = (previous, &config) {
            self.check_was_held(&keys, caller.node, config, previous).await?;
        }
        let hub = self.hub(&keys)?;
        self.check_nobody_elses(&hub, caller.node, &publication).await?;
        self.check_address(&hub, &keys, caller, &publication).await?;
        let request = ClaimRequest {
            known: hub.look(|state| KnownLeases::of(state, caller.node, &publication)).flatten(),
            // Such a lease is this host's from before: only the host itself calls from its address.
            adopt: publication.public_ip.map(IpAddr::V4) == Some(caller.address)
                || publication.public_ipv6.map(IpAddr::V6) == Some(caller.address),
            wanted: if refresh_only { Vec::new() } else { wire::wanted(&message.wanted)? },
            ttl: Duration::from_secs(message.ttl_secs),
            keys,
            owner,
            publication,
            previous,
        };
        let state = NetworkState { config, ..NetworkState::default() };
        let claim = if refresh_only {
            allocate::refresh(self.store(), &request, &state, &mut OsRandom).await
        } else {
            allocate::acquire(self.store(), &request, &state, &mut OsRandom).await
        };
        let claim = claim.map_err(|error| refusal::acquire(&error))?;
        // The node may have been drained or revoked since its rights were checked, perhaps at another replica. Its
        // leases may then have been looked for before this one was there.
        if let Err(refused) = registry::check_may_hold(self.store(), caller.node).await {
            if refused.code() == Code::PermissionDenied {
                let released = allocate::release(self.store(), &request.keys, &claim).await;
                released.map_err(|error| refusal::store(&error))?;
            }
            return Err(refused);
        }
        Ok(claim)
    }

    /// Returns the configuration to claim under: the store's. But a node may refresh a lease in a network that was
    /// changed meanwhile, under the configuration that it holds the lease under.
    async fn config_for(
        &self,
        keys: &NetworkKeys,
        node: NodeId,
        previous: Option<SubnetKey>,
        offered: &[u8],
    ) -> Result<Under, Status> {
        let reply = self.store().range(&KeyRange::key(&keys.config())).await;
        let reply = reply.map_err(|error| refusal::store(&error))?;
        let (revision, found) = (reply.revision, reply.kvs.into_iter().next());
        if let Some(kv) = &found {
            self.context.witness.saw(keys.network(), &kv.value, revision);
        }
        let stored = found.and_then(|kv| decode_config(&kv.value).ok()).map(|(config, _)| config);
        let offered = Some(offered).filter(|json| !json.is_empty() && json.len() <= CONFIG_LIMIT);
        let offered = offered.and_then(|json| decode_config(json).ok()).map(|(config, _)| config);
        let was_moved = |stored: &NetworkConfig, previous| {
            !is_inside(stored, previous) || offered.as_ref().is_some_and(|known| !same_families(stored, known))
        };
        if let Some(previous) = previous
            && stored.as_ref().is_none_or(|stored| was_moved(stored, previous))
        {
            if let Some(offered) = &offered
                && matches!(self.own_lease(keys, previous, node).await, Ok(Some(_)))
            {
                return Ok(Under::Offered(offered.clone()));
            }
            if let Some(stored) = &stored {
                // The families of the network have changed, and the library would choose a new subnet although
                // containers live in this one.
                return Err(refusal::acquire(&allocate::AcquireError::Moved {
                    subnets: previous,
                    network: keys.network().to_string(),
                    expected: stored.pools().map(|pool| pool.network().to_string()).collect::<Vec<_>>().join(", "),
                }));
            }
        }
        if let (Some(stored), Some(offered)) = (&stored, &offered)
            && !would_fit(stored, offered, previous)
        {
            // The node has not read yet that the network was changed: it would hold a subnet that is not in the network
            // it knows. It has to ask again.
            return Err(refusal::acquire(&allocate::AcquireError::Busy(1)));
        }
        Ok(Under::Stored(stored.map_or(ConfigState::Missing, ConfigState::Valid)))
    }

    /// Refuses a previous subnet that is larger than those the network hands out, unless the store knows that the node
    /// held it: it was given out before the network was changed. A subnet that is no larger needs no proof, for the
    /// store may have been wiped since.
    async fn check_was_held(
        &self,
        keys: &NetworkKeys,
        node: NodeId,
        config: &NetworkConfig,
        previous: SubnetKey,
    ) -> Result<(), Status> {
        let is_larger = |net: &IpNet| {
            config.pool(IpFamily::of(net.addr())).is_some_and(|pool| net.prefix_len() < pool.subnet_len())
        };
        for net in previous.iter().filter(is_larger) {
            let holder =
                allocate::last_holder(self.store(), keys, net).await.map_err(|error| refusal::store(&error))?;
            if holder != Some(node) && !matches!(self.own_lease(keys, previous, node).await, Ok(Some(_))) {
                return Err(refusal::not_allowed(
                    format!(
                        "{net} is larger than the subnets of network {}, and this node never held it",
                        keys.network()
                    ),
                    "`agent leave --renumber` on that host takes a new one",
                ));
            }
        }
        Ok(())
    }

    /// Refuses a publication that would draw another host's packets: its tunnel's Ethernet address, its WireGuard key.
    async fn check_nobody_elses(&self, hub: &Hub, node: NodeId, publication: &Publication) -> Result<(), Status> {
        if !hub.ready(0, FIRST_READ_TIMEOUT).await {
            return Err(Status::unavailable("the store has not been read yet"));
        }
        let other = hub.look(|state| {
            let same = |lease: &&Lease| !lease.is_owned_by(node) && shares_identity(lease, publication);
            state.leases.values().find(same).map(|lease| lease.subnets)
        });
        match other.flatten() {
            Some(other) => Err(refusal::not_allowed(
                format!("what is published belongs to the host of {other}: its tunnel's address or key"),
                "each host has its own: a copied state directory is to be removed",
            )),
            None => {
                let known = self.context.registry.all();
                for data in ways(publication) {
                    if let BackendData::Wireguard { public_key, .. } = data {
                        registry::own_wireguard_key(self.store(), &known, node, &public_key.to_string()).await?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Refuses a public address that a living node publishes, unless the caller calls from there and the other does
    /// not. The other's lease then says what is not so, and is ended.
    async fn check_address(
        &self,
        hub: &Hub,
        keys: &NetworkKeys,
        caller: &NodeCaller,
        publication: &Publication,
    ) -> Result<(), Status> {
        let v4 = publication.public_ip.map(IpAddr::V4);
        for address in v4.into_iter().chain(publication.public_ipv6.map(IpAddr::V6)) {
            let publishes = |lease: &Lease| {
                lease.public_ip.map(IpAddr::V4) == Some(address) || lease.public_ipv6.map(IpAddr::V6) == Some(address)
            };
            let leases = hub.look(|state| state.leases.values().filter(|lease| publishes(lease)).cloned().collect());
            let leases: Vec<Lease> = leases.unwrap_or_default();
            if leases.iter().any(|lease| lease.is_owned_by(caller.node)) {
                // The caller publishes it already: that is no news.
                continue;
            }
            for lease in leases {
                let Some(owner) = &lease.owner else { continue };
                let present = self.store().range(&KeyRange::key(&presence_key(owner.node))).await;
                let present = present.map_err(|error| refusal::store(&error))?.kvs.into_iter().next();
                let Some(present) = present else { continue };
                if address != caller.address {
                    let name = if owner.name.is_empty() { owner.node.to_string() } else { owner.name.clone() };
                    let subnets = lease.subnets;
                    return Err(refusal::acquire(&allocate::AcquireError::SamePublicIp { address, subnets, name }));
                }
                if presence::called_from(&present.value).is_some_and(|from| from != address) {
                    tracing::warn!(%address, node = %caller.node, other = %owner.node, "whoever calls from an address has it, another gives way");
                    let etcd_lease = lease.etcd_lease.unwrap_or(EtcdLease(0));
                    let squatted = Claim { lease, etcd_lease, origin: Origin::Refreshed };
                    let released = allocate::release(self.store(), keys, &squatted).await;
                    released.map_err(|error| refusal::store(&error))?;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn do_publish(
        &self,
        caller: &NodeCaller,
        message: &proto::PublishRequest,
    ) -> Result<Claim, Status> {
        let keys = self.keys(&message.network)?;
        let subnets = wire::subnets(&message.subnets)?;
        let owner = wire::owner(caller.node, message.instance.as_ref())?;
        let publication = wire::publication(&message.publication, subnets)?;
        check_own_addresses(caller.node, &publication)?;
        let lost = || refusal::update(&allocate::UpdateError::Lost(subnets));
        let (kv, mut lease) = self.own_lease(&keys, subnets, caller.node).await?.ok_or_else(lost)?;
        let hub = self.hub(&keys)?;
        self.check_nobody_elses(&hub, caller.node, &publication).await?;
        self.check_address(&hub, &keys, caller, &publication).await?;
        let etcd_lease = kv.lease.ok_or_else(lost)?;
        lease.owner = Some(owner);
        let claim = Claim { lease, etcd_lease, origin: Origin::Refreshed };
        let claim = allocate::update(self.store(), &keys, &claim, &publication).await;
        claim.map_err(|error| refusal::update(&error))
    }
}

/// Returns the subnets to read a publication with: its content does not depend on them.
fn any_subnets() -> Result<SubnetKey, Status> {
    wire::subnets("0.0.0.0-0")
}

/// Returns true if the subnets claimed under `stored` also belong to the network as the node knows it. They are
/// `previous`, if there is one.
fn would_fit(stored: &NetworkConfig, known: &NetworkConfig, previous: Option<SubnetKey>) -> bool {
    match previous {
        Some(previous) => is_inside(known, previous),
        None => (&stored.v4, &stored.v6) == (&known.v4, &known.v6),
    }
}

fn same_families(a: &NetworkConfig, b: &NetworkConfig) -> bool {
    (a.v4.is_some(), a.v6.is_some()) == (b.v4.is_some(), b.v6.is_some())
}

fn is_inside(config: &NetworkConfig, subnets: SubnetKey) -> bool {
    subnets.iter().all(|net| {
        config.pool(IpFamily::of(net.addr())).is_some_and(|pool| pool.network().contains(&net) && pool.network() != net)
    })
}

/// Returns true if a host with `publication` would be taken for the one of `lease`, by any of the ways to either. A
/// node's lease from before its tunnel's address had to be its own may have another's address. Such an address is
/// believed of flanneld and permanent peers alone.
fn shares_identity(lease: &Lease, publication: &Publication) -> bool {
    let theirs = lease.publication();
    if lease.owner.as_ref().is_some_and(|owner| check_own_addresses(owner.node, &theirs).is_err()) {
        return false;
    }
    ways(&theirs).any(|theirs| ways(publication).any(|ours| same_identity(theirs, ours)))
}

/// Refuses Ethernet addresses of tunnels that are not derived from the caller's id: another node may be going to have
/// them.
fn check_own_addresses(node: NodeId, publication: &Publication) -> Result<(), Status> {
    for [v4, v6] in publication.ways() {
        for (data, family) in [(v4, IpFamily::V4), (v6, IpFamily::V6)] {
            let BackendData::Vxlan { vni, mac } = data else { continue };
            if vni.map(|vni| vtep_mac(node, vni, family)) != Some(*mac) {
                return Err(refusal::not_allowed(
                    format!("the tunnel's address {mac} is not the one of node {node}"),
                    "it follows from the node's id: a copied state directory is to be removed",
                ));
            }
        }
    }
    Ok(())
}

fn ways(publication: &Publication) -> impl Iterator<Item = &BackendData> {
    publication.ways().flatten()
}

fn same_identity(a: &BackendData, b: &BackendData) -> bool {
    match (a, b) {
        (BackendData::Vxlan { mac: a, .. }, BackendData::Vxlan { mac: b, .. }) => a == b,
        (BackendData::Wireguard { public_key: a, .. }, BackendData::Wireguard { public_key: b, .. }) => a == b,
        _ => false,
    }
}

#[cfg(test)]
pub(super) mod tests;
