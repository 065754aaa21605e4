//! Dumps of the kernel's objects: ours, and those that are in the way.

use std::collections::HashSet;
use std::io;

use flatnet_core::object::{Dump, KernelState, ObjectKey};
use flatnet_model::IfName;

use super::carriers::{self, Devices};
use super::links;
use super::ports::Ports;
use crate::netlink::parse::RawLink;
use crate::netlink::socket::Channel;
use crate::userspace::Userspace;
use crate::{KernelError, Scope, sysctl};

/// Dumps everything but the firewall.
pub(super) fn dump(
    channel: &mut Channel,
    userspace: &mut Userspace,
    ports: &mut Ports,
    scope: &Scope,
) -> Result<Dump, KernelError> {
    let mut dump = Dump::default();
    let links = links::all(channel).map_err(of("links"))?;
    let devices = Devices::new(&links);
    read_links(&links, scope, &mut dump);
    ports.look(&links, &mut dump);
    for carrier in carriers::ALL {
        carrier.dump(channel, &devices, &mut dump).map_err(of(carrier.what()))?;
    }
    userspace.look(&mut dump.state, |name| devices.index(name));
    read_sysctls(scope, &mut dump.state).map_err(of("settings"))?;
    Ok(dump)
}

fn of(what: &'static str) -> impl Fn(io::Error) -> KernelError {
    move |source| KernelError { what, source }
}

fn read_links(links: &[RawLink], scope: &Scope, dump: &mut Dump) {
    let wanted: HashSet<IfName> = scope.links.iter().copied().collect();
    for raw in links {
        let Ok(name) = IfName::new(&raw.name) else { continue };
        match links::read(raw).filter(|_| links::is_ours(raw)) {
            Some((link, altered)) => {
                dump.state.links.insert(name, link);
                if let Some(altered) = altered {
                    dump.state.alter(ObjectKey::Link(name), altered);
                }
            }
            None if wanted.contains(&name) => {
                dump.foreign.links.insert(name, links::describe(raw));
            }
            None => {}
        }
    }
}

fn read_sysctls(scope: &Scope, into: &mut KernelState) -> io::Result<()> {
    for setting in &scope.sysctls {
        if let Some(value) = sysctl::read(setting)? {
            into.sysctls.insert(setting.clone(), value);
        }
    }
    Ok(())
}
