//! The store's addresses, as the resolver has them: the underlay is chosen by the way there.
//!
//! A name that cannot be resolved when the agent starts (at boot the resolver may come after it) is looked up again
//! until there is an answer; the loop then chooses the underlay anew. An answer is kept: a store that answers under
//! several addresses in turn must not move the underlay.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use flatnet_plane::endpoint::Endpoint;
use tokio::sync::{oneshot, watch};

/// The pause between two look-ups. It is short because a lease may be published as soon as the name is known, with the
/// wrong address until the underlay is chosen anew.
const LOOK_UP_EVERY: Duration = Duration::from_millis(500);

/// The pause between two look-ups of names that are known: as long as resolvers keep what they are told.
const LOOK_UP_KNOWN_EVERY: Duration = Duration::from_secs(60);

/// Returns the addresses of `endpoints` as far as they are known without asking: those that are given as addresses, and
/// `first`, which are the first endpoint's. With them the rules are at once the same as an earlier agent left, so
/// nothing has to be loaded anew.
pub fn known(endpoints: &[Endpoint], first: &[IpAddr]) -> Vec<SocketAddr> {
    let given =
        endpoints.iter().filter_map(|endpoint| Some(SocketAddr::new(endpoint.host.parse().ok()?, endpoint.port)));
    let port = endpoints.first().map(|endpoint| endpoint.port);
    let first = first.iter().filter_map(|address| Some(SocketAddr::new(*address, port?)));
    let mut known: Vec<SocketAddr> = given.chain(first).collect();
    known.sort_unstable();
    known.dedup();
    known
}

/// Keeps telling the addresses of all `endpoints`. An endpoint whose name cannot be resolved stays where it was. One
/// that has moved is told at both places until the next look: an address that it no longer has does no harm. Safe to
/// drop. Ends when nobody listens, or when there is no name among the endpoints.
pub async fn follow(endpoints: Vec<Endpoint>, told: watch::Sender<Vec<SocketAddr>>) {
    let mut known: Vec<Vec<SocketAddr>> = vec![Vec::new(); endpoints.len()];
    let is_name = |endpoint: &Endpoint| endpoint.host.parse::<IpAddr>().is_err();
    while !told.is_closed() {
        let mut all = Vec::new();
        for (endpoint, known) in std::iter::zip(&endpoints, &mut known) {
            let found = resolve(endpoint.clone()).await;
            let found: Vec<SocketAddr> = found.into_iter().map(|address| (address, endpoint.port).into()).collect();
            all.extend(known.iter().chain(&found).copied());
            if !found.is_empty() {
                *known = found;
            }
        }
        if known.iter().any(Vec::is_empty) {
            // The addresses from when the process started.
            all.extend(told.borrow().iter().copied());
        }
        all.sort_unstable();
        all.dedup();
        told.send_if_modified(|before| {
            let differs = *before != all;
            *before = all;
            differs
        });
        if !endpoints.iter().any(is_name) {
            return;
        }
        let pause = if known.iter().any(Vec::is_empty) { LOOK_UP_EVERY } else { LOOK_UP_KNOWN_EVERY };
        tokio::time::sleep(pause).await;
    }
}

/// Looks `endpoint` up until its addresses are known, and tells them. Safe to drop.
pub async fn look_up(endpoint: Endpoint, addresses: watch::Sender<Vec<IpAddr>>) {
    loop {
        let found = resolve(endpoint.clone()).await;
        if !found.is_empty() {
            tracing::info!(endpoint = endpoint.url, addresses = ?found, "the store's name is known now");
            // A loop that has ended needs no answer.
            let _ = addresses.send(found);
            return;
        }
        tokio::time::sleep(LOOK_UP_EVERY).await;
    }
}

/// Returns the addresses of `endpoint` as of now; empty if there is no answer. It uses a thread of its own: a resolver
/// that hangs must not hold up the end of the process, as it would on one of the runtime's threads.
pub async fn resolve(endpoint: Endpoint) -> Vec<IpAddr> {
    let (sender, answer) = oneshot::channel();
    let lookup = move || drop(sender.send(endpoint.resolve()));
    match std::thread::Builder::new().name("resolve".to_owned()).spawn(lookup) {
        Ok(_detached) => answer.await.unwrap_or_default(),
        Err(_no_thread) => Vec::new(),
    }
}
