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

/// The reason why a pool's numbers do not fit together. The wording names flannel's fields.
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
        /// The purpose of the special range that the network overlaps.
        what: &'static str,
        /// The special range.
        range: IpNet,
    },
    /// The network is wider than any range that somebody could own.
    #[error("Network {network} is too large: the shortest prefix a network can have is /{limit}")]
    TooLarge {
        /// The network as given.
        network: IpNet,
        /// The shortest prefix that is allowed.
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
        let (usual_min, usual_max) = usual_bounds(network, size);
        let bound = |field, value: Option<IpAddr>, default: u128| match value.filter(|value| !value.is_unspecified()) {
            None => Ok(from_bits(family, default)),
            Some(value) if network.contains(&value) && to_bits(value).is_multiple_of(size) => Ok(value),
            Some(value) => Err(InvalidPool::Bound { field, value, subnet_len, network }),
        };
        let min = bound("SubnetMin", min, usual_min)?;
        let max = bound("SubnetMax", max, usual_max)?;
        if min > max {
            return Err(InvalidPool::Empty { min, max });
        }
        Ok(Self { network, subnet_len, min, max })
    }

    /// Returns the whole range, which the containers on all hosts share.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Returns what the pool hands out, whole subnets from `min` to `max`, in as few prefixes as that takes. A bound
    /// equal to flannel's default counts as no bound, and the range then goes on to its end. Without bounds the whole
    /// range is the network's, including the first subnet, which flannel leaves out.
    #[must_use]
    pub fn handed_out(&self) -> Vec<IpNet> {
        let (mut start, end) = self.ends();
        if (start, end) == span(self.network) {
            return vec![self.network];
        }
        let bits = self.family().bits();
        let mut prefixes = Vec::new();
        while start <= end {
            // The largest block that begins here and ends in time; never all addresses, since that is the network
            // itself.
            let block = start.trailing_zeros().min(((end - start).saturating_add(1)).ilog2());
            let Ok(length) = u8::try_from(u32::from(bits).saturating_sub(block)) else { break };
            prefixes.extend(IpNet::new(from_bits(self.family(), start), length));
            let Some(next) = start.checked_add(1 << block) else { break };
            start = next;
        }
        prefixes
    }

    /// Returns true if all of `net` is in what the pool hands out.
    #[must_use]
    pub fn hands_out(&self, net: IpNet) -> bool {
        if IpFamily::of(net.addr()) != self.family() {
            return false;
        }
        let (first, last) = span(net);
        let is_within = |(start, end)| start <= first && last <= end;
        // This is asked of every lease. Nearly all are between the bounds, whatever those mean.
        is_within((to_bits(self.min), to_bits(self.max))) || is_within(self.ends())
    }

    /// Returns the first and the last address of what it hands out.
    fn ends(&self) -> (u128, u128) {
        let (first, last) = span(self.network);
        let size = self.subnet_size();
        let (min, max) = (to_bits(self.min), to_bits(self.max).saturating_add(size - 1));
        let (default_min, default_max) = usual_bounds(self.network, size);
        let start = if to_bits(self.min) == default_min { first } else { min };
        let end = if to_bits(self.max) == default_max { last } else { max };
        (start, end)
    }

    /// Checks that a network may have this range at all: it is none that every host uses for something else, nor most
    /// of an address family. This is apart from [`Self::new`] because a range in force somewhere must still be
    /// understood.
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

    /// Returns the length of each subnet's prefix, in bits.
    #[must_use]
    pub fn subnet_len(&self) -> u8 {
        self.subnet_len
    }

    /// Returns the first address of the first subnet that may be handed out.
    #[must_use]
    pub fn min(&self) -> IpAddr {
        self.min
    }

    /// Returns the first address of the last subnet that may be handed out.
    #[must_use]
    pub fn max(&self) -> IpAddr {
        self.max
    }

    /// Returns the family of the range.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.network.addr())
    }

    /// Returns the number of subnets between the bounds, free or not.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        (to_bits(self.max) - to_bits(self.min)) / self.subnet_size() + 1
    }

    /// Returns the subnet number `index`, counted from `min`.
    #[must_use]
    pub fn nth(&self, index: u128) -> Option<IpNet> {
        if index >= self.capacity() {
            return None;
        }
        let start = to_bits(self.min) + index * self.subnet_size();
        IpNet::new(from_bits(self.family(), start), self.subnet_len).ok()
    }

    /// Returns true if `subnet` is one this pool could have handed out.
    #[must_use]
    pub fn holds(&self, subnet: IpNet) -> bool {
        subnet.prefix_len() == self.subnet_len
            && subnet == subnet.trunc()
            && self.family() == IpFamily::of(subnet.addr())
            && (self.min..=self.max).contains(&subnet.addr())
    }

    /// Returns the number of addresses in one subnet.
    fn subnet_size(&self) -> u128 {
        1_u128 << (self.family().bits() - self.subnet_len)
    }
}

/// Returns flannel's bounds where none are given: the second subnet and the last one.
fn usual_bounds(network: IpNet, subnet_size: u128) -> (u128, u128) {
    let (first, last) = span(network);
    (first + subnet_size, last / subnet_size * subnet_size)
}

/// Returns the first and the last address of `net`, as numbers.
fn span(net: IpNet) -> (u128, u128) {
    (to_bits(net.network()), to_bits(net.broadcast()))
}

/// Returns the addresses of each family that are set aside for a purpose no network can share (from IANA's
/// special-purpose registries), with that purpose.
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

