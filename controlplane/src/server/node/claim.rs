//! Claiming a subnet in a node's name, and what may be published with it.

use std::time::Duration;

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::{ConfigState, NetworkState};
use flatnet_model::{BackendData, IpFamily, Lease, NetworkConfig, NodeId, Publication, SubnetKey};
use flatnet_proto::controlplane::v1 as proto;
use ipnet::IpNet;
use tonic::{Code, Status};

use super::{CONFIG_LIMIT, NodeService};
use crate::allocate::{self, Claim, ClaimRequest, KnownLeases, Origin};
use crate::flannel::decode_config;
use crate::random::OsRandom;
use crate::server::caller::NodeCaller;
use crate::server::hub::FIRST_READ;
use crate::server::registry;
use crate::store::{KeyRange, Store};
use crate::wire::{self, refusal};

/// A lease's shortest and longest time to live, seconds: the shortest as the agent's flag allows, the longest for a host that is
/// away over a holiday. A longer one would keep a subnet from everybody for ever.
const TTL_SECS: std::ops::RangeInclusive<u64> = 10..=30 * 24 * 3600;

/// The configuration to claim under.
enum Under {
    /// The store's.
    Stored(ConfigState),
    /// What the caller says: for what it holds, and nothing else.
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
        self.check_nobody_elses(&keys, caller.node, &publication).await?;
        let (config, refresh_only) = match self.config_for(&keys, caller.node, previous, &message.config).await? {
            Under::Stored(config) => (config, false),
            Under::Offered(config) => (ConfigState::Valid(config), true),
        };
        if let (Some(previous), ConfigState::Valid(config)) = (previous, &config) {
            self.check_was_held(&keys, caller.node, config, previous).await?;
        }
        let hub = self.hub(&keys)?;
        hub.ready(0, FIRST_READ).await;
        let request = ClaimRequest {
            known: hub.look(|state| KnownLeases::of(state, caller.node, &publication)).flatten(),
            // A lease of this host's from before: only the host itself calls from its address.
            adopt: publication.public_ip.map(std::net::IpAddr::V4) == Some(caller.address)
                || publication.public_ipv6.map(std::net::IpAddr::V6) == Some(caller.address),
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
        // Whoever drained or revoked the node since it was looked at, perhaps at another replica, may have looked for its
        // leases before this one was there.
        if let Err(refused) = registry::check_may_hold(self.store(), caller.node).await {
            if refused.code() == Code::PermissionDenied {
                let released = allocate::release(self.store(), &request.keys, &claim).await;
                released.map_err(|error| refusal::store(&error))?;
            }
            return Err(refused);
        }
        Ok(claim)
    }

    /// The configuration to claim under: the store's; but what a node holds in a network that was changed meanwhile it may
    /// refresh under the one it holds it under.
    async fn config_for(
        &self,
        keys: &NetworkKeys,
        node: NodeId,
        previous: Option<SubnetKey>,
        offered: &[u8],
    ) -> Result<Under, Status> {
        let reply = self.store().range(&KeyRange::key(&keys.config())).await;
        let found = reply.map_err(|error| refusal::store(&error))?.kvs.into_iter().next();
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
                // Of a family that the network has no more, or has beside, the library would choose a new subnet: containers
                // live in this one.
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
            // The node has not read yet that the network was changed: it would hold a subnet that is not in the network it
            // knows. It asks again.
            return Err(refusal::acquire(&allocate::AcquireError::Busy(1)));
        }
        Ok(Under::Stored(stored.map_or(ConfigState::Missing, ConfigState::Valid)))
    }

    /// Refuses a previous subnet that is larger than those the network hands out, unless the store knows that the node held it:
    /// it was given out before the network was changed. One that is no larger may be anybody's word, for the store may have been
    /// wiped since.
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
    async fn check_nobody_elses(
        &self,
        keys: &NetworkKeys,
        node: NodeId,
        publication: &Publication,
    ) -> Result<(), Status> {
        let hub = self.hub(keys)?;
        if !hub.ready(0, FIRST_READ).await {
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
            None => Ok(()),
        }
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
        self.check_nobody_elses(&keys, caller.node, &publication).await?;
        let lost = || refusal::update(&allocate::UpdateError::Lost(subnets));
        let (kv, mut lease) = self.own_lease(&keys, subnets, caller.node).await?.ok_or_else(lost)?;
        let etcd_lease = kv.lease.ok_or_else(lost)?;
        lease.owner = Some(owner);
        let claim = Claim { lease, etcd_lease, origin: Origin::Refreshed };
        let claim = allocate::update(self.store(), &keys, &claim, &publication).await;
        claim.map_err(|error| refusal::update(&error))
    }
}

/// What a publication says does not depend on the subnets it is for.
fn any_subnets() -> Result<SubnetKey, Status> {
    wire::subnets("0.0.0.0-0")
}

/// Whether what is claimed under `stored`, `previous` if that is something, is also of the network as the node knows it.
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

/// Whether a host with `publication` would be taken for the one of `lease`, by any of the ways to either.
fn shares_identity(lease: &Lease, publication: &Publication) -> bool {
    let theirs = lease.publication();
    ways(&theirs).any(|theirs| ways(publication).any(|ours| same_identity(theirs, ours)))
}

fn ways(publication: &Publication) -> impl Iterator<Item = &BackendData> {
    let besides = publication.besides.iter().flat_map(|besides| [&besides.data, &besides.data_v6]);
    [&publication.data, &publication.data_v6].into_iter().chain(besides)
}

fn same_identity(a: &BackendData, b: &BackendData) -> bool {
    match (a, b) {
        (BackendData::Vxlan { mac: a, .. }, BackendData::Vxlan { mac: b, .. }) => a == b,
        (BackendData::Wireguard { public_key: a, .. }, BackendData::Wireguard { public_key: b, .. }) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
