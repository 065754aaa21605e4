//! The status document, put together on demand from what the tasks publish.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use flatnet_controlplane::watch::{Connection, NetworkView, Sign};
use flatnet_core::outcome::{NetworkOutcome, PeerOutcome};
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::state::ConfigState;
use flatnet_model::{IpFamily, NetworkConfig, NetworkName, NodeId};
use flatnet_proto::agent::v1 as wire;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::channels::Channels;
use crate::evidence::Evidence;
use crate::metrics::Gauges;
use crate::networks::{Holding, NetworkPort};
use crate::reconciler::Outcome;
use crate::report::{refusal_hint, store_hint};

/// Everything the document is made from.
#[derive(Clone, Debug)]
pub struct StatusSource {
    /// This node.
    pub node: NodeId,
    /// The node's name.
    pub name: String,
    /// The joined networks.
    pub ports: Vec<NetworkPort>,
    /// The outcome of the reconciler's last pass.
    pub outcome: watch::Receiver<Outcome>,
    /// Problems with the env files.
    pub env_problems: watch::Receiver<Vec<Problem>>,
    /// The health of each way to the store.
    pub channels: Channels,
    /// The kernel's evidence of packets that do not arrive.
    pub evidence: watch::Receiver<Evidence>,
    /// The problem, if any, with each network's snapshot on disk.
    pub snapshot_problems: Vec<watch::Receiver<Option<Problem>>>,
}

impl StatusSource {
    /// Returns the document as of now.
    #[must_use]
    pub fn status(&self) -> wire::Status {
        let problems = self.problems();
        let outcome = self.outcome.borrow();
        let mut starting = outcome.passes == 0;
        let mut networks = Vec::new();
        for port in &self.ports {
            let (view, holding) = (port.view.borrow(), port.holding.borrow());
            let programmed = outcome.networks.iter().find(|network| network.name == port.name);
            starting |= holding.held.is_none() || programmed.is_none();
            networks.push(network(port, &view, &holding, programmed, &outcome));
        }
        let is_well = problems.iter().all(|problem| problem.code.is_note());
        let state = match (starting, is_well && outcome.complete) {
            (true, _) => "starting",
            (false, true) => "converged",
            (false, false) => "degraded",
        };
        wire::Status {
            state: state.to_owned(),
            problems: problems.into_iter().map(problem).collect(),
            node: Some(wire::Node { id: self.node.to_string(), name: self.name.clone() }),
            revision: outcome.revision,
            networks,
        }
    }

    /// Returns all problems, from every task.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.outcome.borrow().problems.clone();
        problems.extend(self.env_problems.borrow().iter().cloned());
        problems.extend(self.snapshot_problems.iter().filter_map(|problem| problem.borrow().clone()));
        for port in &self.ports {
            let (view, holding) = (port.view.borrow(), port.holding.borrow());
            problems.extend(view_problems(port, &view));
            problems.extend(holding.problems.iter().cloned());
            problems.extend(unconfirmed(port, &view, &holding, self.node));
        }
        let is_followed = |port: &NetworkPort| port.view.borrow().connection == Connection::Connected;
        let followed = |network: Option<&NetworkName>| {
            self.ports.iter().any(|port| network.is_none_or(|name| *name == port.name) && is_followed(port))
        };
        problems.extend(self.evidence.borrow().problems());
        problems.extend(self.channels.problems(Instant::now(), followed));
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
        let connected = |port: &NetworkPort| port.view.borrow().connection == Connection::Connected;
        let expiry = |port: &NetworkPort| port.holding.borrow().held.as_ref()?.expires?.duration_since(UNIX_EPOCH).ok();
        let network = |name: Option<NetworkName>| name.map(|name| name.to_string()).unwrap_or_default();
        let states = self.channels.states().into_iter();
        let evidence = self.evidence.borrow();
        let mut dropped: BTreeMap<(String, String), u64> = BTreeMap::new();
        for (reason, packets) in evidence.drops.totals() {
            *dropped.entry((reason.network.clone(), reason.text.clone())).or_default() += packets;
        }
        Gauges {
            connected: self.ports.iter().map(|port| (port.name.to_string(), connected(port))).collect(),
            expiry: self
                .ports
                .iter()
                .filter_map(|port| Some((port.name.to_string(), expiry(port)?.as_secs_f64())))
                .collect(),
            dropped: dropped.into_iter().map(|((network, reason), packets)| (network, reason, packets)).collect(),
            claimed: evidence
                .claims
                .totals()
                .map(|(network, flaw, peer, packets)| (network.to_owned(), flaw.as_str(), peer.to_owned(), packets))
                .collect(),
            channels: states.map(|(channel, name, is_well)| (channel.as_str(), network(name), is_well)).collect(),
        }
    }
}

fn problem(problem: Problem) -> wire::Problem {
    wire::Problem {
        code: problem.code.to_string(),
        message: problem.message,
        hint: problem.hint,
        object: problem.object,
    }
}

