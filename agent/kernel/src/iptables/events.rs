//! Wakes when a table of the older ip_tables changed, which nobody reports. Those of iptables-nft are nf_tables' to
//! tell.

use std::time::Duration;

use flatnet_model::IpFamily;
use futures::Stream;
use tokio::time::{MissedTickBehavior, interval};

use super::legacy::{Fingerprint, fingerprint};
use crate::Wake;

/// The interval at which the older tables are polled: half of the second in which drift is to be repaired.
const LEGACY_POLL_EVERY: Duration = Duration::from_millis(500);

type Fingerprints = [Option<Fingerprint>; 2];

/// Opens the stream of wakes. This must be called within a tokio runtime, in the network namespace that is meant.
pub(super) fn events() -> impl Stream<Item = Wake> + Send + 'static {
    let mut poll = interval(LEGACY_POLL_EVERY);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    futures::stream::unfold((poll, fingerprints()), |(mut poll, last)| async move {
        loop {
            poll.tick().await;
            let now = fingerprints();
            if now != last {
                return Some((Wake::Firewall, (poll, now)));
            }
        }
    })
}

/// Returns the fingerprints. A table that cannot be read now counts as none: reading it again tells.
fn fingerprints() -> Fingerprints {
    IpFamily::BOTH.map(|family| fingerprint(family).unwrap_or_default())
}
