//! The ports that are plugged into bridges of ours.
//!
//! Whoever plugs a container in (Docker, a CNI plugin or a person) does so once. A bridge that is made anew because
//! somebody deleted it would stay without its containers until each of them is started again.

use std::collections::BTreeMap;

use flatnet_core::object::Dump;
use flatnet_model::IfName;

use super::links;
use crate::netlink::encode;
use crate::netlink::parse::RawLink;
use crate::netlink::socket::{Channel, Refusal};

/// The ports that each bridge of ours had when it was last seen.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// Keyed by index, because a name may be another device's by now.
    of: BTreeMap<IfName, BTreeMap<u32, IfName>>,
}

impl Ports {
    /// Records which ports each bridge has, also in `dump`. A bridge that is not there keeps what it had.
    pub(super) fn look(&mut self, all: &[RawLink], dump: &mut Dump) {
        let bridges = all.iter().filter(|link| links::is_ours(link) && link.kind == "bridge");
        for bridge in bridges {
            let Ok(name) = IfName::new(&bridge.name) else { continue };
            let plugged = all.iter().filter(|link| link.master == Some(bridge.index));
            let ports: BTreeMap<u32, IfName> =
                plugged.filter_map(|port| Some((port.index, IfName::new(&port.name).ok()?))).collect();
            if !ports.is_empty() {
                dump.ports.insert(name, ports.values().copied().collect());
            }
            self.of.insert(name, ports);
        }
    }

    /// Plugs ports back into the bridge called `name`, which was made anew with the index `bridge`. These are the ports
    /// that are still there and were not plugged in elsewhere meanwhile.
    pub(super) fn give_back(&self, channel: &mut Channel, name: IfName, bridge: u32) {
        for (&index, &port) in self.of.get(&name).into_iter().flatten() {
            match plug(channel, index, bridge) {
                Ok(Plugged::In) => tracing::info!(bridge = %name, %port, "plugged in again"),
                Ok(Plugged::Elsewhere) => tracing::warn!(bridge = %name, %port, "lost: it is plugged in elsewhere now"),
                // It went with its container, or its container went with it.
                Ok(Plugged::Gone) => tracing::info!(bridge = %name, %port, "gone"),
                Err(error) => tracing::warn!(bridge = %name, %port, %error, "lost: it cannot be plugged in again"),
            }
        }
    }
}

enum Plugged {
    In,
    Elsewhere,
    Gone,
}

fn plug(channel: &mut Channel, port: u32, bridge: u32) -> Result<Plugged, Refusal> {
    match links::with_index(channel, port)? {
        None => Ok(Plugged::Gone),
        Some(link) if link.master.is_some() => Ok(Plugged::Elsewhere),
        Some(_) => channel.request(&encode::link_plug(port, bridge)).map(|()| Plugged::In),
    }
}
