//! Flatnet's vocabulary: what a network, a lease, a node and the cluster's state *are*.
//!
//! Everything here is a value: no sockets, files, clocks or runtimes. The control plane fills these
//! types from the store, the agent's core decides from them, and neither can put into them what was
//! not parsed and bounded first.
//!
//! What is *not* here: the JSON in the store (`flatnet_controlplane::flannel`), and kernel objects
//! (`flatnet_core::object`).

pub mod backend;
pub mod host_ranges;
pub mod ipam;
pub mod keys;
pub mod lease;
pub mod net;
pub mod network;
pub mod node;
pub mod pool;
pub mod state;
pub mod subnet;
pub mod text;
pub mod vtep;
pub mod wireguard;

pub use backend::{
    BackendConfig, BackendData, BackendKind, EARLIER_BACKENDS, GreConfig, VxlanConfig, earlier_backends,
};
pub use host_ranges::{HostRange, HostRanges};
pub use lease::{Besides, EtcdLease, Lease, Owner, Publication, Revision};
pub use net::{GreKey, IfName, IpFamily, Mac, Mtu, Vni};
pub use network::{NetworkConfig, NetworkName};
pub use node::{InstanceNonce, NodeId};
pub use pool::Pool;
pub use subnet::SubnetKey;
pub use vtep::vtep_mac;
pub use wireguard::{PresharedKey, WireguardConfig, WireguardKey, WireguardMode};
