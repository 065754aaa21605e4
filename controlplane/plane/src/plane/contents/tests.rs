use flatnet_model::EtcdLease;
use flatnet_model::NetworkName;
use proptest::prelude::*;

use super::*;

fn keys(prefix: &str) -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), prefix)
}

fn kv(keys: &NetworkKeys, key: u8, value: u8, revision: i64) -> KeyValue {
    KeyValue {
        key: format!("{}{key}", keys.subnets()).into_bytes(),
        value: vec![value],
        create_revision: 1,
        mod_revision: revision,
        lease: Some(EtcdLease(7)),
    }
}

fn of(keys: &NetworkKeys, records: &[KeyValue]) -> Fingerprint {
    let mut contents = Contents::new(keys);
    contents.replace(records);
    contents.fingerprint()
}

#[test]
fn whatever_a_record_says_counts_and_where_the_network_lives_does_not() {
    let keys = keys("/coreos.com/network");
    let one = kv(&keys, 1, 1, 5);
    let changed = [
        KeyValue { key: kv(&keys, 2, 1, 5).key, ..one.clone() },
        KeyValue { value: vec![1, 1], ..one.clone() },
        KeyValue { create_revision: 2, ..one.clone() },
        KeyValue { mod_revision: 6, ..one.clone() },
        KeyValue { lease: None, ..one.clone() },
        KeyValue { lease: Some(EtcdLease(8)), ..one.clone() },
    ];
    let mut seen: Vec<Fingerprint> = changed.iter().map(|kv| of(&keys, std::slice::from_ref(kv))).collect();
    seen.extend([of(&keys, std::slice::from_ref(&one)), of(&keys, &[]), of(&keys, &[one.clone(), changed[0].clone()])]);
    for (index, fingerprint) in seen.iter().enumerate() {
        assert!(!seen[..index].contains(fingerprint), "{index}");
    }
    let elsewhere = self::keys("/elsewhere");
    assert_eq!(of(&elsewhere, &[kv(&elsewhere, 1, 1, 5)]), of(&keys, &[one]));
}

proptest! {
    #[test]
    fn changes_lead_to_what_a_snapshot_of_the_result_says(steps in prop::collection::vec((0_u8..6, 0_u8..4), 0..40)) {
        let keys = keys("/coreos.com/network");
        let mut contents = Contents::new(&keys);
        let mut records = std::collections::BTreeMap::new();
        for (revision, (key, value)) in (1..).zip(steps) {
            let kv = kv(&keys, key, value, revision);
            if value == 0 {
                contents.apply(&WatchEvent::Delete { key: kv.key.clone(), revision });
                records.remove(&kv.key);
            } else {
                contents.apply(&WatchEvent::Put(kv.clone()));
                records.insert(kv.key.clone(), kv);
            }
        }
        let records: Vec<KeyValue> = records.into_values().collect();
        prop_assert_eq!(contents.fingerprint(), of(&keys, &records));
    }
}
