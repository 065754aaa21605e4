//! A watch: opened on the connection in use, probed when it is quiet.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use flatnet_model::Revision;
use futures::stream::{self, Stream, StreamExt};

use super::{ANSWER_LIMIT, EtcdStore, Inner, error, key_value};
use crate::store::{KeyRange, StoreError, WatchBatch, WatchEvent};

/// A watch that was silent this long is asked for its progress.
const PROBE_AFTER: Duration = Duration::from_millis(1500);
/// How long the answer may take, an election's length (etcd's default election timeout is 1 s): with [`PROBE_AFTER`] a hung
/// server is noticed after 3 s, which leaves 2 s of the 5 s in which another endpoint must be in use, also on a busy host.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

struct Watch {
    inner: Arc<Inner>,
    generation: u64,
    endpoint: String,
    requests: WatchRequestSender,
    answers: WatchResponseStream,
    /// The first answer, if it already held something.
    first: Option<WatchResponse>,
}

/// Opens a watch and waits until the server has confirmed it.
pub(super) async fn open(
    store: &EtcdStore,
    range: &KeyRange,
    from: Revision,
) -> Result<impl Stream<Item = Result<WatchBatch, StoreError>> + Send + Unpin + 'static, StoreError> {
    let (start, end) = (range.start.clone(), range.end.clone());
    // Read before: if the connection changes meanwhile, the watch ends with an old generation and harms nothing.
    let generation = store.inner.lock().generation;
    let endpoint = store.endpoint();
    let (requests, answers, first) = store
        .call(|client| async move {
            let mut watch = client.watch_client().max_decoding_message_size(ANSWER_LIMIT);
            let options = WatchOptions::new().with_range(end).with_start_revision(from).with_progress_notify();
            let (requests, mut answers) = watch.watch(start, Some(options)).await?.split();
            let first = answers.message().await?;
            Ok((requests, answers, first))
        })
        .await?;
    let at = first.as_ref().filter(|answer| answer.created()).and_then(WatchResponse::header);
    if let Some(at) = at.map(etcd_client::ResponseHeader::revision).filter(|at| *at + 1 < from) {
        return Err(StoreError::behind(&endpoint, at, from));
    }
    let watch = Watch { inner: store.inner.clone(), generation, endpoint, requests, answers, first };
    Ok(stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        let item = watch.next().await;
        if let Err(error) = &item {
            watch.inner.after_error(watch.generation, error);
        }
        let rest = item.is_ok().then_some(watch);
        Some((item, rest))
    })
    .boxed())
}

impl Watch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            let answer = match self.first.take() {
                Some(first) => first,
                None => self.answer().await?,
            };
            if let Some(batch) = self.batch(&answer)? {
                return Ok(batch);
            }
        }
    }

    /// The next answer; probes a silent server.
    async fn answer(&mut self) -> Result<WatchResponse, StoreError> {
        let answer = match tokio::time::timeout(PROBE_AFTER, self.answers.message()).await {
            Ok(answer) => answer,
            Err(_quiet) => {
                let probe = async {
                    self.requests.request_progress().await?;
                    self.answers.message().await
                };
                match tokio::time::timeout(PROBE_TIMEOUT, probe).await {
                    Ok(answer) => answer,
                    Err(_silent) => return Err(self.broken("the watch is silent")),
                }
            }
        };
        match answer {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.broken("the server ended the watch")),
            Err(error) => Err(match error::classify(&self.endpoint, &error) {
                StoreError::Compacted(0) => StoreError::Compacted(1),
                error => error,
            }),
        }
    }

    fn batch(&self, answer: &WatchResponse) -> Result<Option<WatchBatch>, StoreError> {
        if answer.canceled() {
            return Err(self.canceled(answer));
        }
        let events: Vec<WatchEvent> = answer.events().iter().filter_map(event).collect();
        let last = answer.events().iter().filter_map(|event| event.kv()).map(|kv| kv.mod_revision()).max();
        Ok(match last {
            // While a watch catches up, the header is ahead of the events: only they say how far it is.
            Some(revision) => Some(WatchBatch { events, revision }),
            // The answer to a probe can overtake events (etcd before 3.4.25 and 3.5.8): it shows life, nothing more.
            None if answer.created() || answer.watch_id() < 0 => None,
            None => answer.header().map(|header| WatchBatch { events, revision: header.revision() }),
        })
    }

    fn canceled(&self, answer: &WatchResponse) -> StoreError {
        let reason = answer.cancel_reason();
        if answer.compact_revision() > 0 {
            StoreError::Compacted(answer.compact_revision())
        } else if reason.contains("permission denied") {
            StoreError::Denied { endpoint: self.endpoint.clone(), reason: reason.to_owned() }
        } else {
            self.broken(if reason.is_empty() { "the server cancelled the watch" } else { reason })
        }
    }

    fn broken(&self, reason: &str) -> StoreError {
        StoreError::Unavailable { endpoint: self.endpoint.clone(), reason: reason.to_owned() }
    }
}

fn event(event: &etcd_client::Event) -> Option<WatchEvent> {
    let kv = event.kv()?;
    Some(match event.event_type() {
        EventType::Put => WatchEvent::Put(key_value(kv.clone())),
        EventType::Delete => WatchEvent::Delete { key: kv.key().to_vec(), revision: kv.mod_revision() },
    })
}
