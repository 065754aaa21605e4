//! A network's records, then their changes, with no gap between.

use flatnet_model::Revision;
use flatnet_model::keys::NetworkKeys;
use futures::stream::{self, BoxStream, Stream, StreamExt};

use super::contents::Fingerprint;
use crate::store::{KeyRange, RangeReply, Store, StoreError, WatchBatch};

/// A follower's position: the revision it has read up to, and the records it holds by then.
///
/// The revision alone says nothing: a store that was wiped or put back may have reached the same one by another
/// history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The revision up to which everything is known.
    pub revision: Revision,
    /// The fingerprint of all records there were by then.
    pub contents: Fingerprint,
}

/// One piece of news that a feed brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Everything under the network's prefix, as of one revision. It replaces what was known before.
    Snapshot(RangeReply),
    /// The other side held the same records by the position given. It goes on from there, and nothing was missed.
    Resumed,
    /// The changes since.
    Batch(WatchBatch),
}

/// Opens a feed on a store, beginning with a snapshot. Once a store's history is compacted, nobody can be asked what it
/// held by some earlier revision, and only that would show that its history leads on from there.
pub async fn open<S: Store>(
    store: &S,
    keys: &NetworkKeys,
) -> Result<impl Stream<Item = Result<News, StoreError>> + Send + Unpin + 'static, StoreError> {
    let range = KeyRange::prefix(&keys.all());
    let reply = store.range(&range).await?;
    let next = reply.revision + 1;
    // Boxed, so that the type says that nothing is borrowed from here.
    let changes: BoxStream<'static, _> = store.watch(&range, next).await?.boxed();
    Ok(stream::iter([Ok(News::Snapshot(reply))]).chain(changes.map(|batch| batch.map(News::Batch))))
}
