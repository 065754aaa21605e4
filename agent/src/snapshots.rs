//! Keeps the last view of every network on disk, so that an agent that starts while the store is away knows its peers.

use std::sync::Arc;
use std::time::Duration;

use flatnet_controlplane::snapshot;
use flatnet_controlplane::watch::Source;
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::keys::NetworkKeys;
use tokio::sync::watch;

use crate::networks::NetworkPort;
use crate::state_dir::StateDir;

/// Least time between two writes of one network: a joining fleet changes the view many times a second, 8,000 leases are
/// about 3 MB, and what a crash loses is read again from the store anyway.
const SPACING: Duration = Duration::from_secs(5);
/// Wait before the first write: start-up has more urgent things to do.
const FIRST: Duration = Duration::from_secs(1);

/// Writes after every change, for ever. A write that fails is said in `problem` and tried again.
pub async fn keep(
    dir: Arc<StateDir>,
    keys: NetworkKeys,
    mut port: NetworkPort,
    problem: watch::Sender<Option<Problem>>,
) {
    tokio::time::sleep(FIRST).await;
    loop {
        let bytes = {
            let view = port.view.borrow_and_update();
            (view.source == Source::Store).then(|| snapshot::encode(&keys, &view))
        };
        if let Some(bytes) = bytes {
            let written = write(Arc::clone(&dir), keys.clone(), bytes).await;
            problem.send_if_modified(|problem| {
                let changed = *problem != written;
                *problem = written;
                changed
            });
        }
        tokio::time::sleep(SPACING).await;
        let failed = problem.borrow().is_some();
        if !failed && port.view.changed().await.is_err() {
            return;
        }
    }
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
