//! The table of which tunnel an inner address belongs to. It is made anew from the kernel's routes whenever these
//! change, and never changed itself, so that threads read it without waiting.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use flatnet_core::object::{Encap, RouteKey};
use flatnet_model::{GreKey, IfName, IpFamily};
use ipnet::IpNet;

use super::tun::Tun;

/// The tunnels of all devices served here.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Sorted by the first address of the peer's subnet, and then with the route first that counts first. Peers'
    /// subnets do not overlap.
    v4: Vec<Entry>,
    v6: Vec<Entry>,
}

/// The tunnel to one peer.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    subnet: IpNet,
    /// The address at which the tunnel ends here.
    pub(super) source: IpAddr,
    /// The address at which it ends at the peer.
    pub(super) remote: IpAddr,
    pub(super) key: GreKey,
    /// The device that the tunnel belongs to.
    pub(super) device: Arc<Tun>,
}

impl Table {
    /// Makes the table from routes. Routes through devices that are not in `devices` are left out.
    pub(super) fn new(routes: &BTreeMap<RouteKey, Encap>, devices: &BTreeMap<IfName, Arc<Tun>>) -> Self {
        let mut table = Self::default();
        // In the order of destination and metric, which a stable sort by address keeps.
        for (RouteKey { destination: subnet, .. }, encap) in routes {
            let Some(device) = devices.get(&encap.device) else { continue };
            let Encap { source, remote, key, .. } = *encap;
            let entry = Entry { subnet: *subnet, source, remote, key, device: Arc::clone(device) };
            match IpFamily::of(subnet.addr()) {
                IpFamily::V4 => table.v4.push(entry),
                IpFamily::V6 => table.v6.push(entry),
            }
        }
        table.v4.sort_by_key(|entry| entry.subnet.addr());
        table.v6.sort_by_key(|entry| entry.subnet.addr());
        table
    }

    /// Returns the tunnels of the peer in whose subnet `inner` is: one, or several while its network changes its key.
    /// Packets are sent by the first.
    pub(super) fn of(&self, inner: IpAddr) -> impl Iterator<Item = &Entry> {
        let entries = match inner {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        let (before, _) = entries.split_at(entries.partition_point(|entry| entry.subnet.addr() <= inner));
        let subnet = before.last().map(|entry| entry.subnet).filter(|subnet| subnet.contains(&inner));
        let start = before.partition_point(|entry| subnet.is_none_or(|subnet| entry.subnet.addr() < subnet.addr()));
        before.get(start..).unwrap_or_default().iter()
    }
}

#[cfg(test)]
mod tests;
