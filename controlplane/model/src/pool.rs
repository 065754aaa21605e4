//! The addresses a network hands out, one family at a time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::net::IpFamily;

/// One family's share of a network: the range, and how it is cut into subnets (flannel's `Network`, `SubnetLen`,
/// `SubnetMin`, `SubnetMax` and their IPv6 twins, defaults applied).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    network: IpNet,
    subnet_len: u8,
    min: IpAddr,
    max: IpAddr,
}

/// Why a pool's numbers do not fit together. The wording names flannel's fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPool {
    /// Host bits are set.
    #[error("Network {0} has host bits set; {trunc} is meant", trunc = .0.trunc())]
    HostBits(IpNet),
    /// Fewer than four subnets of at least four addresses.
    #[error("Network {network} is too small: the smallest useful prefix is /{limit}")]
    TooSmall {
        /// The network as given.
        network: IpNet,
        /// The longest prefix that works.
        limit: u8,
    },
    /// The subnets would be larger than a quarter of the network, or smaller than four addresses.
    #[error("SubnetLen {subnet_len} does not fit {network}: it must be in {low}..={high}")]
    SubnetLen {
        /// The network as given.
        network: IpNet,
        /// The length asked for, in bits.
        subnet_len: u64,
        /// The shortest allowed: at least four subnets.
        low: u8,
        /// The longest allowed: at least four addresses each.
        high: u8,
    },
    /// A bound is outside the network, of another family, or not on a subnet boundary.
    #[error("{field} {value} is not the start of a /{subnet_len} subnet inside {network}")]
    Bound {
        /// `SubnetMin` or `SubnetMax`.
        field: &'static str,
        /// The address as given.
        value: IpAddr,
        /// The subnets' length.
        subnet_len: u8,
        /// The network.
        network: IpNet,
    },
    /// Addresses that mean something else to every host.
    #[error("Network {network} has {what} in it ({range}): no network can have those")]
    Special {
        /// The network as given.
        network: IpNet,
        /// What it has in it.
        what: &'static str,
        /// Where that is.
        range: IpNet,
    },
    /// Wider than any range that somebody could own.
    #[error("Network {network} is too large: the shortest prefix a network can have is /{limit}")]
    TooLarge {
        /// The network as given.
        network: IpNet,
        /// The shortest prefix.
        limit: u8,
    },
    /// No subnet between the bounds.
    #[error("SubnetMin {min} is above SubnetMax {max}")]
    Empty {
        /// The lower bound.
        min: IpAddr,
        /// The upper bound.
        max: IpAddr,
    },
}

impl Pool {
    /// Applies flannel's defaults (`pkg/subnet/config.go`: `CheckNetworkConfig`): /24 (IPv6: /64) or, in a small
    /// network, a quarter of it; from the second subnet to the last.
    pub fn new(
        network: IpNet,
        subnet_len: Option<u64>,
        min: Option<IpAddr>,
        max: Option<IpAddr>,
    ) -> Result<Self, InvalidPool> {
        if network != network.trunc() {
            return Err(InvalidPool::HostBits(network));
        }
        let family = IpFamily::of(network.addr());
        // A subnet needs four addresses, a network four subnets.
        let (high, usual) = match family {
            IpFamily::V4 => (30, 24),
            IpFamily::V6 => (126, 64),
        };
        let limit = high - 2;
        if network.prefix_len() > limit {
            return Err(InvalidPool::TooSmall { network, limit });
        }
        let low = network.prefix_len() + 2;
        let subnet_len = match subnet_len {
            None | Some(0) => low.max(usual),
            Some(len) => match u8::try_from(len) {
                Ok(len) if (low..=high).contains(&len) => len,
                _ => return Err(InvalidPool::SubnetLen { network, subnet_len: len, low, high }),
            },
        };
        let size = 1_u128 << (family.bits() - subnet_len);
        let first = to_bits(network.addr());
        let last = first + ((1_u128 << (family.bits() - network.prefix_len()).min(127)) - 1) / size * size;
        let bound = |field, value: Option<IpAddr>, default: u128| match value.filter(|value| !value.is_unspecified()) {
            None => Ok(from_bits(family, default)),
            Some(value) if network.contains(&value) && to_bits(value).is_multiple_of(size) => Ok(value),
            Some(value) => Err(InvalidPool::Bound { field, value, subnet_len, network }),
        };
        let min = bound("SubnetMin", min, first + size)?;
        let max = bound("SubnetMax", max, last)?;
        if min > max {
            return Err(InvalidPool::Empty { min, max });
        }
        Ok(Self { network, subnet_len, min, max })
    }

