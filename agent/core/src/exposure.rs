//! The user's exceptions to what a network is by itself. Without them, its members speak to each other, and nobody else
//! can open connections to them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::str::FromStr;

use flatnet_model::IfName;
use ipnet::IpNet;

/// The outsiders that may open connections into the networks, and the store endpoints that containers may not reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// Interfaces by which anybody may open connections (`--expose IFACE`).
    pub interfaces: BTreeSet<IfName>,
    /// Ranges from which anybody may open connections (`--expose CIDR`).
    pub ranges: Vec<IpNet>,
    /// The store's endpoints, which containers of this host may not reach; empty if they may
    /// (`--containers-reach-store`).
    pub store: BTreeSet<SocketAddr>,
}

/// One value of `--expose`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exposed {
    /// An interface of this host.
    Interface(IfName),
    /// A range of addresses outside.
    Range(IpNet),
}

impl FromStr for Exposed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<std::net::IpAddr>() {
            return Ok(Self::Range(address.into()));
        }
        if text.contains('/') {
            let range: IpNet = text.parse().map_err(|_| "not a CIDR such as 192.168.1.0/24 or fd00::/48".to_owned())?;
            let meant = range.trunc();
            return if range == meant {
                Ok(Self::Range(range))
            } else {
                Err(format!("has host bits set; {meant} is meant"))
            };
        }
        IfName::new(text).map(Self::Interface).map_err(|error| format!("neither a CIDR nor an interface: {error}"))
    }
}

impl Exposure {
    /// Returns the exposure that these values of `--expose` ask for.
    #[must_use]
    pub fn of(values: &[Exposed]) -> Self {
        let mut exposure = Self::default();
        for value in values {
            match value {
                Exposed::Interface(name) => drop(exposure.interfaces.insert(*name)),
                Exposed::Range(range) => exposure.ranges.push(*range),
            }
        }
        exposure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_told_from_a_range() {
        let range = |text: &str| Exposed::Range(text.parse().unwrap());
        for (text, expected) in [
            ("eth1", Exposed::Interface(IfName::new("eth1").unwrap())),
            ("192.168.1.0/24", range("192.168.1.0/24")),
            ("192.168.1.7", range("192.168.1.7/32")),
            ("0.0.0.0/0", range("0.0.0.0/0")),
            ("fd00::/8", range("fd00::/8")),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for wrong in ["192.168.1.7/24", "192.168.1.0/33", "", "an-interface-too-long", "eth 0", "a/b"] {
            assert!(wrong.parse::<Exposed>().is_err(), "{wrong}");
        }
    }
}
