//! A node's watch of one network.

use std::pin::Pin;
use std::sync::Arc;

use flatnet_model::NodeId;
use flatnet_proto::controlplane::v1 as proto;
use futures::Stream;
use tokio::sync::watch;
use tonic::{Code, Status};

use super::NodeService;
use crate::server::caller::NodeCaller;
use crate::server::hub::{FIRST_READ_TIMEOUT, Watcher};
use crate::server::registry::{self, Registry};
use crate::server::watches::Place;
use flatnet_plane::store::{KeyRange, Store, StoreError};
use flatnet_plane::wire::{self, refusal};

/// The answers to a watch, until it breaks or the node loses its rights.
pub(super) type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::WatchReply, Status>> + Send>>;

impl<S: Store> NodeService<S> {
    pub(super) async fn do_watch(
        &self,
        caller: &NodeCaller,
        message: &proto::WatchRequest,
    ) -> Result<WatchStream, Status> {
        let keys = self.keys(&message.network)?;
        let position = message.position.as_ref().map(wire::read_position);
        // The store must answer now, not only its old watch: a snapshot must not be older than what was seen.
        let reply = self.store().range(&KeyRange::key(&keys.config())).await.map_err(|error| refusal::store(&error))?;
        if let Some(kv) = reply.kvs.first() {
            self.context.witness.saw(keys.network(), &kv.value, reply.revision);
        }
        // A network that is not there has a hub too, since it may be made at any moment. Each node has its share of
        // them, which keeps made-up names from taking all.
        let place = self.context.watches.take(caller.node, keys.network())?;
        let hub = self.hub(&keys)?;
        if let Some(position) = &position
            && reply.revision >= position.revision
            && !hub.ready(position.revision, FIRST_READ_TIMEOUT).await
        {
            let refusal =
                proto::Refusal { kind: proto::refusal::Kind::StoreUnavailable.into(), ..proto::Refusal::default() };
            return Err(refusal::status(Code::Unavailable, "this replica is behind; try again", refusal));
        }
        let watching = Watching {
            watcher: hub.watch(position.as_ref()),
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
}

/// One watch stream. It ends when its node loses its rights.
struct Watching {
    watcher: Watcher,
    /// Its place among the watches of its node.
    _place: Place,
    registry: Arc<Registry>,
    /// True once the server stops, which ends its watches: they go on at another one.
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
            news = self.watcher.next() => news.map_err(|reason| {
                let error = StoreError::Unavailable { endpoint: "the server's store".to_owned(), reason };
                refusal::store(&error)
            }),
        }
    }
}

#[cfg(test)]
mod tests;
