//! The state of the store before a claim.

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::NetworkState;
use flatnet_model::{EtcdLease, Lease, NodeId, Publication, Revision, SubnetKey};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{ClaimRequest, Holder};
use crate::flannel::{decode_lease, encode_lease, lease_name};
use crate::store::{KeyRange, KeyValue, Store, StoreError};

/// A claim's value: the node that last held the subnet.
#[derive(Serialize, Deserialize)]
pub(super) struct ClaimRecord {
    pub(super) version: u32,
    pub(super) node: NodeId,
}

/// A node's own record: the subnets it claimed last.
#[derive(Serialize, Deserialize)]
pub(super) struct NodeRecord {
    pub(super) version: u32,
    pub(super) subnets: String,
}

/// The version of both records.
pub(super) const RECORD_VERSION: u32 = 1;

/// A key under `subnets/` that names subnets; its value may be unreadable and still holds them.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) subnets: SubnetKey,
    pub(super) lease: Option<Lease>,
    pub(super) value: Vec<u8>,
    pub(super) create_revision: Revision,
    pub(super) mod_revision: Revision,
    pub(super) etcd_lease: Option<EtcdLease>,
}

/// The leases of a network as known to somebody who follows the store.
#[derive(Clone, Debug)]
pub struct KnownLeases {
    /// The leases. Each has its record only where the node may have to do with it: thousands are other nodes'.
    seen: Vec<Seen>,
    revision: Revision,
}

impl KnownLeases {
    /// Returns the leases in `state`, for `node`, which publishes `publication`. `None` when it has keys that could not
    /// be read: one of them may hold a subnet all the same.
    #[must_use]
    pub fn of(state: &NetworkState, node: NodeId, publication: &Publication) -> Option<Self> {
        if !state.rejected.is_empty() {
            return None;
        }
        let concerns = |lease: &Lease| {
            lease.is_owned_by(node)
                || (lease.public_ip.is_some() && lease.public_ip == publication.public_ip)
                || (lease.public_ipv6.is_some() && lease.public_ipv6 == publication.public_ipv6)
        };
        let seen = |lease: &Lease| {
            let ours = concerns(lease);
            Seen {
                subnets: lease.subnets,
                lease: ours.then(|| lease.clone()),
                value: if ours { encode_lease(&lease.publication(), lease.owner.as_ref()) } else { Vec::new() },
                create_revision: lease.create_revision,
                mod_revision: lease.mod_revision,
                etcd_lease: lease.etcd_lease,
            }
        };
        Some(Self { seen: state.leases.values().map(seen).collect(), revision: state.revision })
    }
}

impl Holder {
    /// Names the holder of `lease`.
    #[must_use]
    pub fn of(lease: &Lease) -> Self {
        let name = match (&lease.owner, lease.public_ip, lease.public_ipv6) {
            (Some(owner), ..) if owner.name.is_empty() => format!("node {}", owner.node),
            (Some(owner), ..) => format!("node {}", owner.name),
            (None, Some(ip), _) => format!("the host at {ip}"),
            (None, None, Some(ip)) => format!("the host at {ip}"),
            (None, None, None) => "a reservation".to_owned(),
        };
        Self { subnets: lease.subnets, name }
    }
}

impl Seen {
    pub(super) fn holder(&self) -> Holder {
        match &self.lease {
            None => Holder { subnets: self.subnets, name: "a record that cannot be read".to_owned() },
            Some(lease) => Holder::of(lease),
        }
    }

    pub(super) fn overlaps(&self, net: IpNet) -> bool {
        self.subnets.iter().any(|own| own.contains(&net) || net.contains(&own))
    }
}

/// The network's leases and this node's own record.
#[derive(Debug)]
pub(super) struct Survey {
    /// The leases, in the order of their keys.
    pub(super) seen: Vec<Seen>,
    /// The revision at which the leases were read.
    pub(super) revision: Revision,
    /// Revision of this node's own record; 0: there is none.
    pub(super) node_revision: Revision,
    /// The subnets this node claimed last, by its own record.
    pub(super) node_subnets: Option<SubnetKey>,
}

