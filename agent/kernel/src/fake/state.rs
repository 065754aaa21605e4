//! Linux's reaction to each operation: the error number, and what changes along with it.

use std::collections::BTreeMap;

use flatnet_core::object::{
    Datapath, Foreign, GreLink, KernelState, Link, LinkAddress, LinkKind, NextHop, PeerSource, Route, RouteVia,
    Ruleset, Sysctl,
};
use flatnet_core::op::{Action, Object, Op};
use flatnet_model::{IfName, Mtu};
use nix::errno::Errno;

type Done = Result<(), Errno>;

/// Carries out one operation, or changes nothing.
pub(super) fn carry_out(state: &mut KernelState, foreign: &Foreign, op: &Op) -> Done {
    match &op.object {
        Object::Link(name, link) => set_link(state, foreign, op.action, *name, link),
        Object::Sysctl(setting, value) => {
            if op.action != Action::Delete {
                has_settings(state, setting)?;
                state.sysctls.insert(setting.clone(), value.clone());
            }
            Ok(())
        }
        Object::Address(key) => match op.action {
            Action::Delete => state.addresses.remove(key).then_some(()).ok_or(Errno::EADDRNOTAVAIL),
            Action::Create if state.addresses.contains(key) => Err(Errno::EEXIST),
            Action::Create | Action::Change | Action::Replace => {
                device(state, key.device)?;
                state.addresses.insert(*key);
                Ok(())
            }
        },
        Object::Neighbour(key, link_address) => match op.action {
            Action::Delete => state.neighbours.remove(key).map(drop).ok_or(Errno::ENOENT),
            // This also replaces one that is there, always: the kernel makes neighbours of its own.
            Action::Create | Action::Change | Action::Replace => {
                let on = &device(state, key.device)?.kind;
                let is_gre = matches!(on, LinkKind::Gre(GreLink { datapath: Datapath::Kernel, .. }));
                // A link address is refused if it is shorter than the device's, or on a device that has none.
                if is_gre != matches!(link_address, LinkAddress::V4(_)) || on.datapath() == Datapath::Userspace {
                    return Err(Errno::EINVAL);
                }
                state.neighbours.insert(*key, *link_address);
                Ok(())
            }
        },
        Object::Fdb(key, to) => match op.action {
            Action::Delete => state.fdb.remove(key).map(drop).ok_or(Errno::ENOENT),
            Action::Create | Action::Change | Action::Replace => {
                let LinkKind::Vxlan(vxlan) = &device(state, key.device)?.kind else { return Err(Errno::EOPNOTSUPP) };
                if vxlan.local.is_ipv4() != to.is_ipv4() {
                    return Err(Errno::EAFNOSUPPORT);
                }
                state.fdb.insert(*key, *to);
                Ok(())
            }
        },
        Object::WireguardPeer(key, peer) => match op.action {
            Action::Delete => state.wireguard_peers.remove(key).map(drop).ok_or(Errno::ENOENT),
            Action::Create | Action::Change | Action::Replace => {
                let LinkKind::Wireguard(_) = device(state, key.device)?.kind else { return Err(Errno::EOPNOTSUPP) };
                state.set_wireguard_peer(*key, peer);
                Ok(())
            }
        },
        Object::Nexthop(id, nexthop) => {
            if op.action == Action::Delete {
                state.nexthops.remove(id).ok_or(Errno::ENOENT)?;
                state.routes.retain(|_, route| route.via != RouteVia::Object(*id));
                return Ok(());
            }
            presence(op.action, state.nexthops.contains_key(id), foreign.nexthops.contains(id))?;
            hop(state, &nexthop.via)?;
            state.nexthops.insert(*id, *nexthop);
            Ok(())
        }
        Object::Route(key, route) => {
            if op.action == Action::Delete {
                // A route is also found by what it does.
                let same = state.routes.get(key).is_some_and(|present| present.via == route.via);
                return same.then(|| state.routes.remove(key)).map(drop).ok_or(Errno::ESRCH);
            }
            presence(op.action, state.routes.contains_key(key), foreign.routes.contains(key))?;
            route_is_possible(state, route)?;
            state.routes.insert(*key, *route);
            Ok(())
        }
        Object::Ruleset { ruleset, elements } => set_ruleset(state, op.action, ruleset, elements),
        Object::PeerSource(element) => match op.action {
            Action::Delete => state.peer_sources.remove(element).then_some(()).ok_or(Errno::ENOENT),
            Action::Create | Action::Change | Action::Replace => {
                if state.ruleset.is_none() {
                    return Err(Errno::ENOENT);
                }
                state.peer_sources.insert(*element);
                Ok(())
            }
        },
        Object::Iptables(key, rule) => match op.action {
            Action::Delete => state.iptables.remove(key).map(drop).ok_or(Errno::ENOENT),
            Action::Create | Action::Change | Action::Replace => {
                state.iptables.insert(key.clone(), rule.clone());
                Ok(())
            }
        },
    }
}

/// Applies `NLM_F_EXCL` and `NLM_F_REPLACE`; `ours` and `foreign` say what is at the key.
fn presence(action: Action, ours: bool, foreign: bool) -> Done {
    match action {
        Action::Create if ours || foreign => Err(Errno::EEXIST),
        Action::Change if !ours => Err(Errno::ENOENT),
        Action::Create | Action::Change | Action::Replace | Action::Delete => Ok(()),
    }
}

fn device(state: &KernelState, name: IfName) -> Result<&Link, Errno> {
    state.links.get(&name).ok_or(Errno::ENODEV)
}

