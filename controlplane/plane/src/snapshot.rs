//! A view as bytes for the disk: pure functions; the agent does the file I/O.
//!
//! Leases are written as flannel's key and value, so that the store's strict decoder reads them back.

use std::collections::BTreeSet;

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::{Change, ConfigState};
use flatnet_model::{EtcdLease, Revision, SubnetKey};
use serde::{Deserialize, Serialize};

use crate::flannel::{decode_change, decode_config, encode_lease};
use crate::store::{KeyValue, WatchEvent};
use crate::watch::{NetworkView, Sign, Source, Suspect};

/// The version of the format; no other one is read.
const VERSION: u32 = 1;
/// The most bytes a snapshot may have: 20,000 leases of 600 bytes, four times over.
const LIMIT: usize = 48 * 1024 * 1024;

/// The reason why a snapshot cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot cannot be used: {0}")]
pub struct InvalidSnapshot(pub String);

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    /// The network's prefix, so that a file in the wrong place is not taken for another's.
    prefix: String,
    revision: Revision,
    config: Option<String>,
    config_created: Revision,
    leases: Vec<Record>,
    /// The reason why the store was suspect, if it was.
    suspect: Option<String>,
    /// True if that was because its revision went back.
    #[serde(default)]
    revision_went_back: bool,
}

#[derive(Serialize, Deserialize)]
struct Record {
    subnets: String,
    value: String,
    create_revision: Revision,
    mod_revision: Revision,
    etcd_lease: Option<i64>,
    /// True if the lease was kept from before a wipe.
    #[serde(default)]
    kept: bool,
}

/// Writes `view` as versioned JSON.
#[must_use]
pub fn encode(keys: &NetworkKeys, view: &NetworkView) -> Vec<u8> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // Leases that are only missing count as gone after a restart.
    let suspect = view.suspect.as_ref().filter(|suspect| suspect.sign > Sign::Missing);
    let kept = suspect.map(|suspect| &suspect.kept);
    let leases = view.state.leases.values().map(|lease| Record {
        subnets: lease.subnets.to_string(),
        value: text(&encode_lease(&lease.publication(), lease.owner.as_ref())),
        create_revision: lease.create_revision,
        mod_revision: lease.mod_revision,
        etcd_lease: lease.etcd_lease.map(|lease| lease.0),
        kept: kept.is_some_and(|kept| kept.contains(&lease.subnets)),
    });
    let file = File {
        version: VERSION,
        prefix: keys.all(),
        revision: view.state.revision,
        config: view.config_value.as_deref().map(text),
        config_created: view.config_created,
        leases: leases.collect(),
        suspect: suspect.map(|suspect| suspect.reason.clone()),
        revision_went_back: suspect.is_some_and(|suspect| suspect.sign == Sign::Revision),
    };
    // The value has only strings and numbers, so this cannot fail.
    serde_json::to_vec(&file).unwrap_or_default()
}

/// Reads a snapshot of the network of `keys`: a view with [`Source::Disk`]. Leases in it that cannot be read are
/// skipped and listed as rejected.
pub fn decode(keys: &NetworkKeys, bytes: &[u8]) -> Result<NetworkView, InvalidSnapshot> {
    if bytes.len() > LIMIT {
        return Err(InvalidSnapshot(format!("it has {} bytes, more than the {LIMIT} allowed", bytes.len())));
    }
    let file: File = serde_json::from_slice(bytes).map_err(|error| InvalidSnapshot(error.to_string()))?;
    if file.version != VERSION {
        return Err(InvalidSnapshot(format!("its version is {}, not {VERSION}", file.version)));
    }
    if file.prefix != keys.all() {
        let prefix = flatnet_model::text::excerpt(&file.prefix);
        return Err(InvalidSnapshot(format!("it is of {prefix}, not of {}", keys.all())));
    }
    let mut view = NetworkView { source: Source::Disk, config_created: file.config_created, ..NetworkView::default() };
    view.state.revision = file.revision;
    if let Some(value) = file.config {
        match decode_config(value.as_bytes()) {
            Ok((config, warnings)) => {
                view.warnings = warnings;
                view.usable_config = Some(config.clone());
                view.config_value = Some(value.into_bytes());
                view.state.config = ConfigState::Valid(config);
            }
            Err(error) => view.state.config = ConfigState::Invalid(error.to_string()),
        }
    }
    let mut kept = BTreeSet::new();
    for record in file.leases {
        if record.kept
            && let Ok(subnets) = record.subnets.parse::<SubnetKey>()
        {
            kept.insert(subnets);
        }
        if let Some(change @ (Change::Lease(_) | Change::Rejected { .. })) = decode_change(keys, &record.event(keys)) {
            view.state.apply(change);
        }
    }
    view.suspect = file.suspect.map(|reason| Suspect {
        reason,
        kept,
        kept_config: false,
        sign: if file.revision_went_back { Sign::Revision } else { Sign::Older },
    });
    Ok(view)
}

impl Record {
    fn event(self, keys: &NetworkKeys) -> WatchEvent {
        WatchEvent::Put(KeyValue {
            key: format!("{}{}", keys.subnets(), self.subnets).into_bytes(),
            value: self.value.into_bytes(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            lease: self.etcd_lease.filter(|id| *id != 0).map(EtcdLease),
        })
    }
}

#[cfg(test)]
mod tests;
