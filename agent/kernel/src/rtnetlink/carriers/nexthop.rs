//! Nexthop objects.

use std::io;

use flatnet_core::object::{Dump, NextHop, Nexthop, NexthopId, Object, PROTOCOL};
use flatnet_core::op::{Action, ObjectKind, Op};

use super::{Carrier, Devices, Indexes, Plan, presence};
use crate::netlink::encode::{self, rtm};
use crate::netlink::parse;
use crate::netlink::socket::Channel;

/// Carries out [`ObjectKind::Nexthop`].
pub(super) struct Nexthops;

impl Carrier for Nexthops {
    fn kind(&self) -> ObjectKind {
        ObjectKind::Nexthop
    }

    fn what(&self) -> &'static str {
        "nexthops"
    }

    fn plan(&self, op: &Op, indexes: &mut Indexes<'_>) -> Option<Plan> {
        let Object::Nexthop(id, nexthop) = &op.object else { return None };
        if op.action == Action::Delete {
            return Some(Plan::One(encode::nexthop_delete(*id)));
        }
        let set = |index| Plan::One(encode::nexthop_set(presence(op), *id, nexthop.via, index));
        Some(indexes.on(op, nexthop.via.device, set))
    }

    fn dump(&self, channel: &mut Channel, devices: &Devices, dump: &mut Dump) -> io::Result<()> {
        let read = channel.dump(
            &encode::nexthop_dump(),
            |found: &mut Vec<_>, kind, payload| {
                if kind == rtm::NEWNEXTHOP {
                    found.extend(parse::nexthop(payload));
                }
            },
            Vec::new,
        );
        let found = match read {
            // Linux before 5.3.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
            other => other?,
        };
        for raw in found {
            let id = NexthopId(raw.id);
            let device = devices.name(raw.index);
            match (raw.gateway, device) {
                (Some(gateway), Some(device)) if raw.protocol == PROTOCOL => {
                    dump.state.nexthops.insert(id, Nexthop { via: NextHop { gateway, device, onlink: raw.onlink } });
                }
                _ => {
                    dump.foreign.nexthops.insert(id);
                }
            }
        }
        Ok(())
    }

    fn groups(&self) -> &'static [u32] {
        // nexthop; a kernel without such objects has no such group
        &[32]
    }
}
