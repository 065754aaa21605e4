//! Applies snapshots and events to a view. All functions are pure.

use std::collections::BTreeSet;

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::{Change, ConfigState, NetworkState};
use flatnet_model::{Lease, NodeId, SubnetKey};
use ipnet::IpNet;

use super::{NetworkView, Sign, Source, Suspect};
use crate::flannel::{decode_change, decode_config, lease_name, show_key};
use crate::store::{KeyValue, RangeReply, WatchBatch, WatchEvent};

/// Replaces the view's state by a snapshot of the network's prefix, attributes and all.
pub(super) fn snapshot(keys: &NetworkKeys, view: &mut NetworkView, reply: &RangeReply) {
    let config = reply.kvs.iter().find(|kv| kv.key == keys.config().as_bytes());
    let went_back = went_back(keys, view, reply, config);
    // A follower that was started meanwhile takes what it finds.
    let followed_before = view.source == Source::Store;
    let mut state = NetworkState { revision: reply.revision, ..NetworkState::default() };
    for kv in &reply.kvs {
        match decode_change(keys, &WatchEvent::Put(kv.clone())) {
            // The configuration is read below, with its warnings.
            None | Some(Change::Config(_)) => {}
            Some(change) => {
                if matches!(change, Change::Rejected { .. }) {
                    keep_readable(keys, &view.state, &mut state, &kv.key);
                }
                state.apply(change);
            }
        }
    }
    let before = std::mem::replace(&mut view.state, state);
    let known = view.suspect.take();
    view.source = Source::Store;
    view.rewinds += u64::from(went_back.is_some());
    // A configuration that was missing before, or never usable, was not lost and is not written back.
    let knows_config = before.config != ConfigState::Missing && view.config_value.is_some();
    let kept_config = config.is_none() && went_back.is_some() && knows_config;
    if kept_config {
        // A store that was wiped has no configuration: the one from before stays in the view.
        view.state.config = before.config.clone();
    } else {
        set_config(view, config);
    }
    let sure = went_back.is_some() || known.as_ref().is_some_and(|known| known.sign > Sign::Missing);
    let kept = match &known {
        _ if sure || followed_before => missing(&before, &view.state, |_| true),
        Some(known) => missing(&before, &view.state, |subnets| known.kept.contains(subnets)),
        None => return,
    };
    let (sign, reason) = match (went_back, known) {
        (Some((sign, reason)), known) => (known.map_or(sign, |known| known.sign.max(sign)), reason),
        (None, Some(known)) => (known.sign, known.reason),
        (None, None) => (Sign::Missing, "the store lacks leases that nobody was seen to give up".to_owned()),
    };
    for subnets in &kept {
        if let Some(lease) = before.leases.get(subnets) {
            view.state.leases.insert(*subnets, lease.clone());
        }
    }
    view.suspect = Some(Suspect { reason, kept, kept_config, sign });
    clear_if_settled(view);
}

/// Returns the sign that the store is not the one we knew, or has gone back; `None` if there is none.
fn went_back(
    keys: &NetworkKeys,
    view: &NetworkView,
    reply: &RangeReply,
    config: Option<&KeyValue>,
) -> Option<(Sign, String)> {
    if view.source == Source::None {
        return None;
    }
    if reply.revision < view.state.revision {
        let (before, now) = (view.state.revision, reply.revision);
        return Some((Sign::Revision, format!("the store's revision went back from {before} to {now}")));
    }
    let older = |reason: &str| Some((Sign::Older, reason.to_owned()));
    match config {
        None if view.config_created != 0 => return older("the network's configuration is gone"),
        Some(kv) if view.config_created != 0 && kv.create_revision != view.config_created => {
            return older("the network's configuration was made anew");
        }
        _ => {}
    }
    let is_older = reply.kvs.iter().any(|kv| match lease_name(keys, &kv.key) {
        Some(Ok(subnets)) => view.state.leases.get(&subnets).is_some_and(|known| kv.mod_revision < known.mod_revision),
        _ => false,
    });
    if is_older { older("a lease is older than it was") } else { None }
}

/// Keeps the last readable value of a lease whose value cannot be read any more.
fn keep_readable(keys: &NetworkKeys, before: &NetworkState, state: &mut NetworkState, key: &[u8]) {
    if let Some(Ok(subnets)) = lease_name(keys, key)
        && let Some(lease) = before.leases.get(&subnets)
    {
        state.leases.insert(subnets, lease.clone());
    }
}

/// Returns the leases from before that the new state lacks and nobody has taken or claimed again elsewhere.
fn missing(before: &NetworkState, now: &NetworkState, wanted: impl Fn(&SubnetKey) -> bool) -> BTreeSet<SubnetKey> {
    let owners: BTreeSet<NodeId> = now.leases.values().filter_map(node).collect();
    let mut held: Vec<IpNet> = now.leases.keys().flat_map(SubnetKey::iter).collect();
    held.sort_unstable();
    before
        .leases
        .iter()
        .filter(|(subnets, _)| !now.leases.contains_key(subnets) && wanted(subnets))
        .filter(|(_, lease)| node(lease).is_none_or(|node| !owners.contains(&node)))
        .filter(|(subnets, _)| !subnets.iter().any(|net| overlaps_sorted(&held, net)))
        .map(|(subnets, _)| *subnets)
        .collect()
}

