use flatnet_model::NetworkName;
use proptest::prelude::*;

use super::*;
use crate::flannel::decode_lease;

fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), "/coreos.com/network")
}

fn view() -> NetworkView {
    let mut view = NetworkView { source: Source::Store, config_created: 2, ..NetworkView::default() };
    let config = r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let decoded = decode_config(config.as_bytes()).unwrap().0;
    view.state.config = ConfigState::Valid(decoded.clone());
    (view.usable_config, view.config_value) = (Some(decoded), Some(config.into()));
    view.state.revision = 9;
    for subnet in 1..=3 {
        let kv = KeyValue {
            key: vec![],
            value: br#"{"PublicIP":"192.168.33.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"4e:f4:0c:52:b7:8d"},"Flatnet":{"Node":"00000000000000000000000000000001","Name":"n","Nonce":"00000000000000000000000000000002","Version":1}}"#.to_vec(),
            create_revision: subnet,
            mod_revision: subnet + 1,
            lease: Some(EtcdLease(subnet)),
        };
        let lease = decode_lease(format!("10.100.{subnet}.0-24").parse().unwrap(), &kv).unwrap();
        view.state.apply(Change::Lease(Box::new(lease)));
    }
    view
}

#[test]
fn a_view_reads_back_as_it_was_but_for_its_source() {
    let mut expected = view();
    let read = decode(&keys(), &encode(&keys(), &expected)).unwrap();
    expected.source = Source::Disk;
    assert_eq!(read, expected);
}

#[test]
fn what_was_kept_from_before_a_wipe_is_still_kept() {
    let mut suspect = view();
    let kept = BTreeSet::from(["10.100.2.0-24".parse().unwrap()]);
    suspect.suspect = Some(Suspect { reason: "went back".into(), kept, kept_config: false, sign: Sign::Revision });
    assert_eq!(decode(&keys(), &encode(&keys(), &suspect)).unwrap().suspect, suspect.suspect);
}

/// A node that is started takes what the store has. Leases that are only missing are kept by nodes that were there.
#[test]
fn what_is_only_missing_is_not_kept_over_a_restart() {
    let mut missing = view();
    let kept = BTreeSet::from(["10.100.2.0-24".parse().unwrap()]);
    missing.suspect = Some(Suspect { reason: "missing".into(), kept, kept_config: false, sign: Sign::Missing });
    assert_eq!(decode(&keys(), &encode(&keys(), &missing)).unwrap().suspect, None);
}

#[test]
fn another_version_another_network_and_a_torn_file_are_refused() {
    let bytes = encode(&keys(), &view());
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(decode(&keys(), text.replace("\"version\":1,\"prefix", "\"version\":2,\"prefix").as_bytes()).is_err());
    assert!(decode(&NetworkKeys::new(&"blue".parse().unwrap(), ""), &bytes).is_err());
    for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        assert!(decode(&keys(), &bytes[..cut]).is_err());
    }
}

#[test]
fn a_bad_lease_is_skipped_and_named() {
    let text = String::from_utf8(encode(&keys(), &view())).unwrap();
    let read = decode(
        &keys(),
        text.replacen("192.168.33.1", "127.0.0.1", 1).replacen("10.100.3.0-24", "../../x", 1).as_bytes(),
    )
    .unwrap();
    assert_eq!((read.state.leases.len(), read.state.rejected.len()), (1, 2));
}

proptest! {
    #[test]
    fn a_changed_byte_never_panics(at: prop::sample::Index, byte: u8) {
        let mut bytes = encode(&keys(), &view());
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(&keys(), &bytes);
    }
}
