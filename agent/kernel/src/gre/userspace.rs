//! Tunnels for kernels that lack the module: TUN devices that this process serves.
//!
//! The kernel's objects stay the truth. The device is a link, and `encap` routes, which the kernel keeps but does not
//! use for such a device, say where its packets go. So dump, diff, plan and purge are the same as for a kernel's
//! tunnel, and this module follows the routes that were dumped and applied. A device that nobody serves is reported as
//! down.
//!
//! The provider owns this. The threads end with it, and the devices stay.

mod forwarder;
mod packet;
mod socket;
mod table;
mod tun;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use flatnet_core::object::{Datapath, Encap, KernelState, LinkKind, RouteKey, RouteVia};
use flatnet_core::op::{Action, Object, Op, OpOutcome};
use flatnet_model::{IfName, IpFamily};

use forwarder::{Tables, Worker, inwards, outwards};
use socket::GreSocket;
use table::Table;
use tun::Tun;

/// Returns true if this process can stand in for the kernel over `family`: it may open TUN devices and raw sockets.
pub(crate) fn is_possible(family: IpFamily) -> bool {
    Tun::is_available() && GreSocket::open(family).is_ok()
}

/// The devices that this process serves.
#[derive(Debug, Default)]
pub(crate) struct Userspace {
    devices: BTreeMap<IfName, Served>,
    v4: Option<Receiver>,
    v6: Option<Receiver>,
    /// The destinations of packets, as last seen in the kernel. They are also kept for devices that are not served yet.
    routes: BTreeMap<RouteKey, Encap>,
    tables: Arc<Tables>,
}

/// A device, with the thread that empties it.
#[derive(Debug)]
struct Served {
    index: u32,
    tun: Arc<Tun>,
    worker: Worker,
}

/// The socket of one underlay family, with the thread that reads it.
#[derive(Debug)]
struct Receiver {
    socket: Arc<GreSocket>,
    worker: Worker,
}

/// A device that was made and is not kept yet: it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Unkept(Tun);

impl Userspace {
    /// Makes a device, which is down.
    pub(crate) fn create(name: IfName, index: u32) -> io::Result<Unkept> {
        Tun::create(name, index).map(Unkept)
    }

    /// Lets a device that was just made stay, and serves it.
    pub(crate) fn keep(&mut self, name: IfName, index: u32, kind: &LinkKind, made: Unkept) -> io::Result<()> {
        self.serve(name, index, kind, made.0)
    }

    /// Serves a device that exists, unless it is being served.
    pub(crate) fn attach(&mut self, name: IfName, index: u32, kind: &LinkKind) -> io::Result<()> {
        if self.serves(name, index, kind) {
            return Ok(());
        }
        self.release(name);
        self.serve(name, index, kind, Tun::attach(name)?)
    }

    fn serve(&mut self, name: IfName, index: u32, kind: &LinkKind, tun: Tun) -> io::Result<()> {
        let tun = Arc::new(tun);
        let tables = Arc::clone(&self.tables);
        let receiver = self.receiver(family(kind));
        if !receiver.as_ref().is_some_and(|receiver| receiver.worker.is_running()) {
            *receiver = None;
        }
        let socket = match receiver {
            Some(receiver) => Arc::clone(&receiver.socket),
            None => {
                let socket = Arc::new(GreSocket::open(family(kind))?);
                let worker = inwards(Arc::clone(&socket), Arc::clone(&tables))?;
                Arc::clone(&receiver.insert(Receiver { socket, worker }).socket)
            }
        };
        let worker = outwards(name, Arc::clone(&tun), socket, tables)?;
        // This comes last: before it, a failure leaves nothing behind.
        tun.persist()?;
        self.devices.insert(name, Served { index, tun, worker });
        self.refresh();
        Ok(())
    }

    fn receiver(&mut self, family: IpFamily) -> &mut Option<Receiver> {
        match family {
            IpFamily::V4 => &mut self.v4,
            IpFamily::V6 => &mut self.v6,
        }
    }

    /// Stops serving a device, which is about to be deleted.
    pub(crate) fn release(&mut self, name: IfName) {
        if self.devices.remove(&name).is_some() {
            self.refresh();
        }
    }

    /// Returns true if the device of that name and index is being served.
    fn serves(&self, name: IfName, index: u32, kind: &LinkKind) -> bool {
        let receiver = match family(kind) {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        };
        receiver.as_ref().is_some_and(|receiver| receiver.worker.is_running())
            && self.devices.get(&name).is_some_and(|served| served.index == index && served.worker.is_running())
    }

    /// Reports the devices of `state` that are not served as down. `index` returns a device's index.
    pub(crate) fn judge(&self, state: &mut KernelState, index: impl Fn(IfName) -> Option<u32>) {
        for (name, link) in &mut state.links {
            if link.kind.datapath() == Datapath::Userspace && is_gre(&link.kind) {
                link.up &= index(*name).is_some_and(|index| self.serves(*name, index, &link.kind));
            }
        }
    }

    /// Returns the names of the devices that are served.
    pub(crate) fn served(&self) -> impl Iterator<Item = IfName> {
        self.devices.keys().copied()
    }

    /// Takes note of what a look at everything found: routes are followed.
    pub(crate) fn look(&mut self, state: &KernelState, index: impl Fn(IfName) -> Option<u32>) {
        let gone = |name: &IfName, served: &Served| index(*name) != Some(served.index);
        self.devices.retain(|name, served| !gone(name, served));
        let encap = |via: RouteVia| if let RouteVia::Encap(encap) = via { Some(encap) } else { None };
        let found = state.routes.iter().filter_map(|(key, route)| Some((*key, encap(route.via)?)));
        let found: BTreeMap<RouteKey, Encap> = found.collect();
        if found != self.routes {
            self.routes = found;
            self.refresh();
        }
    }

    /// Takes note of the outcomes of operations.
    pub(crate) fn follow(&mut self, ops: &[Op], outcomes: &[OpOutcome]) {
        let mut changed = false;
        for (op, _) in ops.iter().zip(outcomes).filter(|(_, outcome)| **outcome == OpOutcome::Done) {
            match (&op.object, op.action) {
                (Object::Route(key, route), action) => {
                    changed |= match (route.via, action) {
                        (RouteVia::Encap(encap), Action::Create | Action::Change | Action::Replace) => {
                            self.routes.insert(*key, encap) != Some(encap)
                        }
                        _ => self.routes.remove(key).is_some(),
                    };
                }
                (Object::Link(name, _), Action::Delete | Action::Replace) => {
                    let before = self.routes.len();
                    self.routes.retain(|_, encap| encap.device != *name);
                    changed |= before != self.routes.len();
                }
                _ => {}
            }
        }
        if changed {
            self.refresh();
        }
    }

    fn refresh(&mut self) {
        if self.devices.is_empty() {
            (self.v4, self.v6) = (None, None);
        }
        let devices = self.devices.iter().map(|(name, served)| (*name, Arc::clone(&served.tun))).collect();
        self.tables.set(Table::new(&self.routes, &devices));
    }
}

/// Returns true for the devices that are GRE's.
pub(crate) fn is_gre(kind: &LinkKind) -> bool {
    matches!(kind, LinkKind::Gre(_) | LinkKind::Gre6(_))
}

/// Returns the underlay's family.
fn family(kind: &LinkKind) -> IpFamily {
    match kind {
        LinkKind::Gre6(_) => IpFamily::V6,
        LinkKind::Gre(_) | LinkKind::Wireguard(_) | LinkKind::Vxlan(_) | LinkKind::Bridge => IpFamily::V4,
    }
}
