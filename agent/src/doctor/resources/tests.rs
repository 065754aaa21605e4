use flatnet_proto::agent::v1::Problem;

use super::*;
use crate::doctor::Verdict;
use crate::doctor::fixture::Fixture;

const RELEASE: (&str, &str) = ("/proc/sys/kernel/osrelease", "6.1.0-13-amd64\n");

#[test]
fn a_module_is_missing_only_if_there_is_a_list_without_it() {
    let with = |dep: &str| modules(&Fixture::with(&[RELEASE, ("/lib/modules/6.1.0-13-amd64/modules.dep", dep)]).host);
    assert_eq!(modules(&Fixture::with(&[RELEASE]).host).verdict, Verdict::Ok);
    assert_eq!(
        with("kernel/net/netfilter/nf_tables.ko: \nkernel/drivers/net/vxlan/vxlan.ko.xz: x\n").verdict,
        Verdict::Ok
    );
    let check = with("kernel/net/netfilter/nf_tables.ko:\n");
    assert_eq!((check.verdict, check.cause.as_str()), (Verdict::Failure, "the kernel 6.1.0-13-amd64 lacks vxlan"));
    let loaded = [
        RELEASE,
        ("/lib/modules/6.1.0-13-amd64/modules.dep", ""),
        ("/sys/module/vxlan/x", ""),
        ("/sys/module/nf_tables/x", ""),
    ];
    assert_eq!(modules(&Fixture::with(&loaded).host).verdict, Verdict::Ok);
}

#[test]
fn space_is_judged_by_bytes_and_by_inodes() {
    let verdict = |bytes, inodes| space("/var/lib/flatnet", bytes, inodes).verdict;
    assert_eq!(verdict(1 << 30, Some(1000)), Verdict::Ok);
    assert_eq!(verdict(1 << 30, None), Verdict::Ok);
    assert_eq!(verdict(1 << 20, Some(1000)), Verdict::Warning);
    assert_eq!(verdict(0, Some(1000)), Verdict::Failure);
    assert_eq!(verdict(1 << 30, Some(0)), Verdict::Failure);
}

#[test]
fn a_clock_that_was_never_set_and_one_past_the_leases_end_are_found() {
    let mut fixture = Fixture::with(&[]);
    fixture.network().lease_expires = Some("2027-01-15T08:00:10Z".to_owned());
    assert_eq!(clock(&fixture.host).verdict, Verdict::Ok);
    fixture.host.now += Duration::from_secs(86_400);
    assert!(clock(&fixture.host).cause.contains("the lease ended at 2027-01-15T08:00:10Z, 86390 s ago"));
    assert_eq!(clock(&fixture.host).verdict, Verdict::Failure);
    fixture.host.now = UNIX_EPOCH;
    assert!(clock(&fixture.host).cause.contains("1970-01-01"));
}

#[test]
fn the_clock_is_not_blamed_for_a_lease_that_the_store_does_not_renew() {
    let mut fixture = Fixture::with(&[]);
    fixture.network().lease_expires = Some("2027-01-15T08:00:10Z".to_owned());
    fixture.host.now += Duration::from_secs(86_400);
    for (code, message, verdict) in [
        ("store-refuses", "the store refuses keep-alive: authentication failed", Verdict::Warning),
        ("store-unreachable", "the store cannot be reached: connection refused", Verdict::Warning),
        // A wrong clock makes a certificate invalid.
        ("store-unreachable", "the store cannot be reached: invalid peer certificate: expired", Verdict::Failure),
        ("key-rejected", "a key cannot be read", Verdict::Failure),
    ] {
        let problem = Problem { code: code.to_owned(), message: message.to_owned(), ..Problem::default() };
        fixture.host.status.as_mut().unwrap().problems = vec![problem];
        let check = clock(&fixture.host);
        assert_eq!(check.verdict, verdict, "{code}: {}", check.cause);
        assert_eq!(check.cause.contains(code), verdict == Verdict::Warning, "{}", check.cause);
    }
}

#[test]
fn managers_that_run_must_have_been_told_to_keep_off() {
    let networkd = ("/run/systemd/netif/state", "");
    assert_eq!(managers(&Fixture::with(&[]).host).verdict, Verdict::Ok);
    assert_eq!(
        managers(&Fixture::with(&[networkd, ("/etc/systemd/networkd.conf", "#ManageForeignRoutes=no")]).host).verdict,
        Verdict::Warning
    );
    let told = (
        "/usr/lib/systemd/networkd.conf.d/flatnet.conf",
        include_str!("../../../packaging/systemd/networkd-flatnet.conf"),
    );
    assert_eq!(managers(&Fixture::with(&[networkd, told]).host).verdict, Verdict::Ok);
    let manager = ("/run/NetworkManager/x", "");
    assert_eq!(managers(&Fixture::with(&[manager]).host).verdict, Verdict::Warning);
    let told =
        ("/etc/NetworkManager/conf.d/flatnet.conf", include_str!("../../../packaging/NetworkManager/flatnet.conf"));
    assert_eq!(managers(&Fixture::with(&[manager, told]).host).verdict, Verdict::Ok);
}
