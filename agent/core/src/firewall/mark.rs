//! The one bit of a packet's mark that we use. It is only set on tunnel packets, by one chain for a later one on the
//! packet's way:
//!
//! * From `guard` to `judged`, at hook `input`. iptables has no set of peers to match, so the rule at the head of its
//!   `INPUT` lets in packets that carry the bit. Both ends clear it, so that no packet is let in because it came with
//!   the bit, and no packet inside the tunnel keeps it.
//! * From `forward` to `posing`. Only after the translation is it known whose source is translated.
//!
//! No route is looked up in between, so rules of policy routing never see it.

/// Bit 12. Of the 32 bits, Kubernetes has 14 and 15, CNI's portmap has 13, and Calico, Cilium, Weave and Tailscale take
/// theirs from 16 up (github.com/fwmark/registry). People who route by marks begin at 1.
const BIT: u32 = 0x1000;

/// Matches packets that carry the bit.
pub(super) fn is_set() -> String {
    format!("meta mark & {BIT:#x} == {BIT:#x}")
}

/// Sets the bit.
pub(super) fn set() -> String {
    format!("meta mark set meta mark | {BIT:#x}")
}

/// Clears the bit.
pub(super) fn clear() -> String {
    format!("meta mark set meta mark & {:#x}", !BIT)
}

/// Returns iptables' words for packets that carry the bit, as `iptables -S` prints them.
pub(super) fn iptables_match() -> String {
    format!("-m mark --mark {BIT:#x}/{BIT:#x}")
}
