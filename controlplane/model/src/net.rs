//! The small nouns of a network stack, each valid by construction.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address family of an underlay, an overlay or an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4 (`AF_INET`).
    V4,
    /// IPv6 (`AF_INET6`).
    V6,
}

impl IpFamily {
    /// Both families, in the order in which they are planned and printed.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of `address`.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Bits in an address: 32 or 128.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A VXLAN network identifier: 24 bits on the wire (RFC 7348 §5), 0 excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The largest identifier that fits 24 bits.
    pub const MAX: u32 = 0x00ff_ffff;
    /// flannel's default (`vxlan.go`: `defaultVNI`).
    pub const FLANNEL_DEFAULT: Self = Self(1);

    /// Checks that `value` is in 1..=16,777,215.
    pub fn new(value: u32) -> Result<Self, InvalidVni> {
        if value == 0 || value > Self::MAX { Err(InvalidVni(u64::from(value))) } else { Ok(Self(value)) }
    }

    /// Returns the number itself.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A VNI outside 1..=16,777,215.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("VNI {0} is not in 1..=16777215 (RFC 7348: 24 bits)")]
pub struct InvalidVni(pub u64);

/// The key of GRE packets (RFC 2890). All 32 bits are usable, but 0 here means *no key at all*, which is what tunnels
/// made by hand have. A packet with a key of 0 is another thing and never sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GreKey(u32);

impl GreKey {
    /// No key.
    pub const NONE: Self = Self(0);

    /// Makes a key of the number; 0 for no key.
    #[must_use]
    pub const fn new(key: u32) -> Self {
        Self(key)
    }

    /// Returns the number; 0 for no key.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns true if packets carry no key.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for GreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A maximum transmission unit in bytes, as an interface carries it: the IP packet without the link header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u32);

impl Mtu {
    /// The smallest MTU every IPv4 host must forward (RFC 791).
    pub const MIN_IPV4: u32 = 68;
    /// The smallest MTU IPv6 works with (RFC 8200 §5).
    pub const MIN_IPV6: u32 = 1280;
    /// The largest an interface can have here: a 16-bit IP length.
    pub const MAX: u32 = 65_535;

    /// Checks that `bytes` is in 68..=65,535.
    pub fn new(bytes: u32) -> Result<Self, InvalidMtu> {
        if (Self::MIN_IPV4..=Self::MAX).contains(&bytes) { Ok(Self(bytes)) } else { Err(InvalidMtu(u64::from(bytes))) }
    }

    /// Returns the number of bytes.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// Returns the MTU left for the inner packet once `overhead_bytes` of headers are added.
    pub fn less(self, overhead_bytes: u32) -> Result<Self, InvalidMtu> {
        Self::new(self.0.saturating_sub(overhead_bytes))
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An MTU outside 68..=65,535 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("MTU {0} is not in 68..=65535 bytes")]
pub struct InvalidMtu(pub u64);

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Makes an address from the six octets in wire order.
    #[must_use]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// Makes a unicast, locally administered address (IEEE 802: bit 1 of the first octet set, bit 0 clear) from `seed`.
    #[must_use]
    pub const fn local(seed: [u8; 6]) -> Self {
        let mut octets = seed;
        octets[0] = (octets[0] & 0xfc) | 0x02;
        Self(octets)
    }

    /// Returns the six octets in wire order.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Returns true if a single station can have this address: it is no group address and not all zeros.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(crate::text::excerpt(text));
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(invalid)?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Ok(Self(octets)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, InvalidMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// Text that is not six colon-separated hexadecimal octets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address such as 4e:f4:0c:52:b7:8d")]
pub struct InvalidMac(pub String);

/// The name of a network interface: 1 to 15 bytes (`IFNAMSIZ` less its NUL, linux/if.h), none of them `/`,
/// `:`, white space or a control character, and neither `.` nor `..` (net/core/dev.c: `dev_valid_name`).
///
/// Kept inline and `Copy`: every kernel object's key holds one, thousands of times.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName {
    bytes: [u8; Self::MAX_LEN],
    len: u8,
}

impl IfName {
    /// `IFNAMSIZ` (16) less the terminating NUL.
    pub const MAX_LEN: usize = 15;

    /// Parses and checks `name`. Quotes, backslashes and asterisks are refused although the kernel takes them. In a
    /// rule of nft the first end the name, and the last makes it a pattern that other interfaces match too.
    pub fn new(name: &str) -> Result<Self, InvalidIfName> {
        let valid = !name.is_empty()
            && name.len() <= Self::MAX_LEN
            && name != "."
            && name != ".."
            && name.bytes().all(|byte| byte.is_ascii_graphic() && !br#"/:"\*"#.contains(&byte));
        let Some(len) = valid.then(|| u8::try_from(name.len()).ok()).flatten() else {
            return Err(InvalidIfName(crate::text::excerpt(name)));
        };
        let mut bytes = [0; Self::MAX_LEN];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Ok(Self { bytes, len })
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // `new` admits ASCII only, so this cannot fail.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl FromStr for IfName {
    type Err = InvalidIfName;

    fn from_str(name: &str) -> Result<Self, InvalidIfName> {
        Self::new(name)
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text the kernel would refuse as an interface name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot name a network interface (1 to 15 printable ASCII characters, none of / : \" \\ *)")]
pub struct InvalidIfName(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vni_is_24_bits_and_not_zero() {
        assert_eq!(Vni::new(0), Err(InvalidVni(0)));
        assert_eq!(Vni::new(Vni::MAX).map(Vni::get), Ok(0x00ff_ffff));
        assert!(Vni::new(Vni::MAX + 1).is_err());
    }

    #[test]
    fn a_mac_is_read_strictly_and_printed_in_lower_case() {
        assert_eq!("4E:f4:0c:52:b7:8d".parse::<Mac>().unwrap().to_string(), "4e:f4:0c:52:b7:8d");
        for bad in ["", "4e:f4:0c:52:b7", "4e:f4:0c:52:b7:8d:00", "4e-f4-0c-52-b7-8d", "+e:f4:0c:52:b7:8d"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_local_mac_is_unicast_and_locally_administered() {
        let mac = Mac::local([0xff; 6]);
        assert_eq!(mac.octets()[0] & 0x03, 0x02);
        assert!(mac.is_unicast());
    }

    #[test]
    fn an_interface_name_is_what_the_kernel_takes() {
        assert_eq!(IfName::new("flat.16777215").unwrap().as_str(), "flat.16777215");
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-letters!", "é", "we\"ird", "ens3\\", "eth*"] {
            assert!(IfName::new(bad).is_err(), "{bad}");
        }
    }
}
