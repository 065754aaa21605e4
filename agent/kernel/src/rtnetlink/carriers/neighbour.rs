//! Permanent neighbours on our devices.

use std::io;

use flatnet_core::object::{Dump, KernelState, LinkAddress, NeighbourKey, Object, PROTOCOL};
use flatnet_core::op::{Action, ObjectKind, Op};
use flatnet_model::{IfName, Mac};

use super::{Carrier, Devices, Indexes, Plan, absent_is_empty};
use crate::netlink::encode::{self, rtm};
use crate::netlink::parse;
use crate::netlink::socket::Channel;

/// Carries out [`ObjectKind::Neighbour`].
pub(super) struct Neighbours;

impl Carrier for Neighbours {
    fn kind(&self) -> ObjectKind {
        ObjectKind::Neighbour
    }

    fn what(&self) -> &'static str {
        "neighbours"
    }

    fn plan(&self, op: &Op, indexes: &mut Indexes<'_>) -> Option<Plan> {
        let Object::Neighbour(key, link) = &op.object else { return None };
        Some(indexes.on(op, key.device, |index| {
            Plan::One(if op.action == Action::Delete {
                encode::neighbour_delete(index, key.address)
            } else {
                encode::neighbour_set(index, key.address, *link)
            })
        }))
    }

    fn dump(&self, channel: &mut Channel, devices: &Devices, dump: &mut Dump) -> io::Result<()> {
        for (&index, &device) in &devices.ours {
            of_device(channel, index, device, &mut dump.state)?;
        }
        Ok(())
    }

    fn groups(&self) -> &'static [u32] {
        // neigh: forwarding entries too
        &[3]
    }
}

fn of_device(channel: &mut Channel, index: u32, device: IfName, into: &mut KernelState) -> io::Result<()> {
    let found = absent_is_empty(channel.dump(
        &encode::neighbour_dump(0, index),
        |found: &mut Vec<_>, kind, payload| {
            if kind != rtm::NEWNEIGH {
                return;
            }
            let Some(raw) = parse::neighbour(payload).filter(|raw| raw.index == index && !raw.is_fdb()) else { return };
            let link = raw.mac.map(|mac| Mac::new(mac).into()).or(raw.tunnel_end.map(LinkAddress::V4));
            if let (Some(address), Some(link), PROTOCOL, true) = (raw.address, link, raw.protocol, raw.is_set()) {
                found.push((NeighbourKey { device, address }, link));
            }
        },
        Vec::new,
    ))?;
    into.neighbours.extend(found);
    Ok(())
}
