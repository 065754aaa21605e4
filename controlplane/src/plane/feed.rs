//! A network's records, then their changes, with no gap between.

use flatnet_model::keys::NetworkKeys;
use flatnet_model::{Revision, SubnetKey};
use futures::stream::{self, BoxStream, Stream, StreamExt};

use crate::store::{KeyRange, RangeReply, Store, StoreError, WatchBatch};

/// How far a follower got, and enough of what it saw to tell whether a store is still the one it saw it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Everything up to this revision is known.
    pub revision: Revision,
    /// Revision at which the network's configuration was created; 0: there was none.
    pub config_created: Revision,
    /// The lease last changed, with the revisions of its creation and that change.
    pub newest: Option<(SubnetKey, Revision, Revision)>,
}

/// What a feed brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Everything under the network's prefix, as of one revision: what was known before is replaced by it.
    Snapshot(RangeReply),
    /// The position given is where it goes on: nothing was missed.
    Resumed,
    /// Changes since.
    Batch(WatchBatch),
}

/// Opens a feed on a store.
pub async fn open<S: Store>(
    store: &S,
    keys: &NetworkKeys,
    position: Option<Position>,
) -> Result<impl Stream<Item = Result<News, StoreError>> + Send + Unpin + 'static, StoreError> {
    let range = KeyRange::prefix(&keys.all());
    let (first, next) = match position {
        Some(position) if leads_on(store, keys, &position).await? => (News::Resumed, position.revision + 1),
        _ => {
            let reply = store.range(&range).await?;
            let next = reply.revision + 1;
            (News::Snapshot(reply), next)
        }
    };
    // Boxed, so that the type says that nothing is borrowed from here.
    let changes: BoxStream<'static, _> = store.watch(&range, next).await?.boxed();
    Ok(stream::iter([Ok(first)]).chain(changes.map(|batch| batch.map(News::Batch))))
}

/// Whether the store is still the one of `position`, so that its history leads on from there. When in doubt it is not: a
/// snapshot is always right.
pub async fn leads_on<S: Store>(store: &S, keys: &NetworkKeys, position: &Position) -> Result<bool, StoreError> {
    let config = store.range(&KeyRange::key(&keys.config())).await?;
    let created = config.kvs.first().map_or(0, |kv| kv.create_revision);
    if config.revision < position.revision || created != position.config_created {
        return Ok(false);
    }
    // Another history may have reached the same numbers; that it has the same last change too is not to be expected.
    let Some((subnets, created, modified)) = position.newest else { return Ok(true) };
    let found = store.range(&KeyRange::key(&keys.lease(&subnets))).await?.kvs.into_iter().next();
    Ok(found.is_some_and(|kv| (kv.create_revision, kv.mod_revision) == (created, modified)))
}
