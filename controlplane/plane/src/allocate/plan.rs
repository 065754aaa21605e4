//! Decides which lease a node should have, and builds the one transaction that gives it.

use std::net::IpAddr;

use flatnet_model::ipam;
use flatnet_model::keys::presence;
use flatnet_model::{EtcdLease, IpFamily, Lease, NetworkConfig, NodeId, Pool, Revision, SubnetKey};
use ipnet::IpNet;

use super::survey::{ClaimRecord, NodeRecord, RECORD_VERSION, Seen, Survey, read_claims};
use super::{AcquireError, Claim, ClaimRequest, Origin};
use crate::random::Random;
use crate::store::{Compare, KeyRange, Store, StoreError, Txn, Write};

/// The claim of one subnet as it was read.
struct Half {
    net: IpNet,
    /// Revision of its claim; 0: nobody ever claimed it.
    claim_revision: Revision,
}

/// The lease to write, and the conditions under which it may be written.
pub(super) struct Plan {
    subnets: SubnetKey,
    halves: Vec<Half>,
    origin: Origin,
    /// The lease written over; `None`: there must be none.
    replaces: Option<Replaced>,
    /// Further leases of this node, to be removed.
    extra: Vec<(SubnetKey, Revision)>,
    /// A node whose presence must be absent.
    absent_node: Option<NodeId>,
}

struct Replaced {
    mod_revision: Revision,
    create_revision: Revision,
    value: Vec<u8>,
    etcd_lease: Option<EtcdLease>,
}

/// Decides in the order described at [`super::acquire`].
pub(super) async fn decide<S: Store>(
    store: &S,
    request: &ClaimRequest,
    config: &NetworkConfig,
    survey: &Survey,
    random: &mut impl Random,
) -> Result<Plan, AcquireError> {
    let decision = Decision { store, request, config, survey };
    let mut own = survey.own(request.owner.node);
    // The lease that containers live in comes first: a store that was put back may have another lease of this node's,
    // from before.
    own.sort_by_key(|seen| Some(seen.subnets) != request.previous);
    if let Some((first, extra)) = own.split_first() {
        return match decision.held_instead_of(&own) {
            Some(previous) => decision.take_back(previous, &own).await,
            None => decision.refresh(first, extra).await,
        };
    }
    let here = decision.same_host().await?;
    let named = decision.named()?;
    if let Some(seen) = decision.adoptable(&here, &named).filter(|_| request.adopt) {
        return decision.replace(seen, Origin::Adopted, &[]).await;
    }
    decision.take(named, random).await
}

/// A subnet that this node names itself.
#[derive(Clone, Copy)]
struct Named {
    net: IpNet,
    /// True if it was asked for; false if it was held before.
    wanted: bool,
}

struct Decision<'a, S> {
    store: &'a S,
    request: &'a ClaimRequest,
    config: &'a NetworkConfig,
    survey: &'a Survey,
}

