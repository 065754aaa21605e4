//! The parsers of bytes that the kernel wrote, callable with any bytes.

use flatnet_core::object::{SetName, TunnelId};
use flatnet_model::{IpFamily, Vni};

use super::elements::{self, Change};
use super::held::Held;
use super::netfilter::Netfilter;
use super::table::Digest;
use super::wire::{Family, Writer};
use super::{drops, replica, sightings, table};
use crate::fuzzing::answers;

/// Reads `bytes` as nfnetlink's answers to everything that is asked of nf_tables, in the form that `answers` takes.
pub fn nfnetlink(bytes: &[u8]) {
    let ask = |question: &dyn Fn(&mut Netfilter)| {
        if let Ok((ours, _theirs)) = answers(bytes) {
            question(&mut Netfilter::over(ours));
        }
    };
    ask(&|netfilter| drop(table::generation(netfilter)));
    ask(&|netfilter| drop(table::digest(netfilter, Family::Inet, "flatnet")));
    ask(&|netfilter| drop(table::base_chains(netfilter, Family::V4, "filter")));
    ask(&|netfilter| drop(table::delete(netfilter, Family::Inet, "flatnet")));
    ask(&|netfilter| drop(drops::read(netfilter, "flatnet")));
    ask(&|netfilter| drop(sightings::read(netfilter, "flatnet")));
    // What was read is written again under another name.
    ask(&|netfilter| {
        let Ok(parts) = replica::read(netfilter, "flatnet") else { return };
        let mut writer = Writer::default();
        parts.write_sets(&mut writer, netfilter, "flatnet_held");
        parts.write_rules(&mut writer, netfilter, "flatnet_held", 0);
    });
    ask(&|netfilter| Held::default().copy(netfilter, Digest::new(), None));
    for family in IpFamily::BOTH {
        let tunnel = TunnelId::Vxlan(Vni::FLANNEL_DEFAULT);
        let set = SetName { tunnel, family, prefix_len: family.bits() / 4 * 3 };
        ask(&|netfilter| {
            let Ok(contents) = elements::read(netfilter, set) else { return };
            // What was read can be written, and a refusal of it can be understood.
            let changes: Vec<Change> =
                contents.sources.into_iter().map(|source| Change { create: true, source }).collect();
            ask(&|netfilter| drop(elements::apply(netfilter, "flatnet", &changes)));
        });
    }
}
