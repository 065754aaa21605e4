//! Checks of what the agent needs of this host: kernel modules, space for its files, a clock, and managers that keep
//! their hands off.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flatnet_core::problem::ProblemCode;

use super::Check;
use super::host::Host;

/// The space in bytes below which the snapshot of a large network (8,000 peers: 4 MiB) may not be written.
const LITTLE_SPACE: u64 = 16 * 1024 * 1024;
/// The space in bytes below which nothing is written.
const NO_SPACE: u64 = 256 * 1024;
/// The time 2025-01-01: no clock that was ever set is before it. TLS certificates are judged by the clock.
const LONG_AGO: Duration = Duration::from_secs(1_735_689_600);

/// Checks that VXLAN and nftables are built in, loaded, or there to be loaded.
pub(super) fn modules(host: &Host) -> Check {
    const NAME: &str = "modules";
    let release = host.files.setting("kernel/osrelease").unwrap_or_default();
    let lists = ["/lib/modules", "/usr/lib/modules"].into_iter().flat_map(|directory| {
        ["modules.builtin", "modules.dep"].map(|list| host.files.read(format!("{directory}/{release}/{list}")))
    });
    let lists: Vec<String> = lists.flatten().collect();
    let missing: Vec<&str> = ["vxlan", "nf_tables"]
        .into_iter()
        .filter(|module| {
            let loaded = host.files.exists(format!("/sys/module/{module}"));
            let file = format!("/{module}.ko");
            // Without a list nothing is known, and a kernel without modules has all it will ever have.
            !loaded && !lists.is_empty() && !lists.iter().any(|list| list.contains(&file))
        })
        .collect();
    if missing.is_empty() {
        return Check::ok(NAME, "vxlan and nf_tables are there, as far as can be seen");
    }
    Check::failure(
        NAME,
        format!("the kernel {release} lacks {}", missing.join(" and ")),
        "install the modules of the running kernel (Debian: linux-image, Ubuntu: linux-modules-extra), or reboot after an upgrade",
    )
}

/// Checks the space for state.
pub(super) fn disk(host: &Host) -> Check {
    const NAME: &str = "disk";
    let directory = &host.places.state_dir;
    let there = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    match nix::sys::statvfs::statvfs(there) {
        Ok(found) => {
            let inodes = if found.files() == 0 { None } else { Some(found.files_available()) };
            space(&directory.display().to_string(), found.blocks_available() * found.fragment_size(), inodes)
        }
        Err(error) => Check::warning(NAME, format!("{}: {error}", there.display()), "name the agent's --state-dir"),
    }
}

/// Checks the space found. `inodes`: `None` where the file system does not count them.
fn space(directory: &str, bytes: u64, inodes: Option<u64>) -> Check {
    const NAME: &str = "disk";
    const HINT: &str = "free space: without it a restart while the store is away starts from an old view";
    match inodes {
        Some(inodes @ 0..=3) => Check::failure(NAME, format!("{directory}: {inodes} files can still be made"), HINT),
        _ if bytes < NO_SPACE => Check::failure(NAME, format!("{directory}: {} KiB are free", bytes / 1024), HINT),
        _ if bytes < LITTLE_SPACE => Check::warning(NAME, format!("{directory}: {} KiB are free", bytes / 1024), HINT),
        _ => Check::ok(NAME, format!("{directory} has room")),
    }
}

/// Checks the clock. Leases run by the store's own clock, so a wrong one here loses none. It makes TLS fail and
/// misleads people.
pub(super) fn clock(host: &Host) -> Check {
    const NAME: &str = "clock";
    const HINT: &str = "set it: timedatectl set-ntp true. Leases run by the store's clock and are safe; TLS certificates are judged by this one";
    if host.now.duration_since(UNIX_EPOCH).is_ok_and(|since| since < LONG_AGO) {
        let shown = humantime::format_rfc3339_seconds(host.now);
        return Check::failure(NAME, format!("this host's clock says {shown}"), HINT);
    }
    for network in host.networks() {
        let expires = network.lease_expires.as_deref().and_then(|text| humantime::parse_rfc3339(text).ok());
        let passed: Option<(SystemTime, Duration)> =
            expires.and_then(|expires| Some((expires, host.now.duration_since(expires).ok()?)));
        if let Some((expires, since)) = passed {
            let shown = humantime::format_rfc3339_seconds(expires);
            if let Some(reason) = unrenewed(host) {
                let cause =
                    format!("network {}: the lease ended at {shown}, as the agent says: {reason}", network.name);
                return Check::warning(NAME, cause, "nothing speaks against this clock; see agent-problem");
            }
            return Check::failure(
                NAME,
                format!(
                    "network {}: the lease ended at {shown}, {} s ago by this clock",
                    network.name,
                    since.as_secs()
                ),
                "either the clock was set forward (restart the agent to have the time right), or the store has not renewed the lease: agent status",
            );
        }
    }
    Check::ok(NAME, "the clock is plausible and before every lease's end")
}

/// Returns the code of a problem that the agent itself reports, that keeps its leases from being renewed, and that no
/// wrong clock brings about. A wrong clock makes certificates too old or too new, and nothing else.
fn unrenewed(host: &Host) -> Option<&str> {
    let codes = [ProblemCode::StoreUnreachable, ProblemCode::StoreRefuses];
    let problems = host.status.iter().flat_map(|status| &status.problems);
    let mut explain = problems.filter(|problem| {
        let is_known = codes.iter().any(|known| known.as_str() == problem.code);
        is_known && !problem.message.contains("certificate")
    });
    explain.next().map(|problem| problem.code.as_str())
}

/// Checks systemd-networkd and NetworkManager, where they run.
pub(super) fn managers(host: &Host) -> Check {
    const NAME: &str = "network-managers";
    let says = |directories: &[&str], file: &str, word: &str| {
        let texts =
            directories.iter().flat_map(|directory| host.files.read_all(directory)).chain(host.files.read(file));
        let in_force =
            |text: String| text.lines().any(|line| !line.trim_start().starts_with('#') && line.contains(word));
        texts.into_iter().any(in_force)
    };
    let networkd = [
        "/etc/systemd/networkd.conf.d",
        "/run/systemd/networkd.conf.d",
        "/usr/local/lib/systemd/networkd.conf.d",
        "/usr/lib/systemd/networkd.conf.d",
    ];
    if host.files.exists("/run/systemd/netif/state")
        && !says(&networkd, "/etc/systemd/networkd.conf", "ManageForeignRoutes=no")
    {
        return Check::warning(
            NAME,
            "systemd-networkd removes routes it did not make whenever it starts",
            "install /usr/lib/systemd/networkd.conf.d/flatnet.conf and 05-flatnet.network, as the package does",
        );
    }
    let manager = ["/etc/NetworkManager/conf.d", "/usr/lib/NetworkManager/conf.d"];
    if host.files.exists("/run/NetworkManager")
        && !says(&manager, "/etc/NetworkManager/NetworkManager.conf", "interface-name:fl")
    {
        return Check::warning(
            NAME,
            "NetworkManager may take our devices for its own",
            "install /etc/NetworkManager/conf.d/flatnet.conf with unmanaged-devices+=interface-name:fl*, as the package does",
        );
    }
    Check::ok(NAME, "no network manager is after our devices and routes")
}

#[cfg(test)]
mod tests;
