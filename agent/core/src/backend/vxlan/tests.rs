use super::*;
use crate::fixture::NODE;

#[test]
fn a_vtep_mac_never_changes() {
    // What leases in stores hold: if this fails, every restarted agent would cut itself off until its peers follow.
    let macs = [(1, IpFamily::V4), (1, IpFamily::V6), (2, IpFamily::V4)]
        .map(|(vni, family)| vtep_mac(NODE, Vni::new(vni).unwrap(), family).to_string());
    assert_eq!(macs, ["6a:56:e4:0a:ca:da", "ea:4d:f0:0a:b9:cc", "b2:9d:bc:ca:a7:7e"]);
}

#[test]
fn every_device_of_every_node_has_an_address_of_its_own() {
    let mut seen = std::collections::BTreeSet::new();
    for node in 0..5_000_u128 {
        for family in IpFamily::BOTH {
            for vni in [1, 2, Vni::MAX] {
                let mac = vtep_mac(NodeId::new(node << 100), Vni::new(vni).unwrap(), family);
                assert!(mac.is_unicast() && mac.octets()[0] & 2 == 2, "{mac}");
                assert!(seen.insert(mac), "{mac} twice");
            }
        }
    }
}

#[test]
fn the_overhead_counts_every_header_up_to_the_inner_packet() {
    let vxlan = Vxlan(VxlanConfig::default());
    assert_eq!(vxlan.overhead(IpFamily::V4), Overhead(50));
    assert_eq!(vxlan.overhead(IpFamily::V6), Overhead(70));
}

#[test]
fn the_largest_vni_still_makes_a_name_the_kernel_takes() {
    let vni = Vni::new(Vni::MAX).unwrap();
    assert_eq!(device_name(vni, IpFamily::V4).unwrap().as_str(), "flat.16777215");
    assert_eq!(device_name(vni, IpFamily::V6).unwrap().as_str(), "flat6.16777215");
}
