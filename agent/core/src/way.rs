//! The way by which the kernel sends a packet to a peer's container. The kernel is asked; the way is not inferred from
//! the routes we made.

use std::net::IpAddr;

use flatnet_model::{IfName, SubnetKey};

use crate::problem::{Problem, ProblemCode};

/// One question to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayQuery {
    /// The subnets of the peer concerned.
    pub peer: SubnetKey,
    /// The address of a container on that peer.
    pub to: IpAddr,
    /// The address of a container here, and the bridge it would come from. Without them, the question is about this
    /// host's own packets.
    pub from: Option<(IpAddr, IfName)>,
}

/// A way that does not follow a route of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detour {
    /// The subnets of the peer concerned.
    pub peer: SubnetKey,
    /// The address of a container on that peer.
    pub to: IpAddr,
    /// The device the packet would leave by; `None`: it would be dropped.
    pub device: Option<IfName>,
    /// The routing table that decided so, if the kernel names it.
    pub table: Option<u32>,
    /// The priority of the rule that leads there, and its table.
    pub rule: Option<(u32, u32)>,
}

impl Detour {
    /// Returns the detour as a problem.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let way = match self.device {
            Some(device) => format!("leave by {device}"),
            None => "are dropped".to_owned(),
        };
        let table = match self.rule {
            Some((priority, table)) => format!(", because of rule {priority} and table {table}"),
            None => self.table.map(|table| format!(", because of table {table}")).unwrap_or_default(),
        };
        let hint = match self.rule {
            Some((_, table)) => format!(
                "`ip rule` and `ip route show table {table}` show what comes before our routes (a VPN that accepts routes, as Tailscale does with table 52): \
                 keep the network's range out of it, or put a rule for it before: ip rule add to RANGE priority 100 lookup main"
            ),
            None => {
                format!("`ip route get {}` shows it: remove that route, or keep the network's range out of it", self.to)
            }
        };
        Problem::new(
            ProblemCode::PeerDetour,
            format!(
                "packets to the containers of {} ({}) {way}{table}, not by the network's own route",
                self.peer, self.to
            ),
            hint,
            self.peer,
        )
    }
}