/// Checks that a setting exists. A device has its settings from its making to its end, those of IPv6 only while packets
/// of that size fit.
fn has_settings(state: &KernelState, setting: &Sysctl) -> Done {
    let Some(name) = setting.device().filter(|name| is_ours_by_name(*name)) else { return Ok(()) };
    let link = device(state, name).map_err(|_| Errno::ENOENT)?;
    let is_v6 = setting.path().starts_with("net/ipv6/");
    if is_v6 && link.mtu.get() < Mtu::MIN_IPV6 { Err(Errno::ENOENT) } else { Ok(()) }
}

/// Checks that a next hop's device is there and up.
fn hop(state: &KernelState, hop: &NextHop) -> Done {
    // Through a device that is none of ours (an underlay interface), everything is possible: those are not kept here.
    match state.links.get(&hop.device) {
        Some(link) if !link.up => Err(Errno::ENETDOWN),
        Some(_) => Ok(()),
        None if is_ours_by_name(hop.device) => Err(Errno::ENODEV),
        None => Ok(()),
    }
}

/// Returns true for devices that the agent makes, whose names begin with these letters. Every other device is taken to
/// be the host's own, and there.
fn is_ours_by_name(name: IfName) -> bool {
    name.as_str().starts_with("fl")
}

fn route_is_possible(state: &KernelState, route: &Route) -> Done {
    match &route.via {
        RouteVia::Object(id) if !state.nexthops.contains_key(id) => Err(Errno::EINVAL),
        RouteVia::Object(_) | RouteVia::Unreachable => Ok(()),
        RouteVia::Hop(via) => hop(state, via),
        RouteVia::Encap(encap) => {
            let via = NextHop { gateway: encap.remote, device: encap.device, onlink: true };
            hop(state, &via)
        }
    }
}

fn set_link(state: &mut KernelState, foreign: &Foreign, action: Action, name: IfName, link: &Link) -> Done {
    if foreign.links.contains_key(&name) {
        return Err(Errno::EEXIST);
    }
    match action {
        Action::Create if state.links.contains_key(&name) => return Err(Errno::EEXIST),
        Action::Create => tunnel_is_free(&state.links, name, link)?,
        Action::Change => {
            let present = device(state, name)?.clone();
            if !present.can_become(link) {
                return Err(Errno::EOPNOTSUPP);
            }
            if link.mac.is_some_and(|mac| present.mac != Some(mac)) {
                state.neighbours.retain(|key, _| key.device != name);
            }
            if !link.up {
                take_down(state, name);
            }
        }
        Action::Replace => {
            delete_link(state, name);
            tunnel_is_free(&state.links, name, link)?;
        }
        Action::Delete => {
            device(state, name)?;
            delete_link(state, name);
            return Ok(());
        }
    }
    state.links.insert(name, link.clone());
    Ok(())
}

/// Checks that no other tunnel is in the way. Two VXLAN devices of one network identifier, port and underlay family are
/// refused. So are two of the kernel's GRE devices of one key and address, and a second `external` one.
fn tunnel_is_free(links: &BTreeMap<IfName, Link>, name: IfName, wanted: &Link) -> Done {
    let clashes = |(other, link): (&IfName, &Link)| {
        *other != name
            && match (&link.kind, &wanted.kind) {
                (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => {
                    a.vni == b.vni && a.port == b.port && a.local.is_ipv4() == b.local.is_ipv4()
                }
                (LinkKind::Gre(a), LinkKind::Gre(b)) => a == b && a.datapath == Datapath::Kernel,
                (LinkKind::Gre6(Datapath::Kernel), LinkKind::Gre6(Datapath::Kernel)) => true,
                _ => false,
            }
    };
    if links.iter().any(clashes) { Err(Errno::EEXIST) } else { Ok(()) }
}

/// Deletes a device. It takes its addresses, neighbours, forwarding entries, nexthops and routes along.
pub(super) fn delete_link(state: &mut KernelState, name: IfName) {
    take_down(state, name);
    state.links.remove(&name);
    state.sysctls.retain(|setting, _| setting.device() != Some(name));
    state.addresses.retain(|key| key.device != name);
    state.fdb.retain(|key, _| key.device != name);
    state.wireguard_peers.retain(|key, _| key.device != name);
}

/// Sets a device down. Its nexthops and routes are then gone (and no event says so), and so are its neighbours and IPv6
/// addresses.
pub(super) fn take_down(state: &mut KernelState, name: IfName) {
    state.nexthops.retain(|_, nexthop| nexthop.via.device != name);
    state.neighbours.retain(|key, _| key.device != name);
    state.addresses.retain(|key| key.device != name || key.address.addr().is_ipv4());
    let KernelState { routes, nexthops, .. } = state;
    routes.retain(|_, route| match &route.via {
        RouteVia::Object(id) => nexthops.contains_key(id),
        RouteVia::Hop(hop) => hop.device != name,
        RouteVia::Encap(encap) => encap.device != name,
        RouteVia::Unreachable => true,
    });
}

/// Swaps the table, as a whole.
fn set_ruleset(state: &mut KernelState, action: Action, ruleset: &Ruleset, elements: &[PeerSource]) -> Done {
    state.peer_sources.clear();
    if action == Action::Delete {
        return state.ruleset.take().map(drop).ok_or(Errno::ENOENT);
    }
    state.ruleset = Some(ruleset.clone());
    state.peer_sources.extend(elements.iter().copied());
    Ok(())
}
