use flatnet_model::Mtu;

use super::*;
use crate::doctor::Verdict;
use crate::doctor::fixture::Fixture;

#[test]
fn flanneld_s_device_is_named_as_such_and_not_as_a_clash() {
    let mut fixture = Fixture::with(&[]);
    assert_eq!(flannel(&fixture.host).verdict, Verdict::Ok);
    fixture.device("flannel.1", "vxlan VNI 1 port 8472");
    assert!(flannel(&fixture.host).cause.contains("flannel.1 (vxlan VNI 1 port 8472)"));
    assert_eq!(clashes(&fixture.host).verdict, Verdict::Ok);
}

#[test]
fn a_foreign_device_with_our_vni_and_port_clashes_and_with_the_port_alone_is_suspicious() {
    let with = |what: &str| {
        let mut fixture = Fixture::with(&[]);
        fixture.device("vx9", what);
        clashes(&fixture.host)
    };
    assert_eq!(with("vxlan VNI 1 port 8472").verdict, Verdict::Failure);
    assert_eq!(with("vxlan VNI 7 port 8472").verdict, Verdict::Warning);
    assert_eq!(with("vxlan VNI 1 port 4789").verdict, Verdict::Ok);
    assert_eq!(with("bridge").verdict, Verdict::Ok);
}

#[test]
fn a_tunnel_that_does_not_fit_its_underlay_and_an_env_file_that_says_otherwise_are_found() {
    let mut fixture =
        Fixture::with(&[("/run/flatnet/subnet.env", "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_MTU=1450\n")]);
    assert_eq!(mtu(&fixture.host).verdict, Verdict::Ok);
    fixture.network().mtu = 1400;
    assert!(mtu(&fixture.host).cause.contains("/run/flatnet/subnet.env says MTU 1450, and network default has 1400"));
    fixture.host.facts.interfaces[0].mtu = Mtu::new(1499).ok();
    assert!(mtu(&fixture.host).cause.contains("flat.1 has MTU 1450, and eth1, which carries it, 1499"));
}
