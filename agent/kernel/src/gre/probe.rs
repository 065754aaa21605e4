//! The datapaths that can carry GRE here. They are found by trying, since asking for a module loads it.

use std::path::Path;

use flatnet_core::object::{Datapath, LinkKind};
use flatnet_core::op::{Object, Op, OpOutcome};
use flatnet_model::IpFamily;

use crate::netlink::gre;
use crate::netlink::socket::Channel;

/// The datapaths that were found, per underlay family.
#[derive(Debug, Default)]
pub(crate) struct GreProbe {
    v4: Option<Found>,
    v6: Option<Found>,
    /// True with `--no-userspace`.
    kernel_only: bool,
}

/// The outcome of one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found(Option<Datapath>);

impl GreProbe {
    /// Never lets this process stand in for the kernel.
    pub(crate) fn refuse_userspace(&mut self) {
        self.kernel_only = true;
    }

    /// Looks the first time, and then again only if a module that was missing is there.
    pub(crate) fn look(&mut self, channel: &mut Channel, family: IpFamily) -> Option<Datapath> {
        let before = *self.of(family);
        match before {
            Some(Found(Some(Datapath::Kernel))) => return Some(Datapath::Kernel),
            Some(Found(found)) if !is_loaded(family) => return found,
            Some(_) | None => {}
        }
        let found = if has_module(channel, family) {
            Some(Datapath::Kernel)
        } else {
            Some(Datapath::Userspace).filter(|_| !self.kernel_only && super::userspace::is_possible(family))
        };
        *self.of(family) = Some(Found(found));
        if before != Some(Found(found)) {
            say(family, found);
        }
        found
    }

    /// Forgets what was found if the kernel no longer knows such devices, because the module was removed.
    pub(crate) fn applied(&mut self, ops: &[Op], outcomes: &[OpOutcome]) {
        for (op, outcome) in ops.iter().zip(outcomes) {
            let (Object::Link(_, link), OpOutcome::Failed(error)) = (&op.object, outcome) else { continue };
            match link.kind {
                LinkKind::Gre(_) if error.errno == Some(libc::EOPNOTSUPP) => self.v4 = None,
                LinkKind::Gre6(_) if error.errno == Some(libc::EOPNOTSUPP) => self.v6 = None,
                _ => {}
            }
        }
    }

    fn of(&mut self, family: IpFamily) -> &mut Option<Found> {
        match family {
            IpFamily::V4 => &mut self.v4,
            IpFamily::V6 => &mut self.v6,
        }
    }
}

/// Logs the datapath once: packets cost more when they pass through this process.
fn say(family: IpFamily, found: Option<Datapath>) {
    match found {
        Some(Datapath::Kernel) => tracing::info!(%family, "the kernel carries GRE"),
        Some(Datapath::Userspace) => {
            tracing::warn!(%family, module = module(family), "the kernel lacks GRE: this process carries it, at a cost");
        }
        None => tracing::warn!(%family, module = module(family), "nobody can carry GRE here"),
    }
}

fn module(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip_gre",
        IpFamily::V6 => "ip6_gre",
    }
}

/// Returns true if the module is there now, without asking for it.
fn is_loaded(family: IpFamily) -> bool {
    Path::new("/sys/module").join(module(family)).exists()
}

/// Asks for a device that cannot be made. A kernel that knows the kind refuses what is asked (`EINVAL`), and one that
/// does not refuses the kind (`EOPNOTSUPP`). Nothing is made either way.
fn has_module(channel: &mut Channel, family: IpFamily) -> bool {
    match channel.request(&gre::impossible(family)) {
        // That cannot happen, but if it does, the kind is known.
        Ok(()) => true,
        Err(refusal) => refusal.errno == libc::EINVAL,
    }
}
