//! The keys of the store: the paths under which its records are.
//!
//! A network is a prefix in flannel's own layout: `<prefix>/config` and `<prefix>/subnets/<subnet key>`. The network
//! `default` lives at flannel's prefix, every further one at `/flatnet/networks/<name>`. Our own records are beside
//! them, where flanneld never looks.

use ipnet::IpNet;

use crate::network::NetworkName;
use crate::node::NodeId;
use crate::subnet::{SubnetKey, key_form};

/// flannel's default prefix (`-etcd-prefix`), that of the network `default`.
pub const FLANNEL_PREFIX: &str = "/coreos.com/network";
/// The prefix under which every further network has its own.
pub const NETWORKS: &str = "/flatnet/networks/";
/// The prefix under which every node's presence is.
pub const NODES: &str = "/flatnet/nodes/";
/// A record whose revision changes with every network created, changed or removed: comparing it makes choosing a free
/// VNI or checking for overlap a compare-and-swap over all networks.
pub const CATALOG: &str = "/flatnet/catalog";

/// The keys of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkKeys {
    name: NetworkName,
    prefix: String,
}

impl NetworkKeys {
    /// Makes the keys of `name`; `flannel_prefix` is where the network `default` lives.
    #[must_use]
    pub fn new(name: &NetworkName, flannel_prefix: &str) -> Self {
        let prefix = if name.is_default() {
            format!("/{}", flannel_prefix.trim_matches('/'))
        } else {
            format!("{NETWORKS}{name}")
        };
        Self { name: name.clone(), prefix }
    }

    /// Returns the name of the network whose keys these are.
    #[must_use]
    pub fn network(&self) -> &NetworkName {
        &self.name
    }

    /// Returns `<prefix>/`: everything of the network, for one range read and one watch.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// Returns the key of the network's configuration.
    #[must_use]
    pub fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// Returns `<prefix>/subnets/`: the network's leases.
    #[must_use]
    pub fn subnets(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    /// Returns the key of the lease of `subnets`.
    #[must_use]
    pub fn lease(&self, subnets: &SubnetKey) -> String {
        format!("{}/subnets/{subnets}", self.prefix)
    }

    /// Returns `[start, end)` of every key form a lease on the same IPv4 subnet can have: `K` itself and `K&<IPv6>`.
    /// `'` is the character after `&`.
    #[must_use]
    pub fn lease_forms(&self, subnets: &SubnetKey) -> (String, String) {
        let start = match subnets.v4() {
            Some(v4) => format!("{}/subnets/{}", self.prefix, key_form(IpNet::V4(v4))),
            None => self.lease(subnets),
        };
        let end = format!("{start}'");
        (start, end)
    }

    /// Returns the key of the record of the last holder of `subnet`, which is kept when the lease expires. It guards
    /// one half of a lease against other agents, and lets an expired subnet wait for its owner while another is free.
    #[must_use]
    pub fn claim(&self, subnet: IpNet) -> String {
        format!("{}{}", self.claims(), key_form(subnet))
    }

    /// Returns the key of the record of the subnets that `node` claimed last in this network. Every claim of the node
    /// compares and changes it, so that a claim with an outcome it never learnt cannot happen beside a later one.
    #[must_use]
    pub fn node_claim(&self, node: NodeId) -> String {
        format!("{}{node}", self.claims())
    }

    /// Returns the prefix of all claims of the network.
    #[must_use]
    pub fn claims(&self) -> String {
        format!("/flatnet/claims/{}/", self.name)
    }
}

/// Returns the key of a node's presence, which is there while the node is alive and connected.
#[must_use]
pub fn presence(node: NodeId) -> String {
    format!("{NODES}{node}")
}
