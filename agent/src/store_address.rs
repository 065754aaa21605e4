//! Where the store is, as the resolver has it: the underlay is chosen by the way there.
//!
//! A name that cannot be resolved when the agent starts (at boot the resolver may come after it) is looked up again until
//! there is an answer; the loop then chooses the underlay anew. An answer is kept: a store that answers under several
//! addresses in turn must not move the underlay.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::cli::store_args::Endpoint;

/// Between two look-ups. Short: as soon as the name is known a lease may be published, with the wrong address until the
/// underlay was chosen anew.
const AGAIN: Duration = Duration::from_millis(500);

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
        tokio::time::sleep(AGAIN).await;
    }
}

/// The addresses of `endpoint` as of now; empty if there is no answer. A thread of its own, since a resolver that hangs must
/// not hold up the end of the process, as one of the runtime's would.
pub async fn resolve(endpoint: Endpoint) -> Vec<IpAddr> {
    let (sender, answer) = oneshot::channel();
    let lookup = move || drop(sender.send(endpoint.resolve()));
    match std::thread::Builder::new().name("resolve".to_owned()).spawn(lookup) {
        Ok(_detached) => answer.await.unwrap_or_default(),
        Err(_no_thread) => Vec::new(),
    }
}
