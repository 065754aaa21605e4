//! Routes, in the main table and in those that are ours to use.

use std::collections::BTreeMap;
use std::io;

use flatnet_core::object::{Dump, Encap, Foreign, NextHop, NexthopId, Object, PROTOCOL, Route, RouteKey, RouteVia};
use flatnet_core::op::{Action, ObjectKind, Op};
use flatnet_model::{IfName, IpFamily};
use ipnet::IpNet;

use super::{Carrier, Devices, Indexes, Plan, absent_is_empty, presence};
use crate::netlink::encode::{self, Presence, rtm};
use crate::netlink::parse::{self, RawRoute};
use crate::netlink::socket::Channel;
use crate::netlink::wire::Request;

/// The most routes of others that are remembered. A router with a full table has a million, and a conflict there also
/// shows when the kernel refuses ours.
const MAX_FOREIGN_ROUTES: usize = 65_536;

/// Carries out [`ObjectKind::Route`].
pub(super) struct Routes;

impl Carrier for Routes {
    fn kind(&self) -> ObjectKind {
        ObjectKind::Route
    }

    fn what(&self) -> &'static str {
        "routes"
    }

    fn plan(&self, op: &Op, indexes: &mut Indexes<'_>) -> Option<Plan> {
        let Object::Route(key, route) = &op.object else { return None };
        let Some(device) = route.via.device() else {
            return Some(Plan::One(request(op, presence(op), *key, route, None)));
        };
        Some(indexes.on(op, device, |index| {
            let request = request(op, presence(op), *key, route, Some(index));
            if moves_onlink(op) {
                let refuse = Route { via: RouteVia::Unreachable, ..*route };
                Plan::Aside(encode::route_set(presence(op), *key, &refuse, None), request)
            } else {
                Plan::One(request)
            }
        }))
    }

    fn dump(&self, channel: &mut Channel, devices: &Devices, dump: &mut Dump) -> io::Result<()> {
        IpFamily::BOTH.into_iter().try_for_each(|family| of_family(channel, family, devices, dump))
    }

    fn groups(&self) -> &'static [u32] {
        // ipv4 and ipv6 route
        &[7, 11]
    }
}

fn request(op: &Op, presence: Presence, key: RouteKey, route: &Route, index: Option<u32>) -> Request {
    if op.action == Action::Delete {
        encode::route_delete(key, route, index)
    } else {
        encode::route_set(presence, key, route, index)
    }
}

/// Returns true if a route over IPv6 is changed to a next hop on a device's link. The kernel looks such a next hop up
/// by the present routes (net/ipv6/route.c: `ip6_route_check_nh_onlink`). It is inside the route's own destination, so
/// the change is refused as long as that leads to another device. A route that leads nowhere is not in the way.
fn moves_onlink(op: &Op) -> bool {
    let Object::Route(key, Route { via: RouteVia::Hop(hop), .. }) = &op.object else { return false };
    op.action == Action::Change && key.destination.addr().is_ipv6() && hop.onlink
}

fn of_family(channel: &mut Channel, family: IpFamily, devices: &Devices, dump: &mut Dump) -> io::Result<()> {
    let read = channel.dump(
        &encode::route_dump(family, None),
        |(ours, foreign): &mut (BTreeMap<RouteKey, Route>, Foreign), kind, payload| {
            if kind != rtm::NEWROUTE {
                return;
            }
            let Some((key, raw)) = parse::route(payload).and_then(|raw| Some((key(&raw)?, raw))) else { return };
            if raw.protocol == PROTOCOL {
                ours.extend(route(&raw, devices).map(|route| (key, route)));
            } else if is_in_our_way(&key) && foreign.routes.len() < MAX_FOREIGN_ROUTES {
                foreign.routes.insert(key);
            }
        },
        Default::default,
    );
    let (ours, foreign) = match read {
        // No IPv6 here.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
        other => absent_is_empty(other)?,
    };
    dump.state.routes.extend(ours);
    dump.foreign.routes.extend(foreign.routes);
    Ok(())
}

/// Returns a route's key; `None`: it is not in the main table, or differs from others by more than we set.
fn key(raw: &RawRoute) -> Option<RouteKey> {
    let is_plain = raw.tos == 0 && !raw.cloned;
    let destination = IpNet::new(raw.destination, raw.prefix).ok().filter(|_| is_plain)?.trunc();
    Some(RouteKey { destination, metric: raw.metric, table: raw.table })
}

/// Returns true for keys at which we may want a route.
fn is_in_our_way(key: &RouteKey) -> bool {
    key.table == RouteKey::MAIN || RouteKey::TABLES.contains(&key.table)
}

fn route(raw: &RawRoute, devices: &Devices) -> Option<Route> {
    let via = match (raw.kind, raw.nexthop, raw.gateway, devices.name(raw.index)) {
        (encode::UNICAST, None, None, Some(device)) if raw.encap.is_some() && !raw.multipath => {
            let (source, remote, key) = raw.encap?;
            RouteVia::Encap(Encap { device, source, remote, key })
        }
        (encode::UNREACHABLE, ..) => RouteVia::Unreachable,
        (encode::UNICAST, Some(id), ..) => RouteVia::Object(NexthopId(id)),
        (encode::UNICAST, None, Some(gateway), Some(device)) if !raw.multipath => {
            RouteVia::Hop(NextHop { gateway, device, onlink: raw.onlink })
        }
        // A route with our number that we would never make. It is reported as one by a hop that nobody wants, so that
        // it is replaced or deleted.
        (_, _, _, device) => RouteVia::Hop(NextHop {
            gateway: if raw.destination.is_ipv4() { [0; 4].into() } else { [0; 16].into() },
            device: device.or_else(|| IfName::new("lo").ok())?,
            onlink: false,
        }),
    };
    Some(Route { via, source: raw.source })
}
