//! The peers to start a handshake with, after peers of WireGuard devices were set: what they send would wait for one.

use std::collections::HashSet;

use flatnet_model::{IfName, WireguardKey};
use ipnet::IpNet;

use crate::object::{Datapath, WireguardPeer, WireguardPeerKey};
use crate::op::{Action, Object, Op};

/// The peers that a device had at some time and that nobody deleted on purpose.
#[derive(Clone, Debug, Default)]
pub struct MetPeers(HashSet<WireguardPeerKey>);

impl MetPeers {
    /// Records peers that a look found.
    pub fn found(&mut self, keys: impl IntoIterator<Item = WireguardPeerKey>) {
        self.0.extend(keys);
    }

    /// Records an operation that was carried out.
    pub fn carried_out(&mut self, op: &Op) {
        match (&op.object, op.action) {
            (Object::WireguardPeer(key, _), Action::Delete) => drop(self.0.remove(key)),
            (Object::WireguardPeer(key, _), _) => drop(self.0.insert(*key)),
            _ => {}
        }
    }

    /// Returns the peers that `ops` are to make although they were there before: somebody took them or their device
    /// away, and their sessions with them.
    #[must_use]
    pub fn lost(&self, ops: &[&Op]) -> HashSet<WireguardPeerKey> {
        let made = ops.iter().filter(|op| op.action == Action::Create);
        made.filter_map(|op| key(op)).filter(|key| self.0.contains(key)).collect()
    }
}

/// The peers of one device to start a handshake with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshakes<'a> {
    /// The device.
    pub device: IfName,
    /// The carrier of its packets.
    pub datapath: Datapath,
    /// The peers that are spoken to at once, whether they know us yet or not.
    pub eager: Vec<(WireguardKey, &'a WireguardPeer)>,
    /// The peers that are spoken to as the protocol does.
    pub usual: Vec<(WireguardKey, &'a WireguardPeer)>,
}

/// Returns the handshakes to start after `run`, operations on peers that are part of the plan `all`. `lost` is what
/// [`MetPeers::lost`] said before it, and `datapath` returns the carrier of a device.
///
/// A peer that has another key than before, or was reached past this tunnel, is spoken to at once, since what it sends
/// waits for the handshake. So is every peer that this process has set anew: the process knows no session with it any
/// more, while the peer may go on using one. Of the kernel's peers, only those that are lost are spoken to. For a first
/// handshake with a peer that does not know us yet it would be too early, and the next try comes 5 s later
/// (`REKEY_TIMEOUT`, WireGuard §6.1).
#[must_use]
pub fn handshakes<'a>(
    run: &[&'a Op],
    all: &[Op],
    lost: &HashSet<WireguardPeerKey>,
    datapath: impl Fn(IfName) -> Option<Datapath>,
) -> Vec<Handshakes<'a>> {
    let in_use: HashSet<IpNet> = all.iter().flat_map(in_use).collect();
    let device = |op: &Op| key(op).map(|key| key.device);
    let mut found = Vec::new();
    for run in run.chunk_by(|a, b| device(a) == device(b)) {
        let Some(device) = run.first().and_then(|op| device(op)) else { continue };
        let Some(datapath) = datapath(device) else { continue };
        let set = run.iter().filter(|op| op.action != Action::Delete).filter_map(|op| match &op.object {
            Object::WireguardPeer(key, peer) => Some((op.action, key.public_key, peer)),
            _ => None,
        });
        let (replaced, other): (Vec<_>, Vec<_>) = set.partition(|(action, _, peer)| {
            *action == Action::Create && peer.allowed.iter().any(|net| in_use.contains(net))
        });
        let peers = |of: Vec<(Action, WireguardKey, &'a WireguardPeer)>| {
            of.into_iter().map(|(_, key, peer)| (key, peer)).collect::<Vec<_>>()
        };
        let (mut eager, mut usual) = (peers(replaced), peers(other));
        if datapath == Datapath::Kernel {
            let is_lost = |public_key| lost.contains(&WireguardPeerKey { device, public_key });
            eager.extend(usual.drain(..).filter(|(public_key, _)| is_lost(*public_key)));
        }
        if !(eager.is_empty() && usual.is_empty()) {
            found.push(Handshakes { device, datapath, eager, usual });
        }
    }
    found
}

