//! Addresses on our devices.

use std::io;
use std::net::IpAddr;

use flatnet_core::object::{AddressKey, Dump, Object};
use flatnet_core::op::{Action, ObjectKind, Op};
use ipnet::IpNet;

use super::{Carrier, Devices, Indexes, Plan, presence};
use crate::netlink::encode::{self, rtm};
use crate::netlink::parse::{self, RawAddress};
use crate::netlink::socket::Channel;

/// Carries out [`ObjectKind::Address`].
pub(super) struct Addresses;

impl Carrier for Addresses {
    fn kind(&self) -> ObjectKind {
        ObjectKind::Address
    }

    fn what(&self) -> &'static str {
        "addresses"
    }

    fn plan(&self, op: &Op, indexes: &mut Indexes<'_>) -> Option<Plan> {
        let Object::Address(key) = &op.object else { return None };
        Some(indexes.on(op, key.device, |index| {
            Plan::One(if op.action == Action::Delete {
                encode::address_delete(index, key.address)
            } else {
                encode::address_add(presence(op), index, key.address)
            })
        }))
    }

    fn dump(&self, channel: &mut Channel, devices: &Devices, dump: &mut Dump) -> io::Result<()> {
        for raw in all(channel)? {
            let Some(&device) = devices.ours.get(&raw.index) else { continue };
            if is_link_local(raw.address) || raw.is_kernel_made() {
                continue;
            }
            if let Ok(address) = IpNet::new(raw.address, raw.prefix) {
                dump.state.addresses.insert(AddressKey { device, address });
            }
        }
        Ok(())
    }

    fn groups(&self) -> &'static [u32] {
        // ipv4 and ipv6 ifaddr
        &[5, 9]
    }
}

/// Returns every address of every device.
pub(crate) fn all(channel: &mut Channel) -> io::Result<Vec<RawAddress>> {
    channel.dump(
        &encode::address_dump(),
        |addresses: &mut Vec<_>, kind, payload| {
            if kind == rtm::NEWADDR {
                addresses.extend(parse::address(payload));
            }
        },
        Vec::new,
    )
}

/// Returns true for addresses in `fe80::/10` or `169.254.0.0/16`.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
