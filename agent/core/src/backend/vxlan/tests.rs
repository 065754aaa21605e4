use super::*;

#[test]
fn the_overhead_counts_every_header_up_to_the_inner_packet() {
    let vxlan = VxlanConfig::default();
    assert_eq!(vxlan.overhead(IpFamily::V4), Overhead(50));
    assert_eq!(vxlan.overhead(IpFamily::V6), Overhead(70));
}

#[test]
fn the_largest_vni_still_makes_a_name_the_kernel_takes() {
    let vni = Vni::new(Vni::MAX).unwrap();
    assert_eq!(device_name(vni, IpFamily::V4).unwrap().as_str(), "flat.16777215");
    assert_eq!(device_name(vni, IpFamily::V6).unwrap().as_str(), "flat6.16777215");
}
