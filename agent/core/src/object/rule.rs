//! Rules of routing: which table is asked for which packets.

use std::fmt;

use flatnet_model::{IfName, IpFamily};
use ipnet::IpNet;

/// A rule (`ip rule`). The kernel tells rules apart by all of it, so there is nothing else to be wanted of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The place among the rules; the lowest that matches wins. 0 is the kernel's, 32,766 the main table's.
    pub priority: u32,
    /// The family of the packets.
    pub family: IpFamily,
    /// The mark of the packets and the bits of it that count; `None`: any.
    pub mark: Option<(u32, u32)>,
    /// The source of the packets; `None`: any. No host bits.
    pub from: Option<IpNet>,
    /// The destination of the packets; `None`: any. No host bits.
    pub to: Option<IpNet>,
    /// The device they came in by; `None`: any, or they are this host's own.
    pub iif: Option<IfName>,
    /// The table that is asked; if it has no route, the next rule has its turn.
    pub table: u32,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        match self.from {
            Some(from) => write!(f, " from {from}")?,
            None => f.write_str(" from all")?,
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some((mark, mask)) = self.mark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        if let Some(iif) = self.iif {
            write!(f, " iif {iif}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}
