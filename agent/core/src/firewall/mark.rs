//! The one bit of a packet's mark that we use, each time between two chains of one hook's way and for tunnel packets only.
//!
//! * From `guard` to `judged`, at hook `input`: iptables has no set of peers to match, so the rule at the head of its `INPUT`
//!   lets in what carries the bit. Both ends clear it, so that neither what came with it is let in nor what is inside the
//!   tunnel keeps it.
//! * From `forward` to `posing`: whose source is translated is known only after the translation.
//!
//! No route is looked up in between, so rules of policy routing never see it.

/// Bit 12. Of the 32, Kubernetes has 14 and 15, CNI's portmap 13, and Calico, Cilium, Weave and Tailscale take theirs from 16
/// up (github.com/fwmark/registry); people who route by marks begin at 1.
const BIT: u32 = 0x1000;

/// Matches what carries it.
pub(super) fn is_set() -> String {
    format!("meta mark & {BIT:#x} == {BIT:#x}")
}

/// Sets it.
pub(super) fn set() -> String {
    format!("meta mark set meta mark | {BIT:#x}")
}

/// Clears it.
pub(super) fn clear() -> String {
    format!("meta mark set meta mark & {:#x}", !BIT)
}

/// iptables' words for what carries it, as `iptables -S` prints them.
pub(super) fn iptables_match() -> String {
    format!("-m mark --mark {BIT:#x}/{BIT:#x}")
}