impl<S: Store> Decision<'_, S> {
    /// Returns the subnets this node held before if the store has other leases of this node instead, even when one half
    /// is the same.
    fn held_instead_of(&self, own: &[&Seen]) -> Option<SubnetKey> {
        let previous = self.request.previous?;
        let whole = self.config.pools().all(|pool| previous.of(pool.family()).is_some()) && self.is_inside(previous);
        (whole && own.iter().all(|seen| seen.subnets != previous)).then_some(previous)
    }

    /// Makes a plan that claims what was held before and removes the leases `own`.
    async fn take_back(&self, previous: SubnetKey, own: &[&Seen]) -> Result<Plan, AcquireError> {
        let is_own = |seen: &Seen| own.iter().any(|own| own.subnets == seen.subnets);
        let in_the_way = |seen: &&Seen| !is_own(seen) && previous.iter().any(|net| seen.overlaps(net));
        if let Some(other) = self.survey.seen.iter().find(in_the_way) {
            return Err(AcquireError::Taken { subnets: previous, by: other.holder() });
        }
        Ok(Plan {
            subnets: previous,
            halves: self.halves(previous).await?,
            origin: Origin::Reclaimed,
            replaces: None,
            extra: own.iter().map(|seen| (seen.subnets, seen.mod_revision)).collect(),
            absent_node: None,
        })
    }

    async fn refresh(&self, first: &Seen, extra: &[&Seen]) -> Result<Plan, AcquireError> {
        if !self.is_inside(first.subnets) {
            return Err(self.moved(first.subnets));
        }
        self.replace(first, Origin::Refreshed, extra).await
    }

    /// Makes a plan that writes over `seen`.
    async fn replace(&self, seen: &Seen, origin: Origin, extra: &[&Seen]) -> Result<Plan, AcquireError> {
        let former = seen.lease.as_ref().and_then(|lease| lease.owner.as_ref()).map(|owner| owner.node);
        Ok(Plan {
            subnets: seen.subnets,
            halves: self.halves(seen.subnets).await?,
            origin,
            replaces: Some(Replaced {
                mod_revision: seen.mod_revision,
                create_revision: seen.create_revision,
                value: seen.value.clone(),
                // flanneld's own lease is left to expire: flanneld may still revoke it.
                etcd_lease: seen.etcd_lease.filter(|_| origin == Origin::Refreshed),
            }),
            extra: extra.iter().map(|seen| (seen.subnets, seen.mod_revision)).collect(),
            absent_node: former.filter(|node| *node != self.request.owner.node),
        })
    }

    /// Returns the leases that publish this host's address. A living node among them is a conflict.
    async fn same_host(&self) -> Result<Vec<&Seen>, AcquireError> {
        let mut here = Vec::new();
        for seen in &self.survey.seen {
            let Some(lease) = &seen.lease else { continue };
            let Some(address) = self.shared_address(lease) else { continue };
            let Some(owner) = &lease.owner else {
                if lease.etcd_lease.is_some() {
                    here.push(seen);
                }
                continue;
            };
            let alive = !self.store.range(&KeyRange::key(&presence(owner.node))).await?.kvs.is_empty();
            if alive {
                let name = if owner.name.is_empty() { owner.node.to_string() } else { owner.name.clone() };
                return Err(AcquireError::SamePublicIp { address, subnets: seen.subnets, name });
            }
            here.push(seen);
        }
        Ok(here)
    }

    fn shared_address(&self, lease: &Lease) -> Option<IpAddr> {
        let ours = &self.request.publication;
        let v4 = ours.public_ip.filter(|ip| lease.public_ip == Some(*ip)).map(IpAddr::V4);
        v4.or_else(|| ours.public_ipv6.filter(|ip| lease.public_ipv6 == Some(*ip)).map(IpAddr::V6))
    }

    /// Returns the lease of `here` to take over: the one named, or the oldest if nothing is named.
    fn adoptable<'s>(&self, here: &[&'s Seen], named: &[Named]) -> Option<&'s Seen> {
        let fits = |seen: &&&Seen| {
            self.is_inside(seen.subnets) && named.iter().all(|named| seen.subnets.iter().any(|net| net == named.net))
        };
        here.iter().filter(fits).min_by_key(|seen| (seen.create_revision, seen.subnets)).copied()
    }

    /// Returns the subnets asked for, else those held before, family by family.
    fn named(&self) -> Result<Vec<Named>, AcquireError> {
        let mut named = Vec::new();
        for net in &self.request.wanted {
            if !self.pool_of(*net).is_some_and(|pool| pool.holds(*net)) {
                let network = self.request.keys.network().to_string();
                return Err(AcquireError::Outside { subnet: *net, network, expected: self.handed_out() });
            }
            named.push(Named { net: *net, wanted: true });
        }
        if let Some(previous) = self.request.previous {
            for pool in self.config.pools() {
                let Some(net) = previous.of(pool.family()) else { continue };
                if named.iter().any(|named| IpFamily::of(named.net.addr()) == pool.family()) {
                    continue;
                }
                if !is_inside_pool(pool, net) {
                    return Err(self.moved(previous));
                }
                named.push(Named { net, wanted: false });
            }
        }
        Ok(named)
    }

    /// Makes a plan that claims what is named and chooses the rest.
    async fn take(&self, named: Vec<Named>, random: &mut impl Random) -> Result<Plan, AcquireError> {
        for named in &named {
            if let Some(other) = self.survey.seen.iter().find(|seen| seen.overlaps(named.net)) {
                let by = other.holder();
                return Err(match (named.wanted, self.request.previous) {
                    (false, Some(subnets)) => AcquireError::Taken { subnets, by },
                    _ => AcquireError::WantedTaken { subnet: named.net, by },
                });
            }
        }
        let (mut v4, mut v6) = (None, None);
        let mut halves = Vec::new();
        let mut chosen = false;
        for pool in self.config.pools() {
            let half = match named.iter().find(|named| IpFamily::of(named.net.addr()) == pool.family()) {
                Some(named) => self.half(named.net).await?,
                None => {
                    chosen = true;
                    self.choose(pool, random).await?
                }
            };
            match half.net {
                IpNet::V4(net) => v4 = Some(net),
                IpNet::V6(net) => v6 = Some(net),
            }
            halves.push(half);
        }
        let subnets = SubnetKey::new(v4, v6)
            .map_err(|_| AcquireError::NoConfig { network: self.request.keys.network().to_string() })?;
        let origin = if chosen && named.is_empty() { Origin::Chosen } else { Origin::Reclaimed };
        Ok(Plan { subnets, halves, origin, replaces: None, extra: Vec::new(), absent_node: None })
    }

    /// Chooses a free subnet that nobody remembers, if there is one.
    async fn choose(&self, pool: &Pool, random: &mut impl Random) -> Result<Half, AcquireError> {
        let claims = read_claims(self.store, self.request, &KeyRange::prefix(&self.request.keys.claims())).await?;
        let remembered: Vec<IpNet> =
            claims.iter().filter(|claim| claim.node != Some(self.request.owner.node)).map(|claim| claim.net).collect();
        let net = ipam::choose(pool, &self.survey.leased(), &remembered, random.next_u64())?;
        let claim = claims.iter().find(|claim| claim.net == net);
        Ok(Half { net, claim_revision: claim.map_or(0, |claim| claim.revision) })
    }

    async fn halves(&self, subnets: SubnetKey) -> Result<Vec<Half>, StoreError> {
        let mut halves = Vec::new();
        for net in subnets.iter() {
            halves.push(self.half(net).await?);
        }
        Ok(halves)
    }

    async fn half(&self, net: IpNet) -> Result<Half, StoreError> {
        let reply = self.store.range(&KeyRange::key(&self.request.keys.claim(net))).await?;
        Ok(Half { net, claim_revision: reply.kvs.first().map_or(0, |kv| kv.mod_revision) })
    }

    fn pool_of(&self, net: IpNet) -> Option<&Pool> {
        self.config.pool(IpFamily::of(net.addr()))
    }

    /// Returns true if every subnet is inside the network; the prefix length may be from before a change.
    fn is_inside(&self, subnets: SubnetKey) -> bool {
        subnets.iter().all(|net| self.pool_of(net).is_some_and(|pool| is_inside_pool(pool, net)))
    }

    fn moved(&self, subnets: SubnetKey) -> AcquireError {
        AcquireError::Moved { subnets, network: self.request.keys.network().to_string(), expected: self.handed_out() }
    }

    fn handed_out(&self) -> String {
        let pool = |pool: &Pool| format!("/{} subnets from {} to {}", pool.subnet_len(), pool.min(), pool.max());
        self.config.pools().map(pool).collect::<Vec<_>>().join(", ")
    }
}

