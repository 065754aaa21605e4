use flatnet_model::{BackendKind, GreConfig, GreKey, Vni, VxlanConfig};

use super::*;
use crate::fixture::{NODE, config, key, underlay, vxlan, wireguard};

fn gre(key: u32) -> BackendConfig {
    BackendConfig::Gre(GreConfig { key: GreKey::new(key), mtu: None })
}

fn foreign() -> BackendConfig {
    BackendConfig::Unsupported(BackendKind::from_name("udp"))
}

#[test]
fn a_backend_that_has_a_device_says_how_its_packets_look() {
    for backend in [vxlan(), wireguard(), gre(0), gre(7), BackendConfig::HostGw, foreign()] {
        for family in IpFamily::BOTH {
            let device = of(&backend).device(family);
            assert_eq!(device.is_some(), wire(&backend, family).is_some(), "{backend:?} {family}");
        }
    }
    assert!(encrypts(&wireguard()) && !encrypts(&vxlan()) && !encrypts(&BackendConfig::HostGw));
}

#[test]
fn tunnels_clash_by_their_identifier_whatever_else_differs() {
    let vni = |vni| BackendConfig::Vxlan(VxlanConfig { vni: Vni::new(vni).unwrap(), port: 4789, ..Default::default() });
    let code = |one: &BackendConfig, other: &BackendConfig| clash(one, other).map(|clash| clash.code);
    assert_eq!(code(&vxlan(), &vni(1)), Some(ProblemCode::VniConflict));
    assert_eq!(code(&vxlan(), &vni(2)), None);
    assert_eq!(code(&gre(7), &gre(7)), Some(ProblemCode::GreKeyConflict));
    assert_eq!(code(&gre(1), &vni(1)), None);
    assert_eq!(code(&wireguard(), &wireguard()), None, "theirs is the port");
    assert_eq!(code(&BackendConfig::HostGw, &BackendConfig::HostGw), None);
}

#[test]
fn a_backend_that_is_not_supported_is_refused_before_anything_is_built_or_published() {
    let name = NetworkName::default_network();
    let config = config(Some("10.100.0.0/16"), None, foreign());
    let refused = check(&name, &config, &underlay()).unwrap_err();
    assert_eq!(refused.code, ProblemCode::BackendUnsupported);
    assert_eq!(publication(NODE, Some(key(1)), &name, &config, &underlay()), Err(refused));
    assert!(devices(&config).is_empty());
}
