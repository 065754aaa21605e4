//! The parsers of what iptables and the kernel wrote, callable with any bytes.

use flatnet_core::object::IptablesChain;

use super::legacy;
use super::listing::Listing;

/// Reads `text` as the output of `iptables -S`, and writes rules of ours back.
pub fn iptables_listing(text: &str) {
    let listing = Listing::parse(text);
    for chain in [IptablesChain::Input, IptablesChain::Forward] {
        let _ = listing.can_drop(chain);
    }
    let specifications = listing.specifications();
    let ours = listing.ours();
    assert!(specifications.len() <= ours.len(), "a rule that is not there: {specifications:?}");
}

/// Reads `bytes` as the entries of the older ip_tables.
pub fn legacy_table(bytes: &[u8]) {
    legacy::read_any(bytes);
}
