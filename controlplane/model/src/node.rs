//! A node's identity, which stays the same across restarts, reboots and new addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A node's identity: 128 random bits, made once, kept in the state directory. Written as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(u128);

/// Tells the running copies of a node apart when one holds a claim: 128 random bits kept where a copied disk does not
/// carry them (the run directory). Two machines with one [`NodeId`] and different nonces are a cloned state directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceNonce(u128);

/// Text that is not 32 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an identity of 32 lower-case hexadecimal digits")]
pub struct InvalidIdentity(pub String);

fn parse(text: &str) -> Result<u128, InvalidIdentity> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() == 32 && text.bytes().all(hex) {
        u128::from_str_radix(text, 16).map_err(|_| InvalidIdentity(crate::text::excerpt(text)))
    } else {
        Err(InvalidIdentity(crate::text::excerpt(text)))
    }
}

macro_rules! identity {
    ($name:ident) => {
        impl $name {
            /// Makes an id from 128 bits, as the random source gave them.
            #[must_use]
            pub const fn new(bits: u128) -> Self {
                Self(bits)
            }

            /// Returns the 128 bits.
            #[must_use]
            pub const fn bits(self) -> u128 {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidIdentity;

            fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
                parse(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidIdentity;

            fn try_from(text: String) -> Result<Self, InvalidIdentity> {
                parse(&text).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

identity!(NodeId);
identity!(InstanceNonce);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_as_it_was_written() {
        let id = NodeId::new(0x00ab);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "AB", "000000000000000000000000000000AB", "../../../../../../../../../../etc"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }
}
