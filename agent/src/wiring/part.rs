//! The one shape of a node's parts: a task with a name, its place in the order of stopping, and what it reports.
//!
//! A part is made by a function `part` of its own file and is one line in a list of [`crate::node`]. What it works with
//! is in [`crate::wiring::context`]. Whoever may ask it something gets the end of a channel when it is made.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flatnet_core::problem::Problem;
use flatnet_model::NetworkName;
use flatnet_proto::agent::v1::Status;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::wiring::metrics::Gauges;

/// The place of a part in the order of stopping: whoever acts on what others tell ends before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// The part only looks and tells.
    Observer,
    /// The part changes this host: the kernel, or files. It stands still before anything is given back in the store.
    Effect,
    /// The part speaks in the store for this node. It ends after it has given back what it holds.
    Speaker,
    /// The part brings what the others work with.
    Feed,
}

/// A part that is not running yet.
pub struct Part {
    name: &'static str,
    stop: Stop,
    run: Pin<Box<dyn Future<Output = ()> + Send>>,
    report: Option<Arc<dyn Report>>,
}

impl Part {
    /// Makes a part that does `run`, which must be safe to cut off at any await.
    pub fn new(name: &'static str, stop: Stop, run: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { name, stop, run: Box::pin(run), report: None }
    }

    /// Adds what the part reports while it runs.
    #[must_use]
    pub fn reporting(self, report: impl Report + 'static) -> Self {
        Self { report: Some(Arc::new(report)), ..self }
    }
}

/// What a part reports to whoever asks for status, problems or metrics.
pub trait Report: Send + Sync {
    /// Returns the problems as of `now`.
    fn problems(&self, now: Instant) -> Vec<Problem>;

    /// Adds what the part says in the status document, besides its problems.
    fn status(&self, _document: &mut Status) {}

    /// Adds what the part says in the metrics.
    fn gauges(&self, _gauges: &mut Gauges) {}

    /// Returns receivers that wake when the problems may have changed.
    fn changes(&self) -> Vec<Box<dyn Changed>>;
}

/// A list of problems, published as it is.
impl Report for watch::Receiver<Vec<Problem>> {
    fn problems(&self, _now: Instant) -> Vec<Problem> {
        self.borrow().clone()
    }

    fn changes(&self) -> Vec<Box<dyn Changed>> {
        vec![Box::new(self.clone())]
    }
}

/// A receiver of any type of value.
pub trait Changed: Send {
    /// Waits for a new value. Returns `false` if there will be none.
    fn changed(&mut self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
}

impl<T: Send + Sync> Changed for watch::Receiver<T> {
    fn changed(&mut self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async { watch::Receiver::changed(self).await.is_ok() })
    }
}

/// A report, and the network whose part makes it; `None`: a part of the node.
#[derive(Clone)]
struct Entry {
    network: Option<NetworkName>,
    report: Arc<dyn Report>,
}

/// The reports of all parts, in the order in which the parts were started.
#[derive(Clone)]
pub struct Reports(watch::Receiver<Vec<Entry>>);

impl Reports {
    /// Makes the reports of parts that are not run by a node.
    #[must_use]
    pub fn of(reports: Vec<Arc<dyn Report>>) -> Self {
        Self(watch::channel(reports.into_iter().map(|report| Entry { network: None, report }).collect()).1)
    }

    /// Returns the reports as of now.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<dyn Report>> {
        self.0.borrow().iter().map(|entry| Arc::clone(&entry.report)).collect()
    }

    /// Returns receivers that wake when the problems of any part may have changed, or when parts come or go.
    #[must_use]
    pub fn changes(&self) -> (Vec<Box<dyn Changed>>, Box<dyn Changed>) {
        let mut parts = self.0.clone();
        parts.mark_unchanged();
        (self.all().iter().flat_map(|report| report.changes()).collect(), Box::new(parts))
    }
}

/// One part that runs.
struct Task {
    name: &'static str,
    stop: Stop,
    network: Option<NetworkName>,
    handle: JoinHandle<()>,
}

struct Tasks {
    running: Vec<Task>,
    /// True once all were cut off: nothing starts any more.
    ended: bool,
}

/// The parts that run. Clones are the same set.
#[derive(Clone)]
pub struct Running {
    tasks: Arc<Mutex<Tasks>>,
    reports: watch::Sender<Vec<Entry>>,
}

impl Default for Running {
    fn default() -> Self {
        let tasks = Tasks { running: Vec::new(), ended: false };
        Self { tasks: Arc::new(Mutex::new(tasks)), reports: watch::Sender::new(Vec::new()) }
    }
}

