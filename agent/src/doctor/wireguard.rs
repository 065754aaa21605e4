//! Checks of WireGuard: the key file, and who carries the packets.

use flatnet_core::object::Datapath;

use super::Check;
use super::host::Host;

/// The permissions of group and others.
const OTHERS: u32 = 0o077;

/// Checks that the key is there and belongs to its owner alone.
pub(super) fn key(host: &Host) -> Check {
    const NAME: &str = "wireguard-key";
    let used = host.networks().iter().any(|network| network.backend == "wireguard");
    let path = host.places.state_dir.join("wireguard.key");
    let Some(mode) = host.files.mode(&path) else {
        return match used {
            true => Check::failure(
                NAME,
                format!("{} is not there, though a network is WireGuard's", path.display()),
                "the running agent still has it: `agent rotate-key` writes a new one, before the next start makes one",
            ),
            false => Check::ok(NAME, "no network needs one yet"),
        };
    };
    if mode & OTHERS != 0 {
        return Check::failure(
            NAME,
            format!("{} can be used by others (mode {:04o})", path.display(), mode & 0o7777),
            "if somebody may have read it: agent rotate-key; in any case: chmod 600",
        );
    }
    Check::ok(NAME, "only its owner can read it")
}

/// Checks who encrypts, where a network asks for it.
pub(super) fn carrier(host: &Host) -> Check {
    const NAME: &str = "wireguard";
    let used = host.networks().iter().any(|network| network.backend == "wireguard");
    match (host.facts.features.wireguard, used) {
        (_, false) => Check::ok(NAME, "no network is WireGuard's"),
        (Some(Datapath::Kernel), true) => Check::ok(NAME, "the kernel carries it"),
        (Some(Datapath::Userspace), true) => Check::warning(
            NAME,
            "the agent carries it: this kernel has no module",
            "slower, and sessions end with the agent: modprobe wireguard (Linux 5.6 or newer has it), and the kernel takes over",
        ),
        (None, true) => Check::failure(
            NAME,
            "neither the kernel nor the agent can carry it",
            "modprobe wireguard; or make /dev/net/tun usable",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;
    use crate::doctor::fixture::Fixture;

    const FILE: &str = "/var/lib/flatnet/wireguard.key";

    #[test]
    fn a_key_that_others_can_read_or_that_is_gone_is_a_failure() {
        let fixture = Fixture::with(&[(FILE, "x")]);
        for (mode, verdict) in [(0o600, Verdict::Ok), (0o640, Verdict::Failure), (0o644, Verdict::Failure)] {
            fixture.chmod(FILE, mode);
            assert_eq!(key(&fixture.host).verdict, verdict, "{mode:o}");
        }
        let mut without = Fixture::with(&[]);
        assert_eq!(key(&without.host).verdict, Verdict::Ok, "no network needs one");
        without.network().backend = "wireguard".to_owned();
        assert_eq!(key(&without.host).verdict, Verdict::Failure);
    }

    #[test]
    fn who_carries_it_is_said() {
        let mut fixture = Fixture::with(&[]);
        assert_eq!(carrier(&fixture.host).verdict, Verdict::Ok);
        fixture.network().backend = "wireguard".to_owned();
        for (who, verdict) in [
            (Some(Datapath::Kernel), Verdict::Ok),
            (Some(Datapath::Userspace), Verdict::Warning),
            (None, Verdict::Failure),
        ] {
            fixture.host.facts.features.wireguard = who;
            assert_eq!(carrier(&fixture.host).verdict, verdict, "{who:?}");
        }
    }
}
