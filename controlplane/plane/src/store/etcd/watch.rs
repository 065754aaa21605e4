//! A watch: opened on the connection in use, probed when it is quiet.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_client::{EventType, GetOptions, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use flatnet_model::Revision;
use futures::stream::{self, Stream, StreamExt};

use super::{ANSWER_LIMIT, EtcdStore, Inner, error, key_value};
use crate::store::{KeyRange, StoreError, WatchBatch, WatchEvent};

/// The time after which a silent watch is asked for its progress.
const PROBE_AFTER: Duration = Duration::from_millis(1500);
/// The time the answer may take, an election's length (etcd's default election timeout is 1 s). With [`PROBE_AFTER`] a
/// hung server is noticed after 3 s. That leaves 2 s of the 5 s in which another endpoint must be in use, also on a
/// busy host.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

/// The number of watches in a row, ended because nothing told of their progress, after which silence no longer means
/// death: etcd's own grpc-proxy never answers that question. One may be a server that hung; a second that was just
/// opened is a habit.
const DEAF: u32 = 2;

struct Watch {
    inner: Arc<Inner>,
    /// The range that is watched.
    range: KeyRange,
    /// The revision up to which everything was told.
    told: Revision,
    /// True if a key was changed after that, as the last look showed.
    is_behind: bool,
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
    // The generation is read first: if the connection changes meanwhile, the watch ends with an old generation and
    // harms nothing.
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
    let (inner, range, told) = (store.inner.clone(), range.clone(), from.saturating_sub(1));
    let watch = Watch { inner, range, told, is_behind: false, generation, endpoint, requests, answers, first };
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
                (self.told, self.is_behind) = (self.told.max(batch.revision), false);
                return Ok(batch);
            }
        }
    }

    /// Returns the next answer; probes a silent server.
    async fn answer(&mut self) -> Result<WatchResponse, StoreError> {
        let answer = loop {
            if let Ok(answer) = tokio::time::timeout(PROBE_AFTER, self.answers.message()).await {
                break answer;
            }
            let is_deaf = self.inner.silences.load(Ordering::Relaxed) >= DEAF;
            let Self { inner, range, told, requests, answers, .. } = &mut *self;
            let ask = async {
                requests.request_progress().await?;
                answers.message().await
            };
            let look = async { if is_deaf { Some(is_changed(inner, range, *told).await) } else { None } };
            let (asked, looked) =
                tokio::join!(tokio::time::timeout(PROBE_TIMEOUT, ask), tokio::time::timeout(PROBE_TIMEOUT, look));
            if let Ok(answer) = asked {
                let is_progress = |answer: &WatchResponse| answer.events().is_empty() && !answer.created();
                if matches!(&answer, Ok(Some(answer)) if is_progress(answer)) {
                    self.inner.silences.store(0, Ordering::Relaxed);
                }
                break answer;
            }
            match looked {
                Ok(Some(Ok(changed))) if !(changed && self.is_behind) => self.is_behind = changed,
                _ => {
                    self.inner.silences.fetch_add(1, Ordering::Relaxed);
                    return Err(self.broken("the watch is silent"));
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
            // While a watch catches up, the header is ahead of the events: only the events tell how far it is.
            Some(revision) => Some(WatchBatch { events, revision }),
            // The answer to a probe can overtake events (etcd before 3.4.25 and 3.5.8): it shows life, and nothing
            // more.
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

/// Returns true if a key of `range` was written after `told`; the watch should have told of it. This is a small read,
/// which every proxy passes on.
async fn is_changed(inner: &Inner, range: &KeyRange, told: Revision) -> Result<bool, StoreError> {
    let connection = Box::pin(inner.connection()).await?;
    let options = GetOptions::new().with_range(range.end.clone()).with_min_mod_revision(told.saturating_add(1));
    let read =
        connection.client.kv_client().get(range.start.clone(), Some(options.with_limit(1).with_keys_only())).await;
    let reply = read.map_err(|error| error::classify(&connection.endpoint, &error))?;
    Ok(!reply.kvs().is_empty())
}

fn event(event: &etcd_client::Event) -> Option<WatchEvent> {
    let kv = event.kv()?;
    Some(match event.event_type() {
        EventType::Put => WatchEvent::Put(key_value(kv.clone())),
        EventType::Delete => WatchEvent::Delete { key: kv.key().to_vec(), revision: kv.mod_revision() },
    })
}
