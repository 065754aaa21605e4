//! Dumps of the kernel's objects: ours, and those that are in the way.

use std::collections::BTreeSet;
use std::io;

use flatnet_core::object::{Dump, KernelState, ObjectKey, ObjectKind};
use flatnet_model::IfName;

use super::carriers::{self, Devices};
use super::links;
use super::ports::Ports;
use crate::netlink::parse::RawLink;
use crate::netlink::socket::Channel;
use crate::{KernelError, Scope, sysctl};

/// Adds to `dump` what `scope` looks at of the kernel's own objects, and every device of ours, whoever carries it.
pub(super) fn dump(
    channel: &mut Channel,
    ports: &mut Ports,
    scope: &Scope,
    dump: &mut Dump,
) -> Result<(), KernelError> {
    if ASKED_OF_LINKS.iter().any(|kind| scope.has_kind(*kind)) {
        let links = raw_links(channel, scope).map_err(of("links"))?;
        let devices = Devices::new(&links);
        read_links(&links, scope, dump);
        ports.look(&links, dump);
        for carrier in carriers::ALL.iter().filter(|carrier| scope.has_kind(carrier.kind())) {
            carrier.dump(channel, &devices, dump).map_err(of(carrier.what()))?;
        }
    }
    read_sysctls(scope, &mut dump.state).map_err(of("settings"))
}

/// The kinds of which nothing can be read without knowing the devices.
const ASKED_OF_LINKS: [ObjectKind; 8] = [
    ObjectKind::Link,
    ObjectKind::Address,
    ObjectKind::Neighbour,
    ObjectKind::Fdb,
    ObjectKind::WireguardPeer,
    ObjectKind::Nexthop,
    ObjectKind::Route,
    ObjectKind::Rule,
];

/// Returns the devices that the keys of `scope` name, or all of them where these do not do.
fn raw_links(channel: &mut Channel, scope: &Scope) -> io::Result<Vec<RawLink>> {
    if scope.ours {
        return links::all(channel);
    }
    // The devices of these are named by index, once they are read.
    if scope.keys.iter().any(|key| matches!(key, ObjectKey::Nexthop(_) | ObjectKey::Route(_))) {
        return links::all(channel);
    }
    let mut found = Vec::new();
    for name in scope.keys.iter().filter_map(device).collect::<BTreeSet<_>>() {
        found.extend(links::named(channel, name)?);
    }
    // The ports of a bridge are devices of other names.
    if found.iter().any(|link| links::is_ours(link) && link.kind == "bridge") {
        return links::all(channel);
    }
    Ok(found)
}

/// Returns the device that an object at `key` is on, if its key tells.
fn device(key: &ObjectKey) -> Option<IfName> {
    match key {
        ObjectKey::Link(name) => Some(*name),
        ObjectKey::Address(key) => Some(key.device),
        ObjectKey::Neighbour(key) => Some(key.device),
        ObjectKey::Fdb(key) => Some(key.device),
        ObjectKey::WireguardPeer(key) => Some(key.device),
        _ => None,
    }
}

fn of(what: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |source| KernelError { what, source }
}

fn read_links(links: &[RawLink], scope: &Scope, dump: &mut Dump) {
    for raw in links {
        let Ok(name) = IfName::new(&raw.name) else { continue };
        match links::read(raw).filter(|_| links::is_ours(raw)) {
            Some((link, altered)) => {
                dump.state.links.insert(name, link);
                if let Some(altered) = altered {
                    dump.state.alter(ObjectKey::Link(name), altered);
                }
            }
            None if scope.has_link(name) => {
                dump.foreign.links.insert(name, links::describe(raw));
            }
            None => {}
        }
    }
}

fn read_sysctls(scope: &Scope, into: &mut KernelState) -> io::Result<()> {
    for setting in scope.sysctls() {
        if let Some(value) = sysctl::read(setting)? {
            into.sysctls.insert(setting.clone(), value);
        }
    }
    Ok(())
}