    /// The whole range: what containers on all hosts share.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Whether a network may have this range at all: not one that every host uses for something else, nor most of an address
    /// family. Apart from [`Self::new`], since what is in force somewhere must still be understood.
    pub fn check_range(&self) -> Result<(), InvalidPool> {
        let network = self.network;
        // 10.0.0.0/8 and fd00::/8 are the largest private ranges (RFC 1918, RFC 4193).
        let limit = 8;
        for (range, what) in special() {
            if range.contains(&network) || network.contains(&range) {
                return Err(InvalidPool::Special { network, what, range });
            }
        }
        if network.prefix_len() < limit {
            return Err(InvalidPool::TooLarge { network, limit });
        }
        Ok(())
    }

    /// Length of each subnet's prefix, in bits.
    #[must_use]
    pub fn subnet_len(&self) -> u8 {
        self.subnet_len
    }

    /// First address of the first subnet that may be handed out.
    #[must_use]
    pub fn min(&self) -> IpAddr {
        self.min
    }

    /// First address of the last subnet that may be handed out.
    #[must_use]
    pub fn max(&self) -> IpAddr {
        self.max
    }

    /// The family of the range.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.network.addr())
    }

    /// How many subnets there are between the bounds, free or not.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        (to_bits(self.max) - to_bits(self.min)) / self.subnet_size() + 1
    }

    /// The subnet number `index`, counted from `min`.
    #[must_use]
    pub fn nth(&self, index: u128) -> Option<IpNet> {
        if index >= self.capacity() {
            return None;
        }
        let start = to_bits(self.min) + index * self.subnet_size();
        IpNet::new(from_bits(self.family(), start), self.subnet_len).ok()
    }

    /// Whether `subnet` is one this pool could have handed out.
    #[must_use]
    pub fn holds(&self, subnet: IpNet) -> bool {
        subnet.prefix_len() == self.subnet_len
            && subnet == subnet.trunc()
            && self.family() == IpFamily::of(subnet.addr())
            && (self.min..=self.max).contains(&subnet.addr())
    }

    /// Addresses in one subnet.
    fn subnet_size(&self) -> u128 {
        1_u128 << (self.family().bits() - self.subnet_len)
    }
}

/// What addresses of each family are set aside for (IANA's special-purpose registries), as far as no network can do with them.
fn special() -> impl Iterator<Item = (IpNet, &'static str)> {
    let v4 = |a, b, length, what| (IpNet::new(Ipv4Addr::new(a, b, 0, 0).into(), length), what);
    let v6 = |first, length, what| (IpNet::new(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0).into(), length), what);
    let all = [
        v4(0, 0, 8, "\"this network\""),
        v4(127, 0, 8, "loopback addresses"),
        v4(169, 254, 16, "link-local addresses"),
        v4(224, 0, 4, "multicast addresses"),
        v4(240, 0, 4, "reserved addresses"),
        v6(0, 8, "loopback and mapped addresses"),
        v6(0xfe80, 10, "link-local addresses"),
        v6(0xff00, 8, "multicast addresses"),
    ];
    all.into_iter().filter_map(|(range, what)| Some((range.ok()?, what)))
}

/// An address as a number: IPv4 in the low 32 bits.
pub(crate) fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn from_bits(family: IpFamily, bits: u128) -> IpAddr {
    match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX))),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_mean_something_else_to_every_host_are_refused_and_so_is_what_contains_them() {
        for refused in [
            "0.0.0.0/8",
            "0.1.0.0/16",
            "127.0.0.0/8",
            "127.5.0.0/16",
            "169.254.0.0/16",
            "169.254.7.0/24",
            "168.0.0.0/6",
            "224.0.0.0/4",
            "239.1.0.0/16",
            "240.0.0.0/4",
            "255.0.0.0/8",
            "0.0.0.0/0",
            "0.0.0.0/1",
            "128.0.0.0/1",
            "128.0.0.0/2",
            "8.0.0.0/6",
            "10.0.0.0/7",
            "::/0",
            "::/8",
            "::/1",
            "8000::/1",
            "fe80::/10",
            "fe80::/64",
            "fe00::/7",
            "ff00::/8",
            "ff02::/16",
            "2000::/3",
            "fc00::/7",
        ] {
            let pool = Pool::new(refused.parse().unwrap(), None, None, None).unwrap();
            let error = pool.check_range().expect_err(refused);
            assert!(error.to_string().contains(refused), "{error}");
        }
        for fine in [
            "10.0.0.0/8",
            "172.16.0.0/12",
            "100.64.0.0/10",
            "169.253.0.0/16",
            "fd00::/8",
            "2001:db8::/32",
            "128.0.0.0/8",
        ] {
            Pool::new(fine.parse().unwrap(), None, None, None).unwrap().check_range().expect(fine);
        }
    }
}
