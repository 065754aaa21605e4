//! Linux's reaction to each operation: the error number, and what changes along with it.

use std::collections::BTreeMap;

use flatnet_core::object::{
    Datapath, Foreign, GreLink, KernelState, Link, LinkAddress, LinkKind, Object, ObjectKey, RouteVia, Sysctl,
};
use flatnet_core::op::{Action, Op};
use flatnet_model::{IfName, Mtu};
use nix::errno::Errno;

type Done = Result<(), Errno>;

/// Carries out one operation, or changes nothing.
pub(super) fn carry_out(state: &mut KernelState, foreign: &Foreign, op: &Op) -> Done {
    match (&op.object, op.action) {
        (Object::Link(name, link), action) => set_link(state, foreign, action, *name, link),
        (_, Action::Delete) => delete(state, &op.object),
        (object, action) => {
            stands(state, object)?;
            is_possible(state, foreign, object, action)?;
            state.apply(op);
            Ok(())
        }
    }
}

/// A deletion of anything but a device.
fn delete(state: &mut KernelState, object: &Object) -> Done {
    let key = object.key();
    let absent = match object {
        // Never deleted: put back by a change.
        Object::Sysctl(..) => return Ok(()),
        Object::Address(_) => Errno::EADDRNOTAVAIL,
        // It is found by what it does, too.
        Object::Route(key, route) if state.routes.get(key).is_none_or(|present| present.via != route.via) => {
            return Err(Errno::ESRCH);
        }
        _ => Errno::ENOENT,
    };
    if !state.has(&key) {
        return Err(absent);
    }
    state.forget(&key);
    Ok(())
}

/// Refuses what goes with something that is not there.
fn stands(state: &KernelState, object: &Object) -> Done {
    match (object, object.bonds().parent()) {
        (Object::Sysctl(setting, _), _) => has_settings(state, setting),
        (Object::Nexthop(..) | Object::Route(..), Some(ObjectKey::Link(name))) => hop(state, *name),
        (_, Some(ObjectKey::Link(name))) => device(state, *name).map(drop),
        (_, Some(ObjectKey::Ruleset)) if !state.has(&ObjectKey::Ruleset) => Err(Errno::ENOENT),
        (_, Some(parent)) if !state.has(parent) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// Refuses what the kernel refuses of some kinds besides. Neighbours are always made over what is there: the kernel
/// makes some of its own.
fn is_possible(state: &KernelState, foreign: &Foreign, object: &Object, action: Action) -> Done {
    match object {
        Object::Address(key) if action == Action::Create && state.addresses.contains(key) => Err(Errno::EEXIST),
        Object::Neighbour(key, link_address) => {
            let on = &device(state, key.device)?.kind;
            let is_gre = matches!(on, LinkKind::Gre(GreLink { datapath: Datapath::Kernel, .. }));
            // A link address shorter than the device's, or one on a device that has none.
            let fits = is_gre == matches!(link_address, LinkAddress::V4(_)) && on.datapath() != Datapath::Userspace;
            if fits { Ok(()) } else { Err(Errno::EINVAL) }
        }
        Object::Fdb(key, to) => {
            let LinkKind::Vxlan(vxlan) = &device(state, key.device)?.kind else { return Err(Errno::EOPNOTSUPP) };
            if vxlan.local.is_ipv4() == to.is_ipv4() { Ok(()) } else { Err(Errno::EAFNOSUPPORT) }
        }
        Object::WireguardPeer(key, _) => {
            let is_wireguard = matches!(device(state, key.device)?.kind, LinkKind::Wireguard(_));
            if is_wireguard { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
        }
        Object::Nexthop(id, _) => presence(action, state.nexthops.contains_key(id), foreign.nexthops.contains(id)),
        Object::Rule(rule) => presence(action, state.rules.contains(rule), false),
        Object::Route(key, _) => presence(action, state.routes.contains_key(key), foreign.routes.contains(key)),
        _ => Ok(()),
    }
}

/// Applies `NLM_F_EXCL` and `NLM_F_REPLACE`; `ours` and `foreign` say what is at the key.
fn presence(action: Action, ours: bool, foreign: bool) -> Done {
    match action {
        Action::Create if ours || foreign => Err(Errno::EEXIST),
        Action::Change if !ours => Err(Errno::ENOENT),
        Action::Create | Action::Change | Action::Replace | Action::Delete | Action::Adopt => Ok(()),
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

/// A next hop needs its device, and that up.
fn hop(state: &KernelState, name: IfName) -> Done {
    // Through a device that is none of ours (an underlay interface) everything goes: those are not kept here.
    match state.links.get(&name) {
        Some(link) if !link.up => Err(Errno::ENETDOWN),
        Some(_) => Ok(()),
        None if is_ours_by_name(name) => Err(Errno::ENODEV),
        None => Ok(()),
    }
}

/// Returns true for devices that the agent makes, whose names begin with these letters. Every other device is taken to
/// be the host's own, and there.
fn is_ours_by_name(name: IfName) -> bool {
    name.as_str().starts_with("fl")
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
            if !state.link_can_become(name, &present, link) {
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
        // See `super::Inner::adopt`.
        Action::Adopt => return Ok(()),
    }
    state.links.insert(name, link.clone());
    state.altered.remove(&ObjectKey::Link(name));
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
    state.forget(&ObjectKey::Link(name));
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
