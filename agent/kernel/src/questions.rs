//! What can be asked about a host besides its objects, and the answer.

use std::net::IpAddr;

use flatnet_core::claims::Sighting;
use flatnet_core::drops::DropCount;
use flatnet_core::facts::HostFacts;
use flatnet_core::way::{Detour, WayQuery};

/// The questions of one look at the host. What is not asked is not looked at, and its answer is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Questions {
    /// Asks for interfaces, addresses, routes and features, and for the routes to these addresses.
    pub host: Option<Vec<IpAddr>>,
    /// Asks for the datapaths that can carry GRE ([`flatnet_core::facts::Features::gre`]). Looking makes the kernel
    /// load its module, so this is asked only where a network wants it. A module that appears or goes later is
    /// noticed.
    pub gre: bool,
    /// Asks for the counters of those rules of ours that drop.
    pub drops: bool,
    /// Asks for the sources whose packets those rules dropped in the last minutes: at most some dozens for each rule.
    pub sightings: bool,
    /// Asks which of these ways do not follow a route of ours.
    pub ways: Vec<WayQuery>,
}

impl Questions {
    /// Asks for the host itself, with the routes to `route_to`.
    #[must_use]
    pub fn host(route_to: impl Into<Vec<IpAddr>>) -> Self {
        Self { host: Some(route_to.into()), ..Self::default() }
    }
}

/// The answers to [`Questions`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The host.
    pub host: HostFacts,
    /// The counters of rules that drop.
    pub drops: Vec<DropCount>,
    /// The sources of packets that were dropped, in no order.
    pub sightings: Vec<Sighting>,
    /// The ways that do not follow a route of ours. Ways that the kernel cannot be asked about are left out.
    pub detours: Vec<Detour>,
}