/// Returns an address as a number: IPv4 in the low 32 bits.
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
    use proptest::prelude::*;

    use super::*;

    fn pool(network: &str, min: Option<&str>, max: Option<&str>, len: u64) -> Pool {
        let address = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        Pool::new(network.parse().unwrap(), Some(len), address(min), address(max)).unwrap()
    }

    fn handed_out(pool: &Pool) -> Vec<String> {
        pool.handed_out().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn without_bounds_the_whole_range_is_handed_out_and_a_bound_cuts_its_own_end_alone() {
        for range in ["10.100.0.0/16", "0.0.0.0/0", "255.255.0.0/16"] {
            assert_eq!(handed_out(&pool(range, None, None, 24)), [range]);
            // As if they were not given, as a zero is.
            assert_eq!(handed_out(&pool(range, Some("0.0.0.0"), Some("0.0.0.0"), 24)), [range]);
        }
        assert_eq!(handed_out(&pool("10.100.0.0/16", Some("10.100.1.0"), Some("10.100.255.0"), 24)), ["10.100.0.0/16"]);
        for range in ["fd00:100::/48", "::/0", "ffff:ffff::/32"] {
            assert_eq!(handed_out(&pool(range, None, None, 64)), [range]);
        }
        assert_eq!(
            handed_out(&pool("10.100.0.0/16", Some("10.100.128.0"), None, 24)),
            ["10.100.128.0/17"],
            "up to the end"
        );
        assert_eq!(
            handed_out(&pool("10.100.0.0/16", None, Some("10.100.63.0"), 24)),
            ["10.100.0.0/18"],
            "from the beginning, the first subnet too"
        );
        assert_eq!(handed_out(&pool("255.255.0.0/16", Some("255.255.255.0"), None, 24)), ["255.255.255.0/24"]);
        assert_eq!(
            handed_out(&pool("ffff::/16", Some("ffff:ffff:ffff:ffff::"), None, 64)),
            ["ffff:ffff:ffff:ffff::/64"]
        );
    }

    #[test]
    fn between_bounds_as_few_prefixes_as_will_do_are_handed_out() {
        let documented = pool("10.0.0.0/8", Some("10.10.0.0"), Some("10.99.0.0"), 20);
        let ranges = [
            "10.10.0.0/15",
            "10.12.0.0/14",
            "10.16.0.0/12",
            "10.32.0.0/11",
            "10.64.0.0/11",
            "10.96.0.0/15",
            "10.98.0.0/16",
            "10.99.0.0/20",
        ];
        assert_eq!(handed_out(&documented), ranges);
        let hands_out = |text: &str| documented.hands_out(text.parse().unwrap());
        assert!(hands_out("10.10.0.0/32") && hands_out("10.99.15.255/32") && hands_out("10.10.0.0/15"));
        for outside in ["10.9.255.255/32", "10.99.16.0/32", "10.240.0.1/32", "10.8.0.0/14", "10.0.0.0/8", "::1/128"] {
            assert!(!hands_out(outside), "{outside}");
        }
        let one = pool("fd00::/8", Some("fd00:0:0:7::"), Some("fd00:0:0:7::"), 64);
        assert_eq!(handed_out(&one), ["fd00:0:0:7::/64"]);
        let few = pool("fd00:100::/56", Some("fd00:100:0:10::"), Some("fd00:100:0:2f::"), 64);
        assert_eq!(handed_out(&few), ["fd00:100:0:10::/60", "fd00:100:0:20::/60"]);
    }

    proptest! {
        #[test]
        fn exactly_the_subnets_between_the_bounds_are_handed_out(
            is_v4: bool,
            length in 0..=28_u8,
            more in 2..=60_u8,
            bounds: (u64, u64),
            base: u128,
        ) {
            let (family, high) = if is_v4 { (IpFamily::V4, 30) } else { (IpFamily::V6, 126) };
            let subnet_len = (length + more).min(high);
            let base = if is_v4 { base >> 96 } else { base };
            let network = IpNet::new(from_bits(family, base), length).unwrap().trunc();
            let size = 1_u128 << (family.bits() - subnet_len);
            let count = 1_u128 << (subnet_len - length);
            // Below what `usual_bounds` gives, so that both are bounds.
            let [low, high] = [bounds.0, bounds.1].map(|at| u128::from(at) % (count - 1));
            let (low, high) = (low.min(high), low.max(high));
            prop_assume!(low != 1);
            let at = |index: u128| from_bits(family, to_bits(network.addr()) + index * size);
            let pool = || Pool::new(network, Some(subnet_len.into()), Some(at(low)), Some(at(high))).unwrap();
            // Subnet 0 of 0.0.0.0/N is at no address, which is no bound.
            prop_assume!(!at(low).is_unspecified() && !at(high).is_unspecified());
            let prefixes = pool().handed_out();
            let mut next = to_bits(at(low));
            for prefix in &prefixes {
                let (first, last) = span(*prefix);
                prop_assert_eq!(first, next, "in order, without a gap and without an overlap");
                prop_assert!(prefix.prefix_len() <= subnet_len && network.contains(prefix));
                prop_assert!(pool().hands_out(*prefix));
                next = last + 1;
            }
            prop_assert_eq!(next, to_bits(at(high)) + size);
            // The prefixes are as few as will do: no two of them are the halves of one that would do.
            let halves = |pair: &[IpNet]| pair[0].prefix_len() == pair[1].prefix_len() && pair[0].supernet() == pair[1].supernet();
            prop_assert!(!prefixes.windows(2).any(halves), "{:?}", prefixes);
            prop_assert!(!pool().hands_out(network));
        }
    }

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
