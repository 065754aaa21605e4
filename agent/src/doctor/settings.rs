//! Kernel settings that decide whether packets pass.

use flatnet_model::IpFamily;

use super::Check;
use super::host::Host;

/// Whether this host forwards.
pub(super) fn forwarding(host: &Host) -> Check {
    const NAME: &str = "ip-forward";
    let mut settings = Vec::new();
    // Without an agent it is not known which families are needed: IPv4 then.
    if host.uses(IpFamily::V4) || host.ranges().is_empty() {
        settings.push(("net/ipv4/ip_forward", "net.ipv4.ip_forward"));
    }
    if host.uses(IpFamily::V6) {
        settings.push(("net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"));
    }
    for (path, name) in &settings {
        let value = host.files.setting(path);
        if value.as_deref() != Some("1") {
            return Check::failure(
                NAME,
                format!("{name} is {}", value.as_deref().unwrap_or("not readable")),
                "a running agent sets it; if it does not stay, something else resets it: look in /etc/sysctl.d",
            );
        }
    }
    let names: Vec<&str> = settings.iter().map(|(_, name)| *name).collect();
    Check::ok(NAME, format!("{} is 1", names.join(" and ")))
}

/// Reverse path filtering: what counts is the larger of `all` and the device's own value.
pub(super) fn reverse_path(host: &Host) -> Check {
    const NAME: &str = "rp-filter";
    let value = |device: &str| -> u8 {
        let setting = host.files.setting(&format!("net/ipv4/conf/{device}/rp_filter"));
        setting.and_then(|value| value.parse().ok()).unwrap_or_default()
    };
    let tunnels = host.tunnels().map(|(name, ..)| name.as_str().to_owned());
    // Direct routes come in by the underlay's own interface.
    let direct = host.networks().iter().any(|network| network.backend == "host-gw");
    let defaults = host.facts.default_route.iter().filter(|_| direct).map(|(_, name)| name.as_str().to_owned());
    let all = value("all");
    let strict: Vec<String> = tunnels.chain(defaults).filter(|device| all.max(value(device)) == 1).collect();
    if strict.is_empty() {
        return Check::ok(NAME, "reverse path filtering is not strict where peers' packets come in");
    }
    Check::warning(
        NAME,
        format!(
            "reverse path filtering is strict on {} (the larger of net.ipv4.conf.all.rp_filter and the device's)",
            strict.join(", ")
        ),
        "packets that come back another way are dropped: sysctl net.ipv4.conf.all.rp_filter=2, or 0 and the devices' own",
    )
}

/// Neighbour tables. Our own entries are permanent, and the kernel has not counted those against its limits since 5.0;
/// containers' and, with direct routes, the peers' are ordinary ones.
pub(super) fn neighbours(host: &Host) -> Check {
    const NAME: &str = "neighbour-limits";
    const HINT: &str = "raise net.ipv4.neigh.default.gc_thresh1, 2 and 3 (ipv6 likewise) to 4096, 8192 and 16384";
    for (family, statistics) in [("ipv4", "arp_cache"), ("ipv6", "ndisc_cache")] {
        let text = host.files.read(format!("/proc/net/stat/{statistics}")).unwrap_or_default();
        let full = column(&text, "table_fulls");
        if full > 0 {
            return Check::failure(
                NAME,
                format!("the {family} neighbour table was full {full} times since boot"),
                HINT,
            );
        }
        let limit = host.files.setting(&format!("net/{family}/neigh/default/gc_thresh3"));
        let Some(limit) = limit.and_then(|limit| limit.parse::<u64>().ok()) else { continue };
        let release = host.files.setting("kernel/osrelease").unwrap_or_default();
        let counts_permanent =
            release.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major < 5);
        let ordinary = |backend: &str| backend == "host-gw" || counts_permanent;
        let networks = host.networks().iter().filter(|network| ordinary(&network.backend));
        let peers = networks.map(|network| network.peers.len()).sum::<usize>() as u64;
        if peers * 4 > limit * 3 {
            let cause = format!("{peers} peers are neighbours, and net.{family}.neigh.default.gc_thresh3 is {limit}");
            return Check::warning(NAME, cause, HINT);
        }
    }
    Check::ok(NAME, "neighbour tables were never full; our permanent entries do not count")
}

/// The sum of a column of `/proc/net/stat` over all processors; hexadecimal.
fn column(text: &str, name: &str) -> u64 {
    let mut lines = text.lines();
    let Some(at) = lines.next().and_then(|head| head.split_whitespace().position(|title| title == name)) else {
        return 0;
    };
    lines.filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(at)?, 16).ok()).sum()
}

#[cfg(test)]
mod tests;
