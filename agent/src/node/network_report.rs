//! What one joined network reports: its problems in the store and with its lease, and its place in the status document.

use std::time::UNIX_EPOCH;

use flatnet_core::outcome::{NetworkOutcome, PeerOutcome};
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::state::ConfigState;
use flatnet_model::{IpFamily, NetworkConfig, NodeId};
use flatnet_plane::watch::{Connection, NetworkView, Sign};
use flatnet_proto::agent::v1 as wire;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::report::{refusal_hint, store_hint};
use crate::wiring::metrics::Gauges;
use crate::wiring::networks::{Holding, NetworkPort};
use crate::wiring::outcome::Outcome;
use crate::wiring::part::{Changed, Report};

/// The report of one network.
pub struct NetworkReport {
    /// The network.
    pub port: NetworkPort,
    /// The outcome of the reconciler's last pass.
    pub outcome: watch::Receiver<Outcome>,
    /// This node.
    pub node: NodeId,
}

impl Report for NetworkReport {
    fn problems(&self, _now: Instant) -> Vec<Problem> {
        let (view, holding) = (self.port.view.borrow(), self.port.holding.borrow());
        let mut problems = view_problems(&self.port, &view);
        problems.extend(holding.problems.iter().cloned());
        problems.extend(unconfirmed(&self.port, &view, &holding, self.node));
        problems
    }

    fn status(&self, document: &mut wire::Status) {
        let outcome = self.outcome.borrow();
        let (view, holding) = (self.port.view.borrow(), self.port.holding.borrow());
        let programmed = outcome.networks.iter().find(|network| network.name == self.port.name);
        document.networks.push(network(&self.port, &view, &holding, programmed, &outcome));
    }

    fn gauges(&self, gauges: &mut Gauges) {
        let name = self.port.name.to_string();
        let expires = self.port.holding.borrow().held.as_ref().and_then(|held| held.expires);
        if let Some(expires) = expires.and_then(|expires| expires.duration_since(UNIX_EPOCH).ok()) {
            gauges.expiry.push((name.clone(), expires.as_secs_f64()));
        }
        gauges.connected.push((name, self.port.view.borrow().connection == Connection::Connected));
    }

    fn changes(&self) -> Vec<Box<dyn Changed>> {
        vec![Box::new(self.port.view.clone()), Box::new(self.port.holding.clone())]
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
        Connection::Lost { reason, kind } if kind.is_refusal() => problems.push(Problem::new(
            ProblemCode::StoreRefuses,
            format!("network {name} cannot be followed: {reason}"),
            format!("the datapath goes on with the last known peers; {}", refusal_hint(reason)),
            name,
        )),
        Connection::Lost { reason, .. } => problems.push(Problem::new(
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
