//! The resources agents use, which must not grow.

use flatnet_tests::agent::Agent;

use crate::fleet::{Fleet, VETERANS};
use crate::process::{descriptors, memory_kib};
use crate::scene::{figure, metric};

/// The usage of one agent.
#[derive(Clone, Copy, Debug)]
struct Each {
    /// Resident memory in KiB.
    memory: u64,
    /// Open descriptors.
    descriptors: usize,
    /// Tasks of its runtime.
    tasks: u64,
}

/// The usage of every agent that runs.
#[derive(Clone, Debug)]
pub struct Usage(Vec<Option<Each>>);

/// The descriptors and tasks that come and go: a connection to the store that is being replaced, this test's own
/// questions.
const PASSING: u64 = 4;
/// The memory that may be on its way: an allocator keeps what a burst needed, 20 views and dumps of some 10 KiB each.
const SLACK_KIB: u64 = 4096;

impl Usage {
    pub fn of(fleet: &Fleet) -> Self {
        Self(fleet.agents.iter().map(each).collect())
    }

    /// Asserts that this usage, at the end, is that of a `fresh` fleet, with no more memory than that of a `warm` one.
    pub fn assert_flat(&self, fresh: &Self, warm: &Self) {
        let memory =
            |usage: &Self| usage.0.iter().take(VETERANS).flatten().map(|each| each.memory).max().unwrap_or_default();
        let descriptors =
            |usage: &Self| usage.0.iter().flatten().map(|each| each.descriptors).max().unwrap_or_default();
        let tasks = |usage: &Self| usage.0.iter().flatten().map(|each| each.tasks).max().unwrap_or_default();
        figure(
            "soak: the most any agent uses",
            format!(
                "resident memory {} KiB fresh, {} KiB warm, {} KiB at the end; descriptors {}, {} and {}; tasks {}, {} and {}",
                memory(fresh),
                memory(warm),
                memory(self),
                descriptors(fresh),
                descriptors(warm),
                descriptors(self),
                tasks(fresh),
                tasks(warm),
                tasks(self),
            ),
        );
        assert!(self.0.iter().all(Option::is_some), "every agent runs");
        assert!(memory(self) <= memory(warm) * 11 / 10 + SLACK_KIB, "memory grows: {fresh:?} {warm:?} {self:?}");
        let passing = usize::try_from(PASSING).unwrap();
        assert!(descriptors(self) <= descriptors(fresh) + passing, "descriptors leak: {fresh:?} {self:?}");
        assert!(tasks(fresh) > 0 && tasks(self) <= tasks(fresh) + PASSING, "tasks leak: {fresh:?} {self:?}");
    }
}

fn each(agent: &Agent) -> Option<Each> {
    let pid = agent.pid()?;
    let tasks = metric(&agent.host, "flatnet_tasks", &[]);
    Some(Each { memory: memory_kib(pid, "VmRSS"), descriptors: descriptors(pid), tasks })
}
