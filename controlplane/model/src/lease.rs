//! A subnet lease: which node has which subnet, and how to reach it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::backend::{BackendConfig, BackendKind};
use crate::net::{GreKey, IpFamily, Mac, Vni};
use crate::node::{InstanceNonce, NodeId};
use crate::subnet::SubnetKey;
use crate::wireguard::WireguardKey;

/// A revision of the store: every change has the next one.
pub type Revision = i64;

/// The store's own lease under a key: the key goes when it is not kept alive. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EtcdLease(pub i64);

/// One record under `subnets/`, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What is leased.
    pub subnets: SubnetKey,
    /// The underlay IPv4 address at which the node receives (`PublicIP`).
    pub public_ip: Option<Ipv4Addr>,
    /// The underlay IPv6 address at which the node receives (`PublicIPv6`).
    pub public_ipv6: Option<Ipv6Addr>,
    /// The backend the node publishes.
    pub backend: BackendKind,
    /// What reaching it over an IPv4 underlay takes (`BackendData`).
    pub data: BackendData,
    /// What reaching it over an IPv6 underlay takes (`BackendV6Data`).
    pub data_v6: BackendData,
    /// How the node can be reached besides, while its network changes from one backend to another.
    pub besides: Vec<Besides>,
    /// Who holds it, if one of our agents does; `None` for flanneld, permanent peers and reservations.
    pub owner: Option<Owner>,
    /// The store's lease under the key; `None`: it never expires (a permanent peer or a reservation).
    pub etcd_lease: Option<EtcdLease>,
    /// Revision at which the key was created: of two leases that contradict each other the older one holds.
    pub create_revision: Revision,
    /// Revision at which the key was last written.
    pub mod_revision: Revision,
}

impl Lease {
    /// The underlay address of `family`.
    #[must_use]
    pub fn public_address(&self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.public_ip.map(IpAddr::V4),
            IpFamily::V6 => self.public_ipv6.map(IpAddr::V6),
        }
    }

    /// What reaching the node over an underlay of `family` takes.
    #[must_use]
    pub fn backend_data(&self, family: IpFamily) -> &BackendData {
        match family {
            IpFamily::V4 => &self.data,
            IpFamily::V6 => &self.data_v6,
        }
    }

    /// Whether `node` holds it.
    #[must_use]
    pub fn is_owned_by(&self, node: NodeId) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.node == node)
    }
}

/// The one key of ours in flannel's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// Its name, for people; at most 253 bytes (a DNS name, RFC 1035).
    pub name: String,
    /// Which running copy of it.
    pub nonce: InstanceNonce,
}

/// A backend's part of a lease, for one underlay family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendData {
    /// Nothing published (host-gw, or no such underlay).
    None,
    /// flannel's vxlan data.
    Vxlan {
        /// The VNI the node receives on; absent in leases of old flannel releases.
        vni: Option<Vni>,
        /// `VtepMAC`.
        mac: Mac,
    },
    /// flannel's wireguard data.
    Wireguard {
        /// `PublicKey`.
        public_key: WireguardKey,
        /// `Port`: UDP port the node listens on; absent: that of the network's configuration.
        port: Option<u16>,
    },
    /// Of the gre backend.
    Gre {
        /// `Key`: what the node receives under.
        key: GreKey,
    },
}

/// Another way to a node, beside the one its lease names: an earlier backend of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Besides {
    /// The backend.
    pub backend: BackendKind,
    /// What reaching it over an IPv4 underlay takes.
    pub data: BackendData,
    /// What reaching it over an IPv6 underlay takes.
    pub data_v6: BackendData,
    /// Whether the node still sends to somebody by it: then its peers must go on receiving that.
    pub used: bool,
}

/// What a node publishes of itself in its lease: how peers reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The underlay IPv4 address at which the node receives.
    pub public_ip: Option<Ipv4Addr>,
    /// The underlay IPv6 address at which the node receives.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The backend.
    pub backend: BackendKind,
    /// What reaching it over an IPv4 underlay takes.
    pub data: BackendData,
    /// What reaching it over an IPv6 underlay takes.
    pub data_v6: BackendData,
    /// How the node can be reached besides.
    pub besides: Vec<Besides>,
}

impl Publication {
    /// Whether it says that its node may send by `backend`.
    #[must_use]
    pub fn sends_by(&self, backend: &BackendConfig) -> bool {
        let of =
            |besides: &Besides| besides.used && receives(&besides.backend, [&besides.data, &besides.data_v6], backend);
        receives(&self.backend, [&self.data, &self.data_v6], backend) || self.besides.iter().any(of)
    }
}

impl Lease {
    /// What its holder publishes.
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

    /// The lease as the network had it under `backend`: what its node can receive by that, if it can, and whether it may
    /// still send by it.
    #[must_use]
    pub fn under(&self, backend: &BackendConfig) -> Option<(Self, bool)> {
        if receives(&self.backend, [&self.data, &self.data_v6], backend) {
            return Some((self.clone(), true));
        }
        let of = |besides: &&Besides| receives(&besides.backend, [&besides.data, &besides.data_v6], backend);
        let besides = self.besides.iter().find(of)?;
        let lease = Self {
            backend: besides.backend.clone(),
            data: besides.data.clone(),
            data_v6: besides.data_v6.clone(),
            ..self.clone()
        };
        Some((lease, besides.used))
    }
}

/// Whether a node that publishes this is reached by `backend`. What does not name a VNI or key has the network's.
fn receives(kind: &BackendKind, data: [&BackendData; 2], backend: &BackendConfig) -> bool {
    let fits = |data: &BackendData| match (data, backend) {
        (BackendData::Vxlan { vni: Some(vni), .. }, BackendConfig::Vxlan(vxlan)) => *vni == vxlan.vni,
        (BackendData::Gre { key }, BackendConfig::Gre(gre)) => *key == gre.key,
        _ => true,
    };
    *kind == backend.kind() && data.into_iter().all(fits)
}
