//! The task that keeps the last view of every network on disk, so that an agent that starts while the store is away
//! knows its peers.

use std::sync::Arc;
use std::time::Duration;

use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::keys::NetworkKeys;
use flatnet_plane::snapshot;
use flatnet_plane::watch::Source;
use tokio::sync::watch;

use crate::files::state_dir::StateDir;
use crate::wiring::context::Context;
use crate::wiring::networks::{NetworkPort, NetworkSetup};
use crate::wiring::part::{Part, Stop};

/// The least time between two writes of one network. A host that crashes later than this after a change knows of the
/// change when it starts again without the store. Each write waits for the disk, so a joining fleet must not cause one
/// for every lease.
const NEXT_WRITE_AFTER: Duration = Duration::from_millis(500);
/// The most bytes a second written of one network, averaged over writes. 8,000 leases are about 3 MB, or 6 s apart.
const RATE: u32 = 512 * 1024;
/// The wait before the first write: start-up has more urgent things to do.
const FIRST_WRITE_AFTER: Duration = Duration::from_secs(1);

/// Makes the part that keeps the last view of one network.
pub fn part<P, K>(context: &Context<P, K>, network: &NetworkSetup, port: &NetworkPort) -> Part {
    let (sender, problems) = watch::channel(Vec::new());
    let writing = keep(Arc::clone(&context.setup.dir), network.keys.clone(), port.clone(), sender);
    Part::new("snapshot", Stop::Effect, writing).reporting(problems)
}

/// Writes after every change, for ever. A write that fails is reported in `problems` and tried again.
async fn keep(dir: Arc<StateDir>, keys: NetworkKeys, mut port: NetworkPort, problems: watch::Sender<Vec<Problem>>) {
    tokio::time::sleep(FIRST_WRITE_AFTER).await;
    loop {
        let mut spacing = NEXT_WRITE_AFTER;
        let bytes = {
            let view = port.view.borrow_and_update();
            // While a wiped store lacks the network's configuration, what is on disk is the proof that it had one. The
            // revision on disk is from before; the present one would be reached again by the next wiped store.
            let lost = view.suspect.as_ref().is_some_and(|suspect| suspect.kept_config);
            (view.source == Source::Store && !lost).then(|| snapshot::encode(&keys, &view))
        };
        if let Some(bytes) = bytes {
            spacing = spacing_after(bytes.len());
            let written = write(Arc::clone(&dir), keys.clone(), bytes).await;
            let written = Vec::from_iter(written);
            problems.send_if_modified(|problems| {
                let changed = *problems != written;
                *problems = written;
                changed
            });
        }
        tokio::time::sleep(spacing).await;
        let failed = !problems.borrow().is_empty();
        if !failed && port.view.changed().await.is_err() {
            return;
        }
    }
}

/// Returns the time after a write of `length` bytes before the next one may follow.
fn spacing_after(length: usize) -> Duration {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    NEXT_WRITE_AFTER.max(Duration::from_secs(1).saturating_mul(length) / RATE)
}

async fn write(dir: Arc<StateDir>, keys: NetworkKeys, bytes: Vec<u8>) -> Option<Problem> {
    let network = keys.network().clone();
    let result = tokio::task::spawn_blocking(move || dir.write_snapshot(keys.network(), &bytes)).await;
    let error = match result {
        Ok(Ok(())) => return None,
        Ok(Err(error)) => crate::report::chain(&error),
        Err(error) => error.to_string(),
    };
    Some(Problem::new(
        ProblemCode::SnapshotUnwritable,
        format!("the last view of network {network} cannot be kept on disk: {error}"),
        "free space in the state directory; without it an agent that starts while the store is away knows no peers",
        network,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_networks_are_written_soon_and_large_ones_seldom() {
        assert_eq!(spacing_after(600), NEXT_WRITE_AFTER);
        assert_eq!(spacing_after(3 * 1024 * 1024), Duration::from_secs(6));
        assert!(spacing_after(48 * 1024 * 1024) < Duration::from_secs(100));
    }
}
