//! The trace of one seed: what happened, in virtual time, and what must not have.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use flatnet_model::keys::NetworkKeys;
use tokio::time::Instant;

use crate::chance::Chance;

/// The number of lines of the trace that a failure prints: enough to see the steps that led there.
const SHOWN: usize = 70;

/// The log of a seed. All clones share it.
#[derive(Clone)]
pub struct Trace {
    began: Instant,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    lines: Vec<String>,
    violation: Option<String>,
}

impl Trace {
    /// Creates an empty trace.
    pub fn new() -> Self {
        Self { began: Instant::now(), inner: Arc::default() }
    }

    /// Adds a line.
    pub fn say(&self, line: impl AsRef<str>) {
        let at = self.began.elapsed();
        self.inner.lock().unwrap().lines.push(format!("{:>9.3} {}", at.as_secs_f64(), line.as_ref()));
    }

    /// Records that something happened that must never happen; the first one counts.
    pub fn violation(&self, what: impl Into<String>) {
        let what = what.into();
        self.say(format!("VIOLATION {what}"));
        self.inner.lock().unwrap().violation.get_or_insert(what);
    }

    /// Returns the first violation.
    pub fn violated(&self) -> Option<String> {
        self.inner.lock().unwrap().violation.clone()
    }

    /// Returns the last lines.
    pub fn tail(&self) -> String {
        let inner = self.inner.lock().unwrap();
        let shown = if std::env::var_os("FLATNET_TRACE").is_some() { usize::MAX } else { SHOWN };
        let skipped = inner.lines.len().saturating_sub(shown);
        let mut out = String::new();
        for line in &inner.lines[skipped..] {
            let _ = writeln!(out, "  {line}");
        }
        out
    }
}

/// The log of one run of one node, which tells the run's store and kernel apart from those of other runs.
pub struct RunLog {
    /// The node's name.
    pub name: String,
    /// The networks it follows.
    pub networks: Vec<NetworkKeys>,
    /// True if the node is leaving: then everything may go.
    pub leaving: AtomicBool,
    /// The networks of which this run has read a whole snapshot.
    pub snapshots: Mutex<BTreeSet<String>>,
    /// The chance that decides how long calls take.
    pub chance: Mutex<Chance>,
    /// The trace of the seed.
    pub trace: Trace,
}

impl RunLog {
    /// Returns true if this run has a snapshot of every network.
    pub fn knows_all(&self) -> bool {
        let snapshots = self.snapshots.lock().unwrap();
        self.networks.iter().all(|keys| snapshots.contains(&keys.all()))
    }

    /// Waits for as long as a way takes: whatever is cut off meanwhile was cut off between two awaits.
    pub async fn travel(&self) {
        let took = {
            let mut chance = self.chance.lock().unwrap();
            if chance.one_in(40) { chance.millis(50, 400) } else { chance.millis(1, 4) }
        };
        tokio::time::sleep(took).await;
    }
}
