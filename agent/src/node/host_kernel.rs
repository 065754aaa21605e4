//! The kernel of this process's network namespace, as the agent and its commands open it.

use std::path::Path;

use flatnet_kernel::NetlinkKernel;
use flatnet_kernel::wireguard::Keyring;

use crate::files::state_dir::RULESET_MEMORY;
use crate::report::{Exit, Failure};

/// Opens the kernel to change it. In `run_dir` the agent remembers which ruleset is loaded; `keys` are those that
/// WireGuard devices may be given.
pub fn open(run_dir: &Path, keys: Keyring) -> Result<NetlinkKernel, Failure> {
    NetlinkKernel::with_keys(Some(run_dir.join(RULESET_MEMORY)), keys).map_err(|error| {
        Failure::new(Exit::Unsupported, "cannot open the kernel's netlink sockets")
            .hint("the agent needs AF_NETLINK sockets; a sandbox may forbid them")
            .caused_by(error)
    })
}

/// Opens the kernel only to look at it, without an agent's memory.
pub fn observing() -> std::io::Result<NetlinkKernel> {
    NetlinkKernel::new()
}