impl Running {
    /// Starts a part of the node, or of one of its networks.
    pub fn start(&self, network: Option<&NetworkName>, part: Part) {
        let Part { name, stop, run, report } = part;
        let mut tasks = self.tasks();
        if tasks.ended {
            return;
        }
        let network = network.cloned();
        if let Some(report) = report {
            self.reports.send_modify(|reports| reports.push(Entry { network: network.clone(), report }));
        }
        tasks.running.push(Task { name, stop, network, handle: tokio::spawn(run) });
    }

    /// Returns the reports of all parts that were started and not stopped with their network.
    #[must_use]
    pub fn reports(&self) -> Reports {
        Reports(self.reports.subscribe())
    }

    /// Ends every part up to `last` in the order of stopping, and waits until each has ended.
    pub async fn stop_until(&self, last: Stop) {
        self.stop(|task| task.stop <= last).await;
    }

    /// Ends the parts of one network, and waits until each has ended. Its reports end with them.
    pub async fn stop_network(&self, network: &NetworkName) {
        self.stop(|task| task.network.as_ref() == Some(network)).await;
        self.reports.send_modify(|reports| reports.retain(|entry| entry.network.as_ref() != Some(network)));
    }

    /// Cuts every part off where it stands, and lets nothing start any more.
    pub fn cut_off(&self) {
        let mut tasks = self.tasks();
        tasks.ended = true;
        tasks.running.drain(..).for_each(|task| task.handle.abort());
    }

    async fn stop(&self, is_meant: impl Fn(&Task) -> bool) {
        let mut stopping: Vec<Task> = self.tasks().running.extract_if(.., |task| is_meant(task)).collect();
        // Parts of one stage end in the order in which they were started.
        stopping.sort_by_key(|task| task.stop);
        for task in stopping {
            task.handle.abort();
            tracing::trace!(part = task.name, "stopping");
            // An error here means "cancelled", as it should be.
            let _ = task.handle.await;
        }
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        // A list of tasks is whole between any two statements that change it.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flatnet_core::problem::ProblemCode;
    use tokio::sync::mpsc;

    use super::*;

    /// A part that tells when it is cut off.
    fn part(name: &'static str, stop: Stop, ended: &mpsc::UnboundedSender<&'static str>) -> Part {
        struct Told(&'static str, mpsc::UnboundedSender<&'static str>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.1.send(self.0).unwrap();
            }
        }
        let told = Told(name, ended.clone());
        Part::new(name, stop, async move {
            let _told = told;
            std::future::pending::<()>().await;
        })
    }

    #[tokio::test]
    async fn parts_end_stage_by_stage_whatever_the_order_of_their_start() {
        let (ended, mut names) = mpsc::unbounded_channel();
        let running = Running::default();
        running.start(None, part("feed", Stop::Feed, &ended));
        running.start(None, part("speaker", Stop::Speaker, &ended));
        running.start(None, part("effect", Stop::Effect, &ended));
        running.start(None, part("observer", Stop::Observer, &ended));
        running.stop_until(Stop::Effect).await;
        assert_eq!((names.recv().await, names.recv().await), (Some("observer"), Some("effect")));
        assert!(names.try_recv().is_err(), "what speaks for the node goes on");
        running.stop_until(Stop::Feed).await;
        assert_eq!((names.recv().await, names.recv().await), (Some("speaker"), Some("feed")));
    }

    #[tokio::test]
    async fn the_parts_of_one_network_end_alone_and_nothing_starts_after_the_end() {
        let (ended, mut names) = mpsc::unbounded_channel();
        let running = Running::default();
        let (blue, red): (NetworkName, NetworkName) = ("blue".parse().unwrap(), "red".parse().unwrap());
        let problem = Problem::new(ProblemCode::NoConfig, "none", "", "");
        let told = watch::channel(vec![problem]).1;
        running.start(Some(&blue), part("blue", Stop::Feed, &ended).reporting(told.clone()));
        running.start(Some(&red), part("red", Stop::Observer, &ended).reporting(told));
        let reports = running.reports();
        assert_eq!(reports.all().len(), 2);
        running.stop_network(&blue).await;
        assert_eq!(names.recv().await, Some("blue"));
        assert!(names.try_recv().is_err());
        assert_eq!(reports.all().len(), 1, "a network that was left has no problems");
        running.cut_off();
        assert_eq!(names.recv().await, Some("red"));
        running.start(None, part("late", Stop::Observer, &ended));
        let late = tokio::time::timeout(Duration::from_secs(1), names.recv()).await.unwrap();
        assert_eq!(late, Some("late"), "it is dropped, not run");
    }
}