fn view_problems(port: &NetworkPort, view: &NetworkView) -> Vec<Problem> {
    let name = &port.name;
    let mut problems = Vec::new();
    match &view.connection {
        Connection::Connected => {}
        Connection::Connecting => problems.push(Problem::new(
            ProblemCode::StoreConnecting,
            "the store has not answered yet",
            "if this stays: check the endpoint, and that etcd runs there and has a leader, or the control plane",
            name,
        )),
        Connection::Lost { reason, refused: true } => problems.push(Problem::new(
            ProblemCode::StoreRefuses,
            format!("network {name} cannot be followed: {reason}"),
            format!("the datapath goes on with the last known peers; {}", refusal_hint(reason)),
            name,
        )),
        Connection::Lost { reason, refused: false } => problems.push(Problem::new(
            ProblemCode::StoreUnreachable,
            format!("the store does not answer: {reason}"),
            format!("the datapath goes on with the last known peers; {}", store_hint(reason)),
            name,
        )),
    }
    let followed = view.connection == Connection::Connected;
    match &view.state.config {
        ConfigState::Missing if followed => problems.push(Problem::new(
            ProblemCode::NoConfig,
            format!("network {name} has no configuration in the store"),
            format!("create it: agent network create {name} --cidr 10.100.0.0/16, or join with --init"),
            name,
        )),
        ConfigState::Invalid(reason) => problems.push(Problem::new(
            ProblemCode::ConfigInvalid,
            format!("network {name} has a configuration that cannot be used: {reason}"),
            format!("correct it: agent network update {name} …"),
            name,
        )),
        ConfigState::Missing | ConfigState::Valid(_) => {}
    }
    // Leases that are only missing are no problem: their hosts left, or claim them again.
    if let Some(suspect) = view.suspect.as_ref().filter(|suspect| suspect.sign > Sign::Missing) {
        problems.push(Problem::new(
            ProblemCode::StoreSuspect,
            &suspect.reason,
            "nothing is removed until the other nodes have claimed their subnets again; check whether etcd was wiped or restored",
            name,
        ));
    }
    problems.extend(view.state.rejected.iter().map(|(key, reason)| {
        Problem::new(
            ProblemCode::KeyRejected,
            format!("{key} is skipped: {reason}"),
            "remove or correct that key in the store",
            key,
        )
    }));
    problems
}

/// Returns a problem if the store is followed but has no lease of this node that it confirmed in this run. A store that
/// is away says nothing either way, and is a problem of its own.
fn unconfirmed(port: &NetworkPort, view: &NetworkView, holding: &Holding, node: NodeId) -> Option<Problem> {
    let held = holding.held.as_ref().filter(|_| view.connection == Connection::Connected)?;
    let kept = view.suspect.as_ref().is_some_and(|suspect| suspect.kept.contains(&held.subnets));
    let is_there = !kept && view.state.leases.get(&held.subnets).is_some_and(|lease| lease.is_owned_by(node));
    let (name, subnets) = (&port.name, held.subnets);
    let message = match (is_there, held.expires) {
        (true, Some(_)) => return None,
        (true, None) => {
            format!("network {name}: the store has not confirmed this node's lease on {subnets} in this run")
        }
        (false, _) => {
            format!("network {name}: the store has no lease of this node on {subnets}: other hosts do not send to it")
        }
    };
    let hint = "the agent claims it by itself; another problem listed says what keeps it from that";
    Some(Problem::new(ProblemCode::LeaseUnconfirmed, message, hint, subnets))
}

fn network(
    port: &NetworkPort,
    view: &NetworkView,
    holding: &Holding,
    programmed: Option<&NetworkOutcome>,
    outcome: &Outcome,
) -> wire::Network {
    let held = holding.held.as_ref();
    let config: Option<&NetworkConfig> = held.map(|held| &held.config).or_else(|| view.state.valid_config());
    let range = |family| config.and_then(|config| config.pool(family)).map(|pool| pool.network().to_string());
    let subnet = |family| held.and_then(|held| held.subnets.of(family)).map(|net| net.to_string());
    let mtu = programmed.and_then(|network| network.mtu).map_or(0, flatnet_model::Mtu::get);
    let device = programmed.and_then(|network| network.devices.first()).map(ToString::to_string);
    let peers = programmed.map(|network| network.peers.as_slice()).unwrap_or_default();
    wire::Network {
        name: port.name.to_string(),
        cidr: range(IpFamily::V4),
        cidr6: range(IpFamily::V6),
        subnet: subnet(IpFamily::V4),
        subnet6: subnet(IpFamily::V6),
        backend: config.map(|config| config.backend.kind().to_string()).unwrap_or_default(),
        datapath: programmed.map_or("kernel", |network| network.datapath.as_str()).to_owned(),
        mtu,
        device,
        lease_expires: held.and_then(|held| held.expires).map(|at| humantime::format_rfc3339_seconds(at).to_string()),
        peers: peers.iter().map(|peer_outcome| peer(view, peer_outcome, outcome)).collect(),
    }
}

fn peer(view: &NetworkView, peer: &PeerOutcome, outcome: &Outcome) -> wire::Peer {
    let lease = view.state.leases.get(&peer.subnets);
    let owner = lease.and_then(|lease| lease.owner.as_ref());
    let node = owner.map(|owner| if owner.name.is_empty() { owner.node.to_string() } else { owner.name.clone() });
    let address = lease.and_then(|lease| {
        let address = |family| lease.public_address(family);
        address(IpFamily::V4).or_else(|| address(IpFamily::V6))
    });
    wire::Peer {
        node: node.unwrap_or_default(),
        subnet: peer.subnets.v4().map(|net| net.to_string()),
        subnet6: peer.subnets.v6().map(|net| net.to_string()),
        public_ip: address.map(|address| address.to_string()).unwrap_or_default(),
        backend: lease.map(|lease| lease.backend.to_string()).unwrap_or_default(),
        state: outcome.peer_state(peer).as_str().to_owned(),
    }
}