impl Survey {
    /// Reads the own record first: a claim of ours that happens between the two reads is then seen among the leases,
    /// and one that happens after both changes the record.
    pub(super) async fn read<S: Store>(store: &S, request: &ClaimRequest) -> Result<Self, StoreError> {
        let keys = &request.keys;
        let record = node_record(store, request).await?;
        let reply = store.range(&KeyRange::prefix(&keys.subnets())).await?;
        let seen = reply.kvs.into_iter().filter_map(|kv| {
            let subnets = lease_name(keys, &kv.key)?.ok()?;
            let lease = decode_lease(subnets, &kv).ok();
            let KeyValue { value, create_revision, mod_revision, lease: etcd_lease, .. } = kv;
            Some(Seen { subnets, lease, value, create_revision, mod_revision, etcd_lease })
        });
        Ok(Self::new(seen.collect(), reply.revision, record))
    }

    /// Makes the survey from what a follower knows instead of reading it. `None` when this node's own record is
    /// younger: a claim of ours may be missing from what is known.
    pub(super) async fn from_known<S: Store>(
        store: &S,
        request: &ClaimRequest,
        known: KnownLeases,
    ) -> Result<Option<Self>, StoreError> {
        let record = node_record(store, request).await?;
        let is_current = record.as_ref().is_none_or(|kv| kv.mod_revision <= known.revision);
        Ok(is_current.then(|| Self::new(known.seen, known.revision, record)))
    }

    fn new(seen: Vec<Seen>, revision: Revision, record: Option<KeyValue>) -> Self {
        Self {
            seen,
            revision,
            node_revision: record.as_ref().map_or(0, |kv| kv.mod_revision),
            node_subnets: record
                .and_then(|kv| serde_json::from_slice::<NodeRecord>(&kv.value).ok())
                .and_then(|record| record.subnets.parse().ok()),
        }
    }

    /// Returns this node's leases, the oldest first.
    pub(super) fn own(&self, node: NodeId) -> Vec<&Seen> {
        let mut own: Vec<&Seen> =
            self.seen.iter().filter(|seen| seen.lease.as_ref().is_some_and(|lease| lease.is_owned_by(node))).collect();
        own.sort_by_key(|seen| (seen.create_revision, seen.subnets));
        own
    }

    /// Returns everything that is leased.
    pub(super) fn leased(&self) -> Vec<IpNet> {
        self.seen.iter().flat_map(|seen| seen.subnets.iter().collect::<Vec<_>>()).collect()
    }
}

async fn node_record<S: Store>(store: &S, request: &ClaimRequest) -> Result<Option<KeyValue>, StoreError> {
    let key = request.keys.node_claim(request.owner.node);
    Ok(store.range(&KeyRange::key(&key)).await?.kvs.into_iter().next())
}

/// One claim of a subnet.
pub(super) struct Claimed {
    pub(super) net: IpNet,
    pub(super) node: Option<NodeId>,
    pub(super) revision: Revision,
}

/// Reads claims in `range`; keys that are not subnets are passed over.
pub(super) async fn read_claims<S: Store>(
    store: &S,
    request: &ClaimRequest,
    range: &KeyRange,
) -> Result<Vec<Claimed>, StoreError> {
    let prefix = request.keys.claims();
    let reply = store.range(range).await?;
    Ok(reply.kvs.iter().filter_map(|kv| claimed(&prefix, kv)).collect())
}

/// Returns the node that last held `net` in the network of `keys`, if that is on record.
pub async fn last_holder<S: Store>(store: &S, keys: &NetworkKeys, net: IpNet) -> Result<Option<NodeId>, StoreError> {
    let reply = store.range(&KeyRange::key(&keys.claim(net))).await?;
    let kv = reply.kvs.into_iter().next();
    Ok(kv.and_then(|kv| serde_json::from_slice::<ClaimRecord>(&kv.value).ok()).map(|record| record.node))
}

fn claimed(prefix: &str, kv: &KeyValue) -> Option<Claimed> {
    let name = std::str::from_utf8(kv.key.strip_prefix(prefix.as_bytes())?).ok()?;
    let (address, len) = name.rsplit_once('-')?;
    let cidr = format!("{address}/{len}");
    let net = cidr.parse::<Ipv4Net>().map(IpNet::V4).or_else(|_| cidr.parse::<Ipv6Net>().map(IpNet::V6)).ok()?;
    let node = serde_json::from_slice::<ClaimRecord>(&kv.value).ok().map(|record| record.node);
    Some(Claimed { net, node, revision: kv.mod_revision })
}
