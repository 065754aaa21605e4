//! The status document, put together on demand from what the parts report.

use flatnet_core::problem::Problem;
use flatnet_model::NodeId;
use flatnet_proto::agent::v1 as wire;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::wiring::metrics::Gauges;
use crate::wiring::networks::NetworkPort;
use crate::wiring::outcome::Outcome;
use crate::wiring::part::Reports;

/// Everything the document is made from.
#[derive(Clone)]
pub struct StatusSource {
    /// This node.
    pub node: NodeId,
    /// The node's name.
    pub name: String,
    /// The joined networks.
    pub networks: watch::Receiver<Vec<NetworkPort>>,
    /// The outcome of the reconciler's last pass.
    pub outcome: watch::Receiver<Outcome>,
    /// What the parts of the node report.
    pub reports: Reports,
}

impl StatusSource {
    /// Returns the joined networks as of now.
    #[must_use]
    pub fn ports(&self) -> Vec<NetworkPort> {
        self.networks.borrow().clone()
    }

    /// Returns the document as of now.
    #[must_use]
    pub fn status(&self) -> wire::Status {
        let problems = self.problems();
        let ports = self.ports();
        let (starting, complete, revision) = {
            let outcome = self.outcome.borrow();
            let is_in = |port: &NetworkPort| {
                let is_programmed = outcome.networks.iter().any(|network| network.name == port.name);
                is_programmed && port.holding.borrow().held.is_some()
            };
            (outcome.passes == 0 || !ports.iter().all(is_in), outcome.complete, outcome.revision)
        };
        let is_well = problems.iter().all(|problem| problem.code.is_note());
        let state = match (starting, is_well && complete) {
            (true, _) => "starting",
            (false, true) => "converged",
            (false, false) => "degraded",
        };
        let mut document = wire::Status {
            state: state.to_owned(),
            problems: problems.into_iter().map(problem).collect(),
            node: Some(wire::Node { id: self.node.to_string(), name: self.name.clone() }),
            revision,
            networks: Vec::new(),
        };
        self.reports.all().iter().for_each(|report| report.status(&mut document));
        document
    }

    /// Returns all problems, from every part.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let now = Instant::now();
        let mut problems: Vec<Problem> = self.reports.all().iter().flat_map(|report| report.problems(now)).collect();
        problems.sort();
        problems.dedup();
        problems
    }

    /// Returns the document in one line, for the service manager.
    #[must_use]
    pub fn line(&self) -> String {
        let status = self.status();
        let peers: usize = status.networks.iter().map(|network| network.peers.len()).sum();
        let first = status.problems.first().map(|problem| format!(": {}", problem.message)).unwrap_or_default();
        format!("{}, {} networks, {peers} peers{first}", status.state, status.networks.len())
    }

    /// Returns what metrics need besides the document.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let mut gauges = Gauges::default();
        self.reports.all().iter().for_each(|report| report.gauges(&mut gauges));
        gauges
    }
}

/// Converts a problem to the form in which the socket's clients get it.
#[must_use]
pub fn problem(problem: Problem) -> wire::Problem {
    wire::Problem {
        code: problem.code.to_string(),
        message: problem.message,
        hint: problem.hint,
        object: problem.object,
    }
}
