//! Forwarding entries on our VXLAN devices: neighbours of the family `AF_BRIDGE`.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use flatnet_core::object::{Dump, FdbKey, KernelState, LinkKind, Object};
use flatnet_core::op::{Action, ObjectKind, Op};
use flatnet_model::{IfName, Mac};

use super::{Carrier, Devices, Indexes, Plan, absent_is_empty};
use crate::netlink::encode::{self, rtm};
use crate::netlink::parse;
use crate::netlink::socket::Channel;

/// Carries out [`ObjectKind::Fdb`].
pub(super) struct Fdb;

impl Carrier for Fdb {
    fn kind(&self) -> ObjectKind {
        ObjectKind::Fdb
    }

    fn what(&self) -> &'static str {
        "forwarding entries"
    }

    fn plan(&self, op: &Op, indexes: &mut Indexes<'_>) -> Option<Plan> {
        let Object::Fdb(key, to) = &op.object else { return None };
        Some(indexes.on(op, key.device, |index| {
            Plan::One(if op.action == Action::Delete {
                encode::fdb_delete(index, key.mac)
            } else {
                encode::fdb_set(index, key.mac, *to)
            })
        }))
    }

    fn dump(&self, channel: &mut Channel, devices: &Devices, dump: &mut Dump) -> io::Result<()> {
        let is_vxlan = |name| dump.state.links.get(name).is_some_and(|link| matches!(link.kind, LinkKind::Vxlan(_)));
        let tunnels: Vec<(u32, IfName)> =
            devices.ours.iter().filter(|(_, name)| is_vxlan(name)).map(|(index, name)| (*index, *name)).collect();
        for (index, device) in tunnels {
            of_device(channel, index, device, &mut dump.state)?;
        }
        Ok(())
    }

    fn groups(&self) -> &'static [u32] {
        // neigh
        &[3]
    }
}

fn of_device(channel: &mut Channel, index: u32, device: IfName, into: &mut KernelState) -> io::Result<()> {
    let found = absent_is_empty(channel.dump(
        &encode::neighbour_dump(encode::AF_BRIDGE, index),
        |found: &mut BTreeMap<FdbKey, IpAddr>, kind, payload| {
            if kind != rtm::NEWNEIGH {
                return;
            }
            let Some(raw) = parse::neighbour(payload).filter(|raw| raw.index == index && raw.is_set()) else { return };
            let (Some(mac), Some(to)) = (raw.mac, raw.address) else { return };
            found.insert(FdbKey { device, mac: Mac::new(mac) }, to);
        },
        BTreeMap::new,
    ))?;
    into.fdb.extend(found);
    Ok(())
}