fn key(op: &Op) -> Option<WireguardPeerKey> {
    if let Object::WireguardPeer(key, _) = &op.object { Some(*key) } else { None }
}

/// Returns the subnets whose packets went another way until now: to a peer that goes, or by a route that changes.
fn in_use(op: &Op) -> Vec<IpNet> {
    match (&op.object, op.action) {
        (Object::WireguardPeer(_, peer), Action::Delete) => peer.allowed.clone(),
        (Object::Route(key, _), Action::Change | Action::Replace) => vec![key.destination],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::device;
    use crate::object::{Route, RouteKey, RouteVia};

    fn op(action: Action, number: u8, net: &str) -> Op {
        let public_key = WireguardKey::new([number; 32]).unwrap();
        let key = WireguardPeerKey { device: device("flatwg.51820"), public_key };
        let peer = WireguardPeer { endpoint: None, keepalive_secs: 0, psk: None, allowed: vec![net.parse().unwrap()] };
        Op { action, object: Object::WireguardPeer(key, peer) }
    }

    /// The numbers of the peers that are spoken to at once and as usual.
    fn spoken_to(all: &[Op], met: &MetPeers, datapath: Datapath) -> (Vec<u8>, Vec<u8>) {
        let run: Vec<&Op> = all.iter().filter(|op| key(op).is_some()).collect();
        let found = handshakes(&run, all, &met.lost(&run), |_| Some(datapath));
        let numbers = |of: &dyn Fn(&Handshakes<'_>) -> Vec<u8>| found.iter().flat_map(of).collect();
        let first = |peers: &[(WireguardKey, &WireguardPeer)]| peers.iter().map(|(key, _)| key.bytes()[0]).collect();
        (numbers(&|of| first(&of.eager)), numbers(&|of| first(&of.usual)))
    }

    #[test]
    fn a_new_peer_is_left_to_the_kernel_and_one_that_got_another_key_is_not() {
        let new = [op(Action::Create, 1, "10.0.1.0/24"), op(Action::Create, 2, "10.0.2.0/24")];
        let met = MetPeers::default();
        assert_eq!(spoken_to(&new, &met, Datapath::Kernel), (vec![], vec![]));
        assert_eq!(spoken_to(&new, &met, Datapath::Userspace), (vec![], vec![1, 2]));
        let rotated = [op(Action::Delete, 3, "10.0.1.0/24"), op(Action::Create, 1, "10.0.1.0/24")];
        assert_eq!(spoken_to(&rotated, &met, Datapath::Kernel), (vec![1], vec![]));
        assert_eq!(spoken_to(&rotated, &met, Datapath::Userspace), (vec![1], vec![]));
    }

    #[test]
    fn a_peer_that_was_reached_past_the_tunnel_is_spoken_to_at_once() {
        let key = RouteKey::to_peer("10.0.1.0/24".parse().unwrap());
        let moved = Object::Route(key, Route { via: RouteVia::Unreachable, source: None });
        let all = [op(Action::Create, 1, "10.0.1.0/24"), Op { action: Action::Change, object: moved }];
        assert_eq!(spoken_to(&all, &MetPeers::default(), Datapath::Kernel), (vec![1], vec![]));
    }

    #[test]
    fn a_peer_that_somebody_took_away_is_spoken_to_and_one_that_was_deleted_on_purpose_is_new() {
        let made = op(Action::Create, 1, "10.0.1.0/24");
        let mut met = MetPeers::default();
        met.carried_out(&made);
        assert_eq!(spoken_to(std::slice::from_ref(&made), &met, Datapath::Kernel), (vec![1], vec![]));
        met.carried_out(&op(Action::Delete, 1, "10.0.1.0/24"));
        assert_eq!(spoken_to(std::slice::from_ref(&made), &met, Datapath::Kernel), (vec![], vec![]));
    }
}
