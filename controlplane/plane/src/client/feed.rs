//! A watch's answers as news.

use std::sync::Arc;

use flatnet_proto::controlplane::v1 as proto;
use futures::stream::{self, Stream, StreamExt};
use proto::watch_reply::News as Wire;
use tonic::{Status, Streaming};

use super::{Inner, odd};
use crate::plane::feed::News;
use crate::store::{KeyValue, RangeReply, StoreError};
use crate::wire::{self, refusal};

/// The most records a snapshot may have: five times a fleet of 20,000 nodes. More is no server of ours.
const RECORD_LIMIT: usize = 100_000;

/// Turns a watch's answers into news, until the watch breaks.
pub(super) fn news(
    inner: Arc<Inner>,
    generation: u64,
    prefix: String,
    streaming: Streaming<proto::WatchReply>,
) -> impl Stream<Item = Result<News, StoreError>> + Send + Unpin + 'static {
    let feed = Feed { inner, generation, prefix, streaming };
    stream::unfold(Some(feed), |feed| async move {
        let mut feed = feed?;
        let item = feed.next().await;
        let rest = item.is_ok().then_some(feed);
        Some((item, rest))
    })
    .boxed()
}

struct Feed {
    inner: Arc<Inner>,
    generation: u64,
    prefix: String,
    streaming: Streaming<proto::WatchReply>,
}

impl Feed {
    async fn next(&mut self) -> Result<News, StoreError> {
        let mut records: Vec<KeyValue> = Vec::new();
        loop {
            let reply = match self.streaming.message().await {
                Ok(Some(reply)) => reply,
                Ok(None) => return Err(self.broken(Status::unavailable("the server ended the watch"))),
                Err(status) => return Err(self.broken(status)),
            };
            match reply.news {
                Some(Wire::Snapshot(part)) => {
                    records.extend(part.records.into_iter().map(|record| wire::key_value(&self.prefix, record)));
                    if records.len() > RECORD_LIMIT {
                        return Err(odd(&self.inner.server_name()));
                    }
                    if !part.more {
                        return Ok(News::Snapshot(RangeReply { kvs: records, revision: part.revision }));
                    }
                }
                _ if !records.is_empty() => return Err(odd(&self.inner.server_name())),
                Some(Wire::Resumed(_)) => return Ok(News::Resumed),
                Some(Wire::Batch(batch)) => return Ok(News::Batch(wire::batch(&self.prefix, batch))),
                None => return Err(odd(&self.inner.server_name())),
            }
        }
    }

    fn broken(&self, status: Status) -> StoreError {
        let failed = self.inner.failed(status);
        self.inner.after_error(self.generation, &failed.status);
        refusal::read_store(&failed.server, &failed.status)
    }
}
