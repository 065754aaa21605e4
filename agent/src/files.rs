//! Everything that the agent keeps on disk, each file with its format: what is there is listed in [`state_dir`].

pub mod namespace_lock;
pub mod network_record;
pub mod state_dir;
pub mod sysctl_record;
pub mod underlay_record;
pub mod wireguard_key;