fn node(lease: &Lease) -> Option<NodeId> {
    lease.owner.as_ref().map(|owner| owner.node)
}

/// Returns true if `net` overlaps one of `held`, sorted. Of two prefixes that overlap one contains the other. The
/// container sorts first, so it is enough to look at those inside `net` and at each prefix that could contain it.
fn overlaps_sorted(held: &[IpNet], net: IpNet) -> bool {
    let inside = held.partition_point(|other| *other < net);
    if held.get(inside).is_some_and(|other| net.contains(other)) {
        return true;
    }
    let mut wider = Some(net);
    while let Some(prefix) = wider {
        if held.binary_search(&prefix).is_ok() {
            return true;
        }
        wider = prefix.supernet();
    }
    false
}

/// Folds one batch of events in.
pub(super) fn batch(keys: &NetworkKeys, view: &mut NetworkView, batch: &WatchBatch) {
    for event in &batch.events {
        one(keys, view, event);
    }
    view.state.revision = view.state.revision.max(batch.revision);
    clear_if_settled(view);
}

fn one(keys: &NetworkKeys, view: &mut NetworkView, event: &WatchEvent) {
    let key = match event {
        WatchEvent::Put(kv) => &kv.key,
        WatchEvent::Delete { key, .. } => key,
    };
    match decode_change(keys, event) {
        None => {}
        Some(Change::Config(ConfigState::Missing)) => config_deleted(view),
        Some(Change::Config(_)) => {
            if let WatchEvent::Put(kv) = event {
                set_config(view, Some(kv));
                if let Some(suspect) = &mut view.suspect {
                    suspect.kept_config = false;
                }
            }
        }
        Some(Change::Lease(lease)) => {
            give_up_for(view, &lease);
            view.state.rejected.remove(&show_key(key));
            view.state.apply(Change::Lease(lease));
        }
        Some(Change::LeaseGone(subnets)) => {
            view.state.rejected.remove(&show_key(key));
            match &mut view.suspect {
                // Everything is being deleted together with the configuration, which is a wipe and not a departure.
                Some(suspect) if suspect.kept_config && view.state.leases.contains_key(&subnets) => {
                    suspect.kept.insert(subnets);
                }
                _ => view.state.apply(Change::LeaseGone(subnets)),
            }
        }
        Some(change @ (Change::Rejected { .. } | Change::RejectedGone { .. })) => view.state.apply(change),
    }
}

fn config_deleted(view: &mut NetworkView) {
    if view.config_value.is_none() {
        view.state.config = ConfigState::Missing;
        view.config_created = 0;
        return;
    }
    let reason = "the network's configuration was deleted".to_owned();
    let kept = view.suspect.take().map(|suspect| suspect.kept).unwrap_or_default();
    view.config_created = 0;
    view.suspect = Some(Suspect { reason, kept, kept_config: true, sign: Sign::Older });
}

fn set_config(view: &mut NetworkView, config: Option<&KeyValue>) {
    let Some(kv) = config else {
        view.state.config = ConfigState::Missing;
        view.warnings.clear();
        view.config_created = 0;
        return;
    };
    view.config_created = kv.create_revision;
    match decode_config(&kv.value) {
        Ok((config, warnings)) => {
            view.warnings = warnings;
            view.config_value = Some(kv.value.clone());
            view.usable_config = Some(config.clone());
            view.state.config = ConfigState::Valid(config);
        }
        Err(error) => view.state.config = ConfigState::Invalid(error.to_string()),
    }
}

/// Drops what was kept in the place of a lease that was claimed, or of its node.
fn give_up_for(view: &mut NetworkView, lease: &Lease) {
    let Some(suspect) = &mut view.suspect else { return };
    suspect.kept.remove(&lease.subnets);
    let owner = node(lease);
    let given_up: Vec<SubnetKey> = suspect
        .kept
        .iter()
        .filter(|kept| {
            let same_node = owner.is_some() && view.state.leases.get(kept).and_then(node) == owner;
            same_node || kept.iter().any(|a| lease.subnets.iter().any(|b| a.contains(&b) || b.contains(&a)))
        })
        .copied()
        .collect();
    for subnets in given_up {
        suspect.kept.remove(&subnets);
        view.state.leases.remove(&subnets);
    }
}

/// Trusts the store again if nothing is kept any more.
fn clear_if_settled(view: &mut NetworkView) {
    if view.suspect.as_ref().is_some_and(|suspect| suspect.kept.is_empty() && !suspect.kept_config) {
        view.suspect = None;
    }
}

/// Gives up everything that was kept.
pub(super) fn end_grace(view: &mut NetworkView) {
    let Some(suspect) = view.suspect.take() else { return };
    for subnets in &suspect.kept {
        view.state.leases.remove(subnets);
    }
    if suspect.kept_config {
        set_config(view, None);
    }
}
