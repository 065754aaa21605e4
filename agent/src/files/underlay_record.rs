//! The record, kept across restarts, of what carried the tunnels last and where the store was. An agent may start while
//! the underlay lacks an address family, or while the store's name cannot be resolved. It then goes on with what the
//! previous agent had, as that one would have done itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use flatnet_core::underlay::Underlay;
use flatnet_model::{IfName, Mtu};
use serde::{Deserialize, Serialize};

use crate::files::state_dir::StateDir;
use crate::report::chain;

/// The version of the format; no other one is read.
const VERSION: u32 = 1;

/// The record, in the state directory. The loop owns it and writes it when it has changed.
#[derive(Clone, Debug)]
pub struct UnderlayRecord {
    dir: Arc<StateDir>,
    underlay: Option<Underlay>,
    store: Vec<IpAddr>,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    device: String,
    mtu: u32,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    public_v4: Option<Ipv4Addr>,
    public_v6: Option<Ipv6Addr>,
    store: Vec<IpAddr>,
}

impl UnderlayRecord {
    /// Opens what earlier runs kept. A file that cannot be read counts as empty.
    #[must_use]
    pub fn open(dir: Arc<StateDir>) -> Self {
        let bytes = dir.read_underlay().unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "the last underlay cannot be read");
            None
        });
        let known = bytes.as_deref().and_then(decode);
        let (underlay, store) = known.map_or_else(Default::default, |(underlay, store)| (Some(underlay), store));
        Self { dir, underlay, store }
    }

    /// Returns the underlay that carried the tunnels last.
    #[must_use]
    pub fn last(&self) -> Option<&Underlay> {
        self.underlay.as_ref()
    }

    /// Returns the addresses that the store's first endpoint had; empty if they were never known.
    #[must_use]
    pub fn store(&self) -> &[IpAddr] {
        &self.store
    }

    /// Writes down what carries the tunnels now, if it has changed. An unknown place of the store (`store` empty) does
    /// not replace a known one.
    pub fn keep(&mut self, underlay: &Underlay, store: &[IpAddr]) {
        let store = if store.is_empty() { &self.store } else { store };
        if self.underlay.as_ref() == Some(underlay) && self.store == store {
            return;
        }
        let store = store.to_vec();
        match self.dir.write_underlay(&encode(underlay, &store)) {
            Ok(()) => (self.underlay, self.store) = (Some(underlay.clone()), store),
            // The next pass tries again.
            Err(error) => tracing::warn!(error = chain(&error), "what carries the tunnels cannot be kept on disk"),
        }
    }
}

fn encode(underlay: &Underlay, store: &[IpAddr]) -> Vec<u8> {
    let file = File {
        version: VERSION,
        device: underlay.device.to_string(),
        mtu: underlay.mtu.get(),
        v4: underlay.v4,
        v6: underlay.v6,
        public_v4: underlay.public_v4,
        public_v6: underlay.public_v6,
        store: store.to_vec(),
    };
    // The file has only strings and numbers: this cannot fail.
    serde_json::to_vec(&file).unwrap_or_default()
}

fn decode(bytes: &[u8]) -> Option<(Underlay, Vec<IpAddr>)> {
    let file: File = serde_json::from_slice(bytes).ok().filter(|file: &File| file.version == VERSION)?;
    let underlay = Underlay {
        device: IfName::new(&file.device).ok()?,
        mtu: Mtu::new(file.mtu).ok()?,
        v4: file.v4,
        v6: file.v6,
        public_v4: file.public_v4,
        public_v6: file.public_v6,
    };
    Some((underlay, file.store))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn underlay() -> Underlay {
        Underlay {
            device: IfName::new("eth0").unwrap(),
            mtu: Mtu::new(1500).unwrap(),
            v4: Some([192, 0, 2, 1].into()),
            v6: Some("2001:db8::1".parse().unwrap()),
            public_v4: Some([198, 51, 100, 1].into()),
            public_v6: None,
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_garbage_counts_as_nothing() {
        let store = vec!["192.0.2.9".parse().unwrap()];
        assert_eq!(decode(&encode(&underlay(), &store)), Some((underlay(), store)));
        for garbage in ["", "{}", "[1]", r#"{"version":1,"device":"../x","mtu":1500,"store":[]}"#] {
            assert_eq!(decode(garbage.as_bytes()), None, "{garbage}");
        }
    }

    #[test]
    fn a_place_of_the_store_that_is_not_known_now_does_not_replace_one_that_was() {
        let base = std::env::temp_dir().join(format!("flatnet-underlay-record-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        let dir = Arc::new(StateDir::open(&base.join("state"), &base.join("run")).unwrap());
        let store: [IpAddr; 1] = ["192.0.2.9".parse().unwrap()];
        let mut record = UnderlayRecord::open(Arc::clone(&dir));
        assert_eq!((record.last(), record.store()), (None, &[][..]));
        record.keep(&underlay(), &store);
        record.keep(&Underlay { v6: None, ..underlay() }, &[]);
        let again = UnderlayRecord::open(dir);
        assert_eq!((again.last().unwrap().v6, again.store()), (None, &store[..]));
        std::fs::remove_dir_all(base).unwrap();
    }
}
