//! The kernel of this process's network namespace, as the agent and its commands open it.

use std::path::Path;

use flatnet_kernel::NetlinkKernel;
use flatnet_kernel::wireguard::Keyring;

use crate::report::{Exit, Failure};
use crate::state_dir::RULESET_MEMORY;

/// Opens it to be changed: in `run_dir` it remembers which ruleset is loaded; `keys` are those that WireGuard devices may be
/// given.
pub fn open(run_dir: &Path, keys: Keyring) -> Result<NetlinkKernel, Failure> {
    NetlinkKernel::with_keys(Some(run_dir.join(RULESET_MEMORY)), keys).map_err(|error| {
        Failure::new(Exit::Unsupported, "cannot open the kernel's netlink sockets")
            .hint("the agent needs AF_NETLINK sockets; a sandbox may forbid them")
            .caused_by(error)
    })
}

/// Opens it to be looked at only, without an agent's memory.
pub fn observing() -> std::io::Result<NetlinkKernel> {
    NetlinkKernel::new()
}