fn is_inside_pool(pool: &Pool, net: IpNet) -> bool {
    pool.network().contains(&net) && pool.network() != net
}

impl Plan {
    /// Returns the store's lease under the lease that is refreshed.
    pub(super) fn reusable_lease(&self) -> Option<EtcdLease> {
        self.replaces.as_ref().and_then(|replaced| replaced.etcd_lease)
    }

    /// Returns true if the plan writes over this node's own lease on `held` and takes nothing else.
    pub(super) fn refreshes(&self, held: Option<SubnetKey>) -> bool {
        self.origin == Origin::Refreshed && self.replaces.is_some() && Some(self.subnets) == held
    }

    /// Returns true if a claim was written after the leases were read. The leases then do not show whose that claim is,
    /// and comparing the claim as it is now would not tell.
    pub(super) fn is_ahead_of(&self, survey: &Survey) -> bool {
        self.halves.iter().any(|half| half.claim_revision > survey.revision)
    }

    /// Returns true if the store already has what would be written.
    pub(super) fn is_done(&self, survey: &Survey, value: &[u8], etcd_lease: EtcdLease) -> bool {
        self.extra.is_empty()
            && survey.node_subnets == Some(self.subnets)
            && self.halves.iter().all(|half| half.claim_revision != 0)
            && self
                .replaces
                .as_ref()
                .is_some_and(|replaced| replaced.value == value && replaced.etcd_lease == Some(etcd_lease))
    }

