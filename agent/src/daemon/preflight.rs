//! The checks of what this process needs before it may try. What is missing is reported at once, with what to do,
//! rather than as a failed operation later.

use std::path::{Path, PathBuf};

use crate::report::{Exit, Failure};

/// `CAP_NET_ADMIN` (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// Checks capabilities and programs.
pub fn check() -> Result<(), Failure> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !has_net_admin(&status) {
        return Err(Failure::new(Exit::Unsupported, "this process lacks CAP_NET_ADMIN").hint(
            "run it as root, or give it that capability (systemd: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW)",
        ));
    }
    if find_program("nft").is_none() {
        return Err(Failure::new(Exit::Unsupported, "the program nft is not installed")
            .hint("it programs the firewall that guards the tunnels: apt-get install nftables"));
    }
    Ok(())
}

fn has_net_admin(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits & (1 << CAP_NET_ADMIN) != 0)
}

/// Returns the program `name`, looked for where the kernel's part of this program will look for it.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = flatnet_kernel::search_path();
    std::env::split_paths(&path).map(|dir: PathBuf| dir.join(name)).find(|program| is_executable(program))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_read_from_the_effective_set() {
        assert!(has_net_admin("CapPrm:\t0000000000000000\nCapEff:\t0000000000001000\n"));
        assert!(!has_net_admin("CapPrm:\t0000000000001000\nCapEff:\t0000000000000000\n"));
        assert!(!has_net_admin(""));
    }
}
