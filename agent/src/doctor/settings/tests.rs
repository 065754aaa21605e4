use super::*;
use crate::doctor::Verdict;
use crate::doctor::fixture::Fixture;

#[test]
fn each_family_in_use_must_be_forwarded() {
    let mut fixture = Fixture::with(&[("/proc/sys/net/ipv4/ip_forward", "1\n")]);
    assert_eq!(forwarding(&fixture.host).verdict, Verdict::Ok);
    fixture.network().cidr6 = Some("fd00:100::/56".to_owned());
    let check = forwarding(&fixture.host);
    assert_eq!(
        (check.verdict, check.cause.as_str()),
        (Verdict::Failure, "net.ipv6.conf.all.forwarding is not readable")
    );
}

#[test]
fn the_larger_of_all_and_the_devices_rp_filter_decides() {
    let with = |all: &str, device: &str| {
        let files =
            [("/proc/sys/net/ipv4/conf/all/rp_filter", all), ("/proc/sys/net/ipv4/conf/flat.1/rp_filter", device)];
        reverse_path(&Fixture::with(&files).host)
    };
    assert_eq!(with("1", "0").verdict, Verdict::Warning);
    assert!(with("0", "1").cause.contains("flat.1"));
    assert_eq!(with("2", "1").verdict, Verdict::Ok, "loose wins: the value is the larger one");
    assert_eq!(with("0", "0").verdict, Verdict::Ok);
}

#[test]
fn a_table_that_was_full_is_said_and_permanent_entries_count_on_old_kernels_only() {
    let statistics = "entries  allocs table_fulls\n00000002 0001a9e9 0000000a\n00000002 00011f1e 00000001\n";
    let full = neighbours(&Fixture::with(&[("/proc/net/stat/arp_cache", statistics)]).host);
    assert!(full.verdict == Verdict::Failure && full.cause.contains("was full 11 times"), "{full:?}");
    let with = |release: &str, backend: &str| {
        let files = [("/proc/sys/net/ipv4/neigh/default/gc_thresh3", "4"), ("/proc/sys/kernel/osrelease", release)];
        let mut fixture = Fixture::with(&files);
        fixture.network().peers = vec![Default::default(); 4];
        fixture.network().backend = backend.to_owned();
        neighbours(&fixture.host).verdict
    };
    assert_eq!(with("6.1.0-13-amd64", "vxlan"), Verdict::Ok);
    assert_eq!(with("4.19.0", "vxlan"), Verdict::Warning);
    assert_eq!(with("6.1.0", "host-gw"), Verdict::Warning);
}
