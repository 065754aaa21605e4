//! Values on the command line that are more than a word.

use std::net::IpAddr;
use std::time::Duration;

use flatnet_model::NetworkName;
use flatnet_model::network::InvalidNetworkName;
use ipnet::IpNet;

/// A CIDR, for the network `default` or for a named one: `10.1.0.0/16` or `blue=10.1.0.0/16`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedCidr {
    /// The network.
    pub network: NetworkName,
    /// The range, without host bits.
    pub cidr: IpNet,
}

/// The reason why a word on the command line is not the value that it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    /// The network's name is none.
    #[error(transparent)]
    Network(#[from] InvalidNetworkName),
    /// The word is not a CIDR.
    #[error("not a CIDR such as 10.100.0.0/16 or fd00::/48")]
    NotCidr,
    /// The address of the CIDR is not that of the range.
    #[error("has host bits set; {0} is meant")]
    HostBits(IpNet),
    /// The word is not a length of time.
    #[error("not a length of time such as 90s, 30m, 24h or 7d")]
    NotDuration,
    /// The time is too short, or longer than etcd takes.
    #[error("must be at least 10s")]
    Ttl,
    /// The word is not a hash.
    #[error("not sha256: and 64 hexadecimal digits, as `controlplane token create` prints it")]
    NotHash,
    /// The word is not an address.
    #[error("not an IP address")]
    NotAddress,
    /// The address is this host's own, nobody's, or a group's.
    #[error("not an address that other hosts can send to")]
    NotUnicast,
}

/// Parses [`NamedCidr`].
pub fn named_cidr(text: &str) -> Result<NamedCidr, InvalidValue> {
    let (network, cidr) = match text.split_once('=') {
        Some((name, cidr)) => (name.parse::<NetworkName>()?, cidr),
        None => (NetworkName::default_network(), text),
    };
    Ok(NamedCidr { network, cidr: self::cidr(cidr)? })
}

/// Parses a CIDR without host bits.
pub fn cidr(text: &str) -> Result<IpNet, InvalidValue> {
    let net: IpNet = text.parse().map_err(|_| InvalidValue::NotCidr)?;
    if net == net.trunc() { Ok(net) } else { Err(InvalidValue::HostBits(net.trunc())) }
}

/// Parses a subnet lease's time to live. The shortest is what a keep-alive every third of it can hold through a store
/// election.
pub fn lease_ttl(text: &str) -> Result<Duration, InvalidValue> {
    /// The shortest time to live: with less, one failed-over etcd election costs the lease.
    const SHORTEST_TTL: Duration = Duration::from_secs(10);
    /// etcd's own limit on a lease's TTL (`lease.MaxLeaseTTL`), in seconds.
    const LONGEST_TTL: Duration = Duration::from_secs(9_000_000_000);
    let ttl = humantime::parse_duration(text).map_err(|_| InvalidValue::NotDuration)?;
    if (SHORTEST_TTL..=LONGEST_TTL).contains(&ttl) { Ok(ttl) } else { Err(InvalidValue::Ttl) }
}

/// A text that appears in no log, no error and no dump.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.trim().to_owned()))
    }
}

/// Parses `--ca-hash`.
pub fn ca_hash(text: &str) -> Result<String, InvalidValue> {
    let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    match hex {
        Some(hex) => Ok(format!("sha256:{}", hex.to_ascii_lowercase())),
        None => Err(InvalidValue::NotHash),
    }
}

/// Parses an address that other hosts can send to.
pub fn unicast<A: std::str::FromStr + Into<IpAddr> + Copy>(text: &str) -> Result<A, InvalidValue> {
    let address: A = text.parse().map_err(|_| InvalidValue::NotAddress)?;
    let ip: IpAddr = address.into();
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err(InvalidValue::NotUnicast);
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lives_long_enough_to_be_renewed() {
        assert_eq!(lease_ttl("24h"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "h", "24", "-1s", "9s", "99999999999999999999d"] {
            assert!(lease_ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cidr_may_name_its_network() {
        assert_eq!(named_cidr("10.1.0.0/16").unwrap().network, NetworkName::default_network());
        assert_eq!(named_cidr("blue=10.1.0.0/16").unwrap().network.as_str(), "blue");
        for bad in ["10.1.0.1/16", "Blue=10.1.0.0/16", "10.1.0.0", "=10.1.0.0/16"] {
            assert!(named_cidr(bad).is_err(), "{bad}");
        }
    }
}
