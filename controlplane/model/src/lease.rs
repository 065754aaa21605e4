//! A subnet lease: which node has which subnet, and how to reach it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::backend::{BackendConfig, BackendData, BackendKind};
use crate::net::IpFamily;
use crate::node::{InstanceNonce, NodeId};
use crate::subnet::SubnetKey;

/// A revision of the store: every change has the next one.
pub type Revision = i64;

/// The store's own lease under a key. The store removes the key when the lease is not kept alive. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EtcdLease(pub i64);

/// One record under `subnets/`, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The leased subnets.
    pub subnets: SubnetKey,
    /// The underlay IPv4 address at which the node receives (`PublicIP`).
    pub public_ip: Option<Ipv4Addr>,
    /// The underlay IPv6 address at which the node receives (`PublicIPv6`).
    pub public_ipv6: Option<Ipv6Addr>,
    /// The backend the node publishes.
    pub backend: BackendKind,
    /// The data needed to reach the node over an IPv4 underlay (`BackendData`).
    pub data: BackendData,
    /// The data needed to reach the node over an IPv6 underlay (`BackendV6Data`).
    pub data_v6: BackendData,
    /// Other ways to reach the node, while its network changes from one backend to another.
    pub besides: Vec<Besides>,
    /// The holder, if it is one of our agents; `None` for flanneld, permanent peers and reservations.
    pub owner: Option<Owner>,
    /// The store's lease under the key; `None`: it never expires (a permanent peer or a reservation).
    pub etcd_lease: Option<EtcdLease>,
    /// Revision at which the key was created: of two leases that contradict each other the older one holds.
    pub create_revision: Revision,
    /// Revision at which the key was last written.
    pub mod_revision: Revision,
}

impl Lease {
    /// Returns the underlay address of `family`.
    #[must_use]
    pub fn public_address(&self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.public_ip.map(IpAddr::V4),
            IpFamily::V6 => self.public_ipv6.map(IpAddr::V6),
        }
    }

    /// Returns the data needed to reach the node over an underlay of `family`.
    #[must_use]
    pub fn backend_data(&self, family: IpFamily) -> &BackendData {
        match family {
            IpFamily::V4 => &self.data,
            IpFamily::V6 => &self.data_v6,
        }
    }

    /// Returns true if `node` holds the lease.
    #[must_use]
    pub fn is_owned_by(&self, node: NodeId) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.node == node)
    }
}

/// The one key that Flatnet adds to flannel's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// Its name, for people; at most 253 bytes (a DNS name, RFC 1035).
    pub name: String,
    /// The nonce of the running copy of the node that holds the lease.
    pub nonce: InstanceNonce,
}

/// Another way to a node, beside the one its lease names: an earlier backend of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Besides {
    /// The backend.
    pub backend: BackendKind,
    /// The data needed to reach the node over an IPv4 underlay.
    pub data: BackendData,
    /// The data needed to reach the node over an IPv6 underlay.
    pub data_v6: BackendData,
    /// True while the node still sends to somebody by this backend. Its peers must go on receiving it until then.
    pub used: bool,
}

/// The part of a lease that its node publishes about itself: how peers reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The underlay IPv4 address at which the node receives.
    pub public_ip: Option<Ipv4Addr>,
    /// The underlay IPv6 address at which the node receives.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The backend.
    pub backend: BackendKind,
    /// The data needed to reach the node over an IPv4 underlay.
    pub data: BackendData,
    /// The data needed to reach the node over an IPv6 underlay.
    pub data_v6: BackendData,
    /// Other ways to reach the node.
    pub besides: Vec<Besides>,
}

impl Publication {
    /// Returns a publication of `backend` without addresses and data.
    #[must_use]
    pub fn of(backend: BackendKind) -> Self {
        Self {
            public_ip: None,
            public_ipv6: None,
            backend,
            data: BackendData::None,
            data_v6: BackendData::None,
            besides: Vec::new(),
        }
    }

    /// Returns true if it says that its node may send by `backend`.
    #[must_use]
    pub fn sends_by(&self, backend: &BackendConfig) -> bool {
        let of =
            |besides: &Besides| besides.used && backend.reaches(&besides.backend, [&besides.data, &besides.data_v6]);
        backend.reaches(&self.backend, [&self.data, &self.data_v6]) || self.besides.iter().any(of)
    }

    /// Returns the data of all ways to the node: for each the data over IPv4 and the data over IPv6.
    pub fn ways(&self) -> impl Iterator<Item = [&BackendData; 2]> {
        ways([&self.data, &self.data_v6], &self.besides)
    }
}

impl Lease {
    /// Returns the part of the lease that its holder publishes.
    #[must_use]
    pub fn publication(&self) -> Publication {
        Publication {
            public_ip: self.public_ip,
            public_ipv6: self.public_ipv6,
            backend: self.backend.clone(),
            data: self.data.clone(),
            data_v6: self.data_v6.clone(),
            besides: self.besides.clone(),
        }
    }

    /// Returns the lease as the network had it under `backend`: the data by which its node can receive, if it can, and
    /// whether it may still send by it.
    #[must_use]
    pub fn under(&self, backend: &BackendConfig) -> Option<(Self, bool)> {
        if backend.reaches(&self.backend, [&self.data, &self.data_v6]) {
            return Some((self.clone(), true));
        }
        let of = |besides: &&Besides| backend.reaches(&besides.backend, [&besides.data, &besides.data_v6]);
        let besides = self.besides.iter().find(of)?;
        let lease = Self {
            backend: besides.backend.clone(),
            data: besides.data.clone(),
            data_v6: besides.data_v6.clone(),
            ..self.clone()
        };
        Some((lease, besides.used))
    }

    /// Returns the data of all ways to the node: for each the data over IPv4 and the data over IPv6.
    pub fn ways(&self) -> impl Iterator<Item = [&BackendData; 2]> {
        ways([&self.data, &self.data_v6], &self.besides)
    }
}

fn ways<'a>(named: [&'a BackendData; 2], besides: &'a [Besides]) -> impl Iterator<Item = [&'a BackendData; 2]> {
    std::iter::once(named).chain(besides.iter().map(|besides| [&besides.data, &besides.data_v6]))
}
