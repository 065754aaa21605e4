//! A node's watch of one network.

use std::pin::Pin;
use std::sync::Arc;

use flatnet_model::NodeId;
use flatnet_model::keys::NetworkKeys;
use flatnet_proto::controlplane::v1 as proto;
use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tonic::{Code, Status};

use super::NodeService;
use crate::server::caller::NodeCaller;
use crate::server::hub::{FIRST_READ, Hub, Watcher, snapshot_parts};
use crate::server::registry::{self, Registry};
use crate::server::watches::Place;
use crate::store::{KeyRange, Store, StoreError, WatchEvent};
use crate::wire::{self, refusal};

/// Until it breaks, or the node may not any more.
pub(super) type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::WatchReply, Status>> + Send>>;

impl<S: Store> NodeService<S> {
    pub(super) async fn do_watch(
        &self,
        caller: &NodeCaller,
        message: &proto::WatchRequest,
    ) -> Result<WatchStream, Status> {
        let keys = self.keys(&message.network)?;
        let position = message.position.as_ref().map(wire::read_position);
        // That the store answers now, and not only its old watch: a snapshot must not be older than what was seen.
        let reply = self.store().range(&KeyRange::key(&keys.config())).await.map_err(|error| refusal::store(&error))?;
        if let Some(kv) = reply.kvs.first() {
            self.context.witness.saw(keys.network(), &kv.value, reply.revision);
        }
        let place = self.context.watches.take(caller.node, keys.network())?;
        let source = if reply.kvs.is_empty() && self.context.hubs.followed(&keys).is_none() {
            self.nothing_yet(&keys).await?
        } else {
            None
        };
        let source = match source {
            Some(waiting) => waiting,
            None => {
                let hub = self.hub(&keys)?;
                if let Some(position) = &position
                    && reply.revision >= position.revision
                    && !hub.ready(position.revision, FIRST_READ).await
                {
                    let kind = proto::refusal::Kind::StoreUnavailable.into();
                    let refusal = proto::Refusal { kind, ..proto::Refusal::default() };
                    return Err(refusal::status(Code::Unavailable, "this replica is behind; try again", refusal));
                }
                Source::Hub(hub.watch(position.as_ref()))
            }
        };
        let watching = Watching {
            source,
            _place: place,
            registry: Arc::clone(&self.context.registry),
            stopping: self.context.stopping.subscribe(),
            node: caller.node,
            key_hash: caller.key_hash.clone(),
        };
        Ok(Box::pin(futures::stream::unfold(Some(watching), |watching| async move {
            let mut watching = watching?;
            let item = watching.next().await;
            let rest = item.is_ok().then_some(watching);
            Some((item, rest))
        })))
    }

    /// What there is to see of a network that the store has nothing of, without a hub: that, and when it is there the hub.
    /// `None`: it has something.
    async fn nothing_yet(&self, keys: &NetworkKeys) -> Result<Option<Source>, Status> {
        // One reading of all of it: a network made between two would be seen by neither, nor by the watch from there on.
        let all = self.store().range(&KeyRange::prefix(&keys.all())).await.map_err(|error| refusal::store(&error))?;
        if !all.kvs.is_empty() {
            return Ok(None);
        }
        let (context, keys) = (Arc::clone(&self.context), keys.clone());
        let range = KeyRange::key(&keys.config());
        let mut changes = self.store().watch(&range, all.revision + 1).await.map_err(|error| refusal::store(&error))?;
        let made = async move {
            loop {
                let batch = changes.next().await.unwrap_or_else(|| Err(ended()))?;
                if batch.events.iter().any(|event| matches!(event, WatchEvent::Put(_))) {
                    let too_many = "too many networks are watched".to_owned();
                    let hub = context.hubs.get(&keys);
                    return hub.ok_or_else(|| StoreError::Rejected { endpoint: "server".to_owned(), reason: too_many });
                }
            }
        };
        let empty = snapshot_parts(Vec::new(), all.revision).into_iter().next();
        Ok(Some(Source::Nothing { empty, made: Box::pin(made) }))
    }
}

fn ended() -> StoreError {
    StoreError::Unavailable { endpoint: "store".to_owned(), reason: "the watch ended".to_owned() }
}

/// Where news come from.
enum Source {
    /// The network's hub.
    Hub(Watcher),
    /// A network that is not there: that is said once, and then waited for it to be made.
    Nothing {
        empty: Option<proto::WatchReply>,
        made: Pin<Box<dyn Future<Output = Result<Arc<Hub>, StoreError>> + Send>>,
    },
}

impl Source {
    async fn next(&mut self) -> Result<proto::WatchReply, StoreError> {
        loop {
            match self {
                Self::Hub(watcher) => {
                    let away = |reason| StoreError::Unavailable { endpoint: "the server's store".to_owned(), reason };
                    return watcher.next().await.map_err(away);
                }
                Self::Nothing { empty, made } => {
                    if let Some(empty) = empty.take() {
                        return Ok(empty);
                    }
                    let hub = made.await?;
                    *self = Self::Hub(hub.watch(None));
                }
            }
        }
    }
}

/// One watch stream: ends when its node may not any more.
struct Watching {
    source: Source,
    /// Among those of its node.
    _place: Place,
    registry: Arc<Registry>,
    /// A server that stops ends its watches: they go on at another one.
    stopping: watch::Receiver<bool>,
    node: NodeId,
    key_hash: String,
}

impl Watching {
    async fn next(&mut self) -> Result<proto::WatchReply, Status> {
        tokio::select! {
            biased;
            () = self.registry.cut(self.node, &self.key_hash) => Err(registry::revoked(self.node)),
            Ok(_) = self.stopping.wait_for(|stopping| *stopping) => Err(Status::unavailable("the server is stopping")),
            news = self.source.next() => news.map_err(|error| refusal::store(&error)),
        }
    }
}

#[cfg(test)]
mod tests;