    /// Builds the one transaction.
    pub(super) fn transaction(
        &self,
        request: &ClaimRequest,
        survey: &Survey,
        value: Vec<u8>,
        etcd_lease: EtcdLease,
    ) -> Txn {
        let keys = &request.keys;
        let node = request.owner.node;
        let key = keys.lease(&self.subnets);
        let mut when = vec![Compare::ModRevision(keys.node_claim(node), survey.node_revision)];
        match &self.replaces {
            Some(replaced) => when.push(Compare::ModRevision(key.clone(), replaced.mod_revision)),
            None => {
                // One of the leases removed below may be another form of the same key: all the other forms must be
                // absent.
                let mut removed: Vec<String> = self.extra.iter().map(|(subnets, _)| keys.lease(subnets)).collect();
                removed.sort_unstable();
                let (start, end) = keys.lease_forms(&self.subnets);
                when.extend(around(start, end, removed).map(Compare::Absent));
            }
        }
        when.extend(self.absent_node.map(|node| Compare::ModRevision(presence(node), 0)));
        let mut then = vec![
            Write::Put { key, value, lease: Some(etcd_lease) },
            record(keys.node_claim(node), &NodeRecord { version: RECORD_VERSION, subnets: self.subnets.to_string() }),
        ];
        for half in &self.halves {
            when.push(Compare::ModRevision(keys.claim(half.net), half.claim_revision));
            then.push(record(keys.claim(half.net), &ClaimRecord { version: RECORD_VERSION, node }));
        }
        for (subnets, revision) in &self.extra {
            when.push(Compare::ModRevision(keys.lease(subnets), *revision));
            then.push(Write::Delete(keys.lease(subnets)));
        }
        Txn { when, then }
    }

    /// Returns the claim held once the plan is carried out, at `revision` or already before.
    pub(super) fn claim(
        &self,
        request: &ClaimRequest,
        etcd_lease: EtcdLease,
        revision: Option<Revision>,
    ) -> Option<Claim> {
        let before = self.replaces.as_ref();
        let mod_revision = revision.or(before.map(|replaced| replaced.mod_revision))?;
        let publication = request.publication.clone();
        let lease = Lease {
            subnets: self.subnets,
            public_ip: publication.public_ip,
            public_ipv6: publication.public_ipv6,
            backend: publication.backend,
            data: publication.data,
            data_v6: publication.data_v6,
            besides: publication.besides,
            owner: Some(request.owner.clone()),
            etcd_lease: Some(etcd_lease),
            create_revision: before.map_or(mod_revision, |replaced| replaced.create_revision),
            mod_revision,
        };
        Some(Claim { lease, etcd_lease, origin: self.origin })
    }
}

/// Returns the parts of `[start, end)` without the sorted keys `holes`.
fn around(start: String, end: String, mut holes: Vec<String>) -> impl Iterator<Item = KeyRange> {
    holes.retain(|hole| *hole >= start && *hole < end);
    // The first key after another is that key and a zero byte.
    let starts: Vec<String> = std::iter::once(start).chain(holes.iter().map(|hole| format!("{hole}\0"))).collect();
    let ends = holes.into_iter().chain([end]);
    starts.into_iter().zip(ends).filter(|(start, end)| start < end).map(|(start, end)| KeyRange { start, end })
}

/// Writes a record that lasts for ever: our records are not under a lease.
fn record(key: String, value: &impl serde::Serialize) -> Write {
    // The value has only strings and numbers, so this cannot fail.
    Write::Put { key, value: serde_json::to_vec(value).unwrap_or_default(), lease: None }
}
