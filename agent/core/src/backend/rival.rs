//! Devices of another program that have what a tunnel of ours needs: a host has room for one of the two.

use flatnet_model::{IfName, IpFamily, NetworkConfig};

use super::{families, of, vxlan};
use crate::object::{KernelState, Link, LinkKind};
use crate::problem::{Problem, ProblemCode};

/// Returns the devices by which another program would have the tunnels of `config`.
pub(crate) fn rivals(config: &NetworkConfig) -> Vec<IfName> {
    families(config).filter_map(|family| of(&config.backend).rival(family)).collect()
}

/// Returns the names that another program would give the devices of `desired`, each with our device.
pub fn rivals_of(desired: &KernelState) -> impl Iterator<Item = (IfName, &Link)> {
    desired.links.values().filter_map(|link| {
        let LinkKind::Vxlan(vxlan) = &link.kind else { return None };
        Some((vxlan::rival(vxlan.vni, IpFamily::of(vxlan.local))?, link))
    })
}

/// Returns the problem of a rival that is there and is not to be taken over. `what`: a description of it.
#[must_use]
pub fn problem(device: IfName, what: &str) -> Problem {
    Problem::new(
        ProblemCode::FlannelDevice,
        format!("{device} ({what}) was left by flanneld and holds the VNI this network needs"),
        "stop flanneld on this host, then join with --take-over: the subnet is kept",
        device,
    )
}
