//! The check of who carries GRE packets.

use flatnet_core::object::{Datapath, LinkKind};

use super::Check;
use super::host::Host;

/// The file through which programs get tunnels of their own (Documentation/networking/tuntap.rst).
const TUN: &str = "/dev/net/tun";

/// Checks who carries GRE, where a network asks for it.
pub(super) fn carrier(host: &Host) -> Check {
    const NAME: &str = "gre";
    if !host.networks().iter().any(|network| network.backend == "gre") {
        return Check::ok(NAME, "no network is GRE's");
    }
    let kinds = host.ours.links.values().map(|link| &link.kind);
    let carriers = kinds.filter(|kind| matches!(kind, LinkKind::Gre(_) | LinkKind::Gre6(_))).map(LinkKind::datapath);
    match carriers.max() {
        None => Check::failure(
            NAME,
            "there is no tunnel device",
            "agent status says why; the kernel may lack it: modprobe ip_gre (IPv6: ip6_gre), or make /dev/net/tun usable",
        ),
        Some(Datapath::Kernel) => Check::ok(NAME, "the kernel carries it"),
        Some(Datapath::Userspace) if !host.files.exists(TUN) => Check::failure(
            NAME,
            format!("the agent carries it, but {TUN} is gone: it cannot do that again once it ends"),
            "modprobe tun; or modprobe ip_gre (IPv6: ip6_gre), and the kernel takes over",
        ),
        Some(Datapath::Userspace) => Check::warning(
            NAME,
            "the agent carries it: this kernel has no module",
            "slower, and it stands still while no agent runs: modprobe ip_gre (IPv6: ip6_gre), and the kernel takes over",
        ),
    }
}

#[cfg(test)]
mod tests {
    use flatnet_core::object::{GreLink, Link};
    use flatnet_model::{GreKey, IfName, Mtu};

    use super::*;
    use crate::doctor::Verdict;
    use crate::doctor::fixture::Fixture;

    #[test]
    fn who_carries_it_is_said_and_that_nobody_could_again() {
        let mut fixture = Fixture::with(&[(TUN, "")]);
        assert_eq!(carrier(&fixture.host).verdict, Verdict::Ok);
        fixture.network().backend = "gre".to_owned();
        assert_eq!(carrier(&fixture.host).verdict, Verdict::Failure, "no device");
        for (datapath, verdict) in [(Datapath::Kernel, Verdict::Ok), (Datapath::Userspace, Verdict::Warning)] {
            let kind = LinkKind::Gre(GreLink { key: GreKey::NONE, local: [192, 0, 2, 1].into(), datapath });
            let link = Link { kind, mtu: Mtu::new(1476).unwrap(), mac: None, up: true };
            fixture.host.ours.links.insert(IfName::new("flatgre0").unwrap(), link);
            assert_eq!(carrier(&fixture.host).verdict, verdict, "{datapath:?}");
        }
        let mut without = Fixture::with(&[]);
        without.network().backend = "gre".to_owned();
        without.host.ours = fixture.host.ours.clone();
        let check = carrier(&without.host);
        assert_eq!(check.verdict, Verdict::Failure, "{check:?}");
    }
}
