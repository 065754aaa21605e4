//! Private keys, and the one place that knows them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use flatnet_model::WireguardKey;
use flatnet_model::wireguard::InvalidWireguardKey;
use wireguard_control::Key;

/// A private key. Nothing prints it, and it is written as text for the key file only.
#[derive(Clone)]
pub struct PrivateKey(Key);

impl PrivateKey {
    /// Makes a new key from the system's random numbers.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        // Clamped as every implementation does (RFC 7748 §5), so that the file holds what `wg` shows.
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        Ok(Self(Key(bytes)))
    }

    /// Reads the text of a key file, which `wg genkey` may have made.
    pub fn from_base64(text: &str) -> Result<Self, InvalidWireguardKey> {
        let key = Key::from_base64(text).map_err(|_| InvalidWireguardKey)?;
        if key == Key::zero() { Err(InvalidWireguardKey) } else { Ok(Self(key)) }
    }

    /// Returns the text for the key file.
    #[must_use]
    pub fn to_base64(&self) -> String {
        self.0.to_base64()
    }

    /// Returns the half that peers know.
    pub fn public(&self) -> Result<WireguardKey, InvalidWireguardKey> {
        WireguardKey::new(self.0.get_public().0)
    }

    pub(super) fn key(&self) -> Key {
        self.0.clone()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// This host's private keys by their public halves. Clones are the same ring.
#[derive(Clone, Default)]
pub struct Keyring(Arc<Mutex<HashMap<WireguardKey, PrivateKey>>>);

impl Keyring {
    /// Adds a key and returns its public half.
    pub fn add(&self, key: PrivateKey) -> Result<WireguardKey, InvalidWireguardKey> {
        let public = key.public()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(public, key);
        Ok(public)
    }

    pub(crate) fn get(&self, public: WireguardKey) -> Option<PrivateKey> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&public).cloned()
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(keys.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_gives_the_public_one_that_wg_computes_and_is_never_printed() {
        // `wg pubkey` of this private key.
        let private = "SGb+ojrRNDuMePufwtIYhXzA//k6wF3R21tEBgKlzlM=";
        let key = PrivateKey::from_base64(private).unwrap();
        assert_eq!(key.public().unwrap().to_string(), "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=");
        assert_eq!(key.to_base64(), private);
        let ring = Keyring::default();
        ring.add(key.clone()).unwrap();
        assert!(!format!("{key:?} {ring:?}").contains("SGb+"), "{key:?} {ring:?}");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for bad in ["", "SGb+", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", &"A".repeat(400)] {
            assert!(PrivateKey::from_base64(bad).is_err(), "{bad}");
        }
    }
}
