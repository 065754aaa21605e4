//! The checks that every backend makes before it believes what a peer published: stored values are hostile input.

use std::net::IpAddr;

use flatnet_model::{IpFamily, Lease};

use super::NetworkCtx;
use crate::outcome::{Paths, PeerDecision, PeerOutcome};
use crate::problem::{Problem, ProblemCode};

/// The refusal of a peer, which is then not programmed, with the problem to report if there is one.
#[derive(Debug)]
pub(super) struct Refusal {
    kind: RefusalKind,
    /// The reason, in one clause.
    reason: String,
    /// Code and hint of the problem; `None`: nothing is wrong.
    problem: Option<(ProblemCode, &'static str)>,
}

#[derive(Clone, Copy, Debug)]
enum RefusalKind {
    Ignored,
    Failed,
    Unreachable,
}

impl Refusal {
    /// Refuses a peer that is left alone; nothing is wrong.
    pub(super) fn ignored(reason: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Ignored, reason: reason.into(), problem: None }
    }

    /// Refuses a peer whose published data cannot be used.
    pub(super) fn failed(code: ProblemCode, reason: impl Into<String>, hint: &'static str) -> Self {
        Self { kind: RefusalKind::Failed, reason: reason.into(), problem: Some((code, hint)) }
    }

    /// Refuses a peer that is right in itself, but out of this backend's reach.
    pub(super) fn unreachable(code: ProblemCode, reason: impl Into<String>, hint: &'static str) -> Self {
        Self { kind: RefusalKind::Unreachable, reason: reason.into(), problem: Some((code, hint)) }
    }

    /// Returns the problem to report about `peer`.
    fn problem(&self, ctx: &NetworkCtx<'_>, peer: &Lease) -> Option<Problem> {
        let (code, hint) = self.problem?;
        let owner = peer.owner.as_ref().map(|owner| format!(" ({})", owner.name)).unwrap_or_default();
        let message = format!("network {}: peer {}{owner}: {}", ctx.name, peer.subnets, self.reason);
        Some(Problem::new(code, message, hint, peer.subnets))
    }

    fn into_decision(self) -> PeerDecision {
        let reason = self.reason;
        match self.kind {
            RefusalKind::Ignored => PeerDecision::Ignored { reason },
            RefusalKind::Failed => PeerDecision::Failed { reason },
            RefusalKind::Unreachable => PeerDecision::Unreachable { reason },
        }
    }
}

/// The most problems about single peers that one network reports. A store full of garbage must not fill the log.
const PROBLEM_LIMIT: usize = 50;

/// Decides about every peer of the network. `decide` returns the paths to one peer and adds what they need, after
/// [`admit`] let the peer in. A peer whose families fail differently is reported by the first that does.
pub(super) fn decide_all(
    ctx: &NetworkCtx<'_>,
    problems: &mut Vec<Problem>,
    mut decide: impl FnMut(&Lease) -> Result<Paths, Refusal>,
) -> Vec<PeerOutcome> {
    let mut found = Vec::new();
    let mut outcomes: Vec<PeerOutcome> = ctx
        .peers
        .iter()
        .map(|peer| {
            let decision = match decide(peer) {
                Ok(paths) => PeerDecision::Programmed(paths),
                Err(refusal) => {
                    found.extend(refusal.problem(ctx, peer));
                    refusal.into_decision()
                }
            };
            PeerOutcome { subnets: peer.subnets, decision }
        })
        .collect();
    if !outcomes.is_sorted_by_key(|outcome| outcome.subnets) {
        outcomes.sort_by_key(|outcome| outcome.subnets);
    }
    found.sort();
    let more = found.len().saturating_sub(PROBLEM_LIMIT);
    found.truncate(PROBLEM_LIMIT);
    problems.append(&mut found);
    if more > 0 {
        problems.push(Problem::new(
            ProblemCode::PeersRefused,
            format!("network {}: {more} more peers have problems", ctx.name),
            "agent peers lists them all",
            ctx.name,
        ));
    }
    outcomes
}

/// Returns the peer's underlay address of `family`, if it can be one.
pub(super) fn admit(ctx: &NetworkCtx<'_>, peer: &Lease, family: IpFamily) -> Result<IpAddr, Refusal> {
    let kind = ctx.config.backend.kind();
    if peer.backend != kind {
        return Err(Refusal::ignored(format!("its backend is {}, this network's is {kind}", peer.backend)));
    }
    let field = if family == IpFamily::V4 { "PublicIP" } else { "PublicIPv6" };
    let Some(address) = peer.public_address(family) else {
        return Err(Refusal::failed(
            ProblemCode::PeerNoAddress,
            format!("it publishes no {field}"),
            "restart the peer's agent; a permanent peer: agent network peer add",
        ));
    };
    if !is_host(address) {
        return Err(Refusal::failed(
            ProblemCode::PeerBadAddress,
            format!("its {field} {address} cannot be a host's"),
            "correct --public-ip on the peer",
        ));
    }
    if [ctx.underlay.address(family), ctx.underlay.public_address(family)].contains(&Some(address)) {
        return Err(Refusal::failed(
            ProblemCode::DuplicatePublicIp,
            format!("its {field} {address} is this host's own"),
            "two hosts publish one address: give each its own with --public-ip or --iface; a left-over lease of this \
             host goes away by itself",
        ));
    }
    if let Some(overlay) = ctx.overlays.iter().find(|overlay| overlay.contains(&address)) {
        return Err(Refusal::failed(
            ProblemCode::PeerInsideOverlay,
            format!("its {field} {address} is inside the network {overlay}"),
            "a tunnel cannot run through itself: correct --iface or --public-ip on the peer",
        ));
    }
    Ok(address)
}

/// Returns true if a single host somewhere on an underlay can have `address`.
fn is_host(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let special_v4 = matches!(address, IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] == 0);
    // A mapped address would be sent as IPv4, and a link-local one needs an interface to mean anything.
    let special_v6 = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() || v6.is_unicast_link_local());
    !(special || special_v4 || special_v6)
}

/// Returns true if `address` can be reached without a router: it is inside a prefix of the underlay device, and is not
/// that prefix's own network or broadcast address.
pub(super) fn on_link(ctx: &NetworkCtx<'_>, address: IpAddr) -> bool {
    let Some(interface) = ctx.facts.interface(ctx.underlay.device) else { return false };
    interface.addresses.iter().any(|prefix| {
        let family = IpFamily::of(prefix.addr());
        let ends = family == IpFamily::V4
            && prefix.prefix_len() < 31
            && (address == prefix.network() || address == prefix.broadcast());
        prefix.prefix_len() < family.bits() && prefix.contains(&address) && !ends
    })
}
