//! A network's records, then their changes, with no gap between.

use flatnet_model::Revision;
use flatnet_model::keys::NetworkKeys;
use futures::stream::{self, BoxStream, Stream, StreamExt};

use super::contents::Fingerprint;
use crate::store::{KeyRange, RangeReply, Store, StoreError, WatchBatch};

/// How far a follower got, and what it holds by that.
///
/// The revision alone says nothing: a store that was wiped or put back may have reached the same one by another history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Everything up to this revision is known.
    pub revision: Revision,
    /// Of all records there were by then.
    pub contents: Fingerprint,
}

/// What a feed brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Everything under the network's prefix, as of one revision: what was known before is replaced by it.
    Snapshot(RangeReply),
    /// The other side held the same records by the position given; it goes on from there, and nothing was missed.
    Resumed,
    /// Changes since.
    Batch(WatchBatch),
}

/// Opens a feed on a store, beginning with a snapshot: what a store held by some earlier revision nobody can be asked once
/// its history is compacted, and only that would show that its history leads on from there.
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
