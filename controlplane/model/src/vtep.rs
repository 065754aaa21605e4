//! The Ethernet addresses of VXLAN's tunnel endpoints.

use crate::{IpFamily, Mac, NodeId, Vni};

/// Returns the Ethernet address of `node`'s device for `vni` over an underlay of `family`. It is the same after every
/// restart, so that peers' entries stay right. Each device has another one, since one host has several.
///
/// It is FNV-1a (64 bits) over the node id (16 bytes, big endian), the VNI (4 bytes, big endian) and the family (4 or
/// 6), its bits spread by MurmurHash3's finaliser, the low 48 taken. Leases in stores hold the result: never change it.
#[must_use]
pub fn vtep_mac(node: NodeId, vni: Vni, family: IpFamily) -> Mac {
    /// FNV-1a's offset basis and prime for 64 bits (RFC 9923).
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let family = match family {
        IpFamily::V4 => 4,
        IpFamily::V6 => 6,
    };
    let bytes = node.bits().to_be_bytes().into_iter().chain(vni.get().to_be_bytes()).chain([family]);
    let mut hash = bytes.fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let [_, _, a, b, c, d, e, f] = (hash ^ (hash >> 33)).to_be_bytes();
    Mac::local([a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::new(0xa);

    #[test]
    fn a_vtep_mac_never_changes() {
        // Leases in stores hold these addresses. If this fails, every restarted agent would cut itself off until its
        // peers follow.
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
}
