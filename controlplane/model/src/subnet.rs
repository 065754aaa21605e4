//! A lease's subnets: its identity in the store.

use std::fmt;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::net::IpFamily;

/// The subnets of one lease, at least one of them. Its text is the last part of flannel's key (flannel
/// `pkg/subnet/subnet.go`: `MakeSubnetKey`): `10.0.40.0-24`, dual stack `10.0.40.0-24&fd00:0:0:28::-64`, IPv6 only
/// `0.0.0.0-0&fd00:0:0:28::-64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey {
    v4: Option<Ipv4Net>,
    v6: Option<Ipv6Net>,
}

impl SubnetKey {
    /// Makes a key of at least one of the two, each without host bits.
    pub fn new(v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) -> Result<Self, InvalidSubnetKey> {
        let canonical = v4.is_none_or(|net| net == net.trunc()) && v6.is_none_or(|net| net == net.trunc());
        if (v4.is_none() && v6.is_none()) || !canonical {
            return Err(InvalidSubnetKey(format!("{v4:?} {v6:?}")));
        }
        Ok(Self { v4, v6 })
    }

    /// Returns the IPv4 subnet, if the lease has one.
    #[must_use]
    pub fn v4(&self) -> Option<Ipv4Net> {
        self.v4
    }

    /// Returns the IPv6 subnet, if the lease has one.
    #[must_use]
    pub fn v6(&self) -> Option<Ipv6Net> {
        self.v6
    }

    /// Returns the subnet of `family`, if the lease has one.
    #[must_use]
    pub fn of(&self, family: IpFamily) -> Option<IpNet> {
        match family {
            IpFamily::V4 => self.v4.map(IpNet::V4),
            IpFamily::V6 => self.v6.map(IpNet::V6),
        }
    }

    /// Returns the subnets, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.v4.map(IpNet::V4).into_iter().chain(self.v6.map(IpNet::V6))
    }
}

/// Writes one subnet as a key has it: `10.0.40.0-24`.
#[must_use]
pub fn key_form(net: IpNet) -> String {
    format!("{}-{}", net.addr(), net.prefix_len())
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.v4 {
            Some(v4) => write!(f, "{}-{}", v4.addr(), v4.prefix_len())?,
            // flannel writes this for a lease without IPv4: it is the zero value of its subnet type.
            None => f.write_str("0.0.0.0-0")?,
        }
        match self.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.addr(), v6.prefix_len()),
            None => Ok(()),
        }
    }
}

impl FromStr for SubnetKey {
    type Err = InvalidSubnetKey;

    fn from_str(text: &str) -> Result<Self, InvalidSubnetKey> {
        let invalid = || InvalidSubnetKey(crate::text::excerpt(text));
        let (v4, v6) = match text.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (text, None),
        };
        let cidr = |part: &str| -> Option<IpNet> {
            part.rsplit_once('-').and_then(|(a, len)| format!("{a}/{len}").parse().ok())
        };
        let v4 = match cidr(v4) {
            Some(IpNet::V4(net)) => net,
            _ => return Err(invalid()),
        };
        let v6 = match v6.map(cidr) {
            None => None,
            Some(Some(IpNet::V6(net))) => Some(net),
            Some(_) => return Err(invalid()),
        };
        let v4 = (!(v4 == Ipv4Net::default() && v6.is_some())).then_some(v4);
        let key = Self::new(v4, v6).map_err(|_| invalid())?;
        // One lease, one key: another spelling of the same subnets would be a second key for them.
        if key.to_string() == text { Ok(key) } else { Err(invalid()) }
    }
}

/// Text that is not a subnet key in its one canonical spelling.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a subnet key such as 10.0.40.0-24 or 10.0.40.0-24&fd00:0:0:28::-64")]
pub struct InvalidSubnetKey(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannels_three_forms_round_trip() {
        for text in ["10.0.40.0-24", "10.0.40.0-24&fd00:0:0:28::-64", "0.0.0.0-0&fd00:0:0:28::-64"] {
            assert_eq!(text.parse::<SubnetKey>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_but_the_canonical_spelling_is_refused() {
        for bad in [
            "",
            "10.0.40.0",
            "10.0.40.0/24",
            "10.0.40.1-24",
            "10.0.40.0-33",
            "10.0.40.0-024",
            "010.0.40.0-24",
            "10.0.40.0-24&",
            "10.0.40.0-24&fd00::1-64",
            "10.0.40.0-24&FD00::-64",
            "10.0.40.0-24&fd00:0000::-64",
            "fd00::-64",
            "../../config",
            "10.0.40.0-24&10.0.41.0-24",
        ] {
            assert!(bad.parse::<SubnetKey>().is_err(), "{bad}");
        }
    }
}
