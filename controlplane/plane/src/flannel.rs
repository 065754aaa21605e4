//! flannel's JSON, exactly: what flanneld writes we read, and what we write it reads.
//!
//! Every value is hostile input: bounded, strictly parsed, and named by its shortened key when it is bad. Field names
//! are read in any case, as Go's `encoding/json` does; unknown fields are ignored, and kept where a value is rewritten.

mod config;
mod fields;
mod lease;

pub use config::{ConfigWarning, InvalidConfig, decode_config, decode_in_force, encode_config};
pub use lease::{InvalidLease, decode_change, decode_lease, encode_lease};
pub(crate) use lease::{lease_name, show_key};
