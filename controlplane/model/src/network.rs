//! A network: a name, the addresses it hands out, and how its packets travel.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use crate::backend::BackendConfig;
use crate::net::IpFamily;
use crate::pool::Pool;

/// A network's name: 1 to 63 characters of `a-z 0-9 - _`, beginning with a letter or digit. It becomes part of store
/// keys, file names and metric labels, so nothing else is let in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(String);

impl NetworkName {
    /// The network at flannel's own prefix.
    pub const DEFAULT: &'static str = "default";

    /// Returns the name of the network at flannel's own prefix.
    #[must_use]
    pub fn default_network() -> Self {
        Self(Self::DEFAULT.to_owned())
    }

    /// Returns true for the network at flannel's own prefix.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.0 == Self::DEFAULT
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetworkName {
    type Err = InvalidNetworkName;

    fn from_str(name: &str) -> Result<Self, InvalidNetworkName> {
        let letter_or_digit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let valid = (1..=63).contains(&name.len())
            && name.bytes().next().is_some_and(letter_or_digit)
            && name.bytes().all(|byte| letter_or_digit(byte) || byte == b'-' || byte == b'_');
        if valid { Ok(Self(name.to_owned())) } else { Err(InvalidNetworkName(crate::text::excerpt(name))) }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A name that cannot be a network's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot name a network (1 to 63 of a-z, 0-9, '-', '_', beginning with a letter or digit)")]
pub struct InvalidNetworkName(pub String);

/// A network's configuration, read and checked: at least one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `Network` and its subnets, unless `EnableIPv4` is false.
    pub v4: Option<Pool>,
    /// `IPv6Network` and its subnets, if `EnableIPv6`.
    pub v6: Option<Pool>,
    /// The backend: how packets travel.
    pub backend: BackendConfig,
    /// `Flatnet.Before`: the backends before a change that not all hosts may have followed, the latest first. A host
    /// that joins meanwhile also receives by those of them that leases still name.
    pub before: Vec<BackendConfig>,
    /// `Flatnet.ReachableFrom`: ranges outside of the network from which anybody may open connections into it.
    pub reachable_from: Vec<IpNet>,
}

impl NetworkConfig {
    /// Returns the pool of `family`.
    #[must_use]
    pub fn pool(&self, family: IpFamily) -> Option<&Pool> {
        match family {
            IpFamily::V4 => self.v4.as_ref(),
            IpFamily::V6 => self.v6.as_ref(),
        }
    }

    /// Returns the pools, IPv4 first.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.v4.iter().chain(self.v6.iter())
    }
}
