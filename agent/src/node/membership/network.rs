//! The parts of one joined network.

use std::sync::Arc;

use flatnet_core::transition::Change;
use flatnet_model::keys::NetworkKeys;
use flatnet_model::{BackendConfig, EARLIER_BACKENDS, IfName, NetworkConfig, NetworkName};
use flatnet_plane::flannel::decode_in_force;
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::snapshot;
use flatnet_plane::watch::{NetworkView, Source, follow_with};
use tokio::sync::{mpsc, watch};

use crate::files::state_dir::StateDir;
use crate::node::lease_keeper::{self, LeaseAsk};
use crate::node::network_report::NetworkReport;
use crate::node::snapshots;
use crate::report::{Failure, chain};
use crate::wiring::context::Context;
use crate::wiring::metrics::count_restarts;
use crate::wiring::networks::{Held, Holding, NetworkPort, NetworkSetup};
use crate::wiring::part::{Part, Stop};

/// The ends by which the node reaches one joined network's parts.
pub(super) struct Joined {
    pub(super) setup: NetworkSetup,
    pub(super) port: NetworkPort,
    pub(super) lease: mpsc::Sender<LeaseAsk>,
}

/// Makes the parts of a network, which go on from what is on disk. `bridge`: the bridge of our own in it; `fatal`: whom
/// the keeper tells what only an operator can put right.
pub(super) fn join<P: ControlPlane, K>(
    context: &Context<P, K>,
    setup: NetworkSetup,
    bridge: Option<IfName>,
    fatal: mpsc::Sender<Failure>,
) -> (Joined, Vec<Part>) {
    let dir = &context.setup.dir;
    let name = setup.keys.network().clone();
    let from_disk = from_disk(dir, &setup.keys).unwrap_or_default();
    let held = held(dir, &name, &from_disk);
    let (view_sender, view) = watch::channel(from_disk);
    let (holding_sender, holding) = watch::channel(Holding { held, problems: Vec::new() });
    let port = NetworkPort { name, view, holding, bridge, env_file: setup.env_file.clone() };
    let (keeper, lease) = lease_keeper::part(context, &setup, &port, holding_sender, fatal);
    // This is the list: a new part of each network is a line here, and its own file.
    let parts = vec![
        keeper,
        watch_part(context, &setup, &port, view_sender),
        snapshots::part(context, &setup, &port),
        Part::new("restarts", Stop::Observer, count_restarts(port.view.clone(), Arc::clone(&context.metrics))),
    ];
    (Joined { setup, port, lease }, parts)
}

/// Makes the part that follows the network in the store. What it finds is the network's report.
fn watch_part<P: ControlPlane, K>(
    context: &Context<P, K>,
    network: &NetworkSetup,
    port: &NetworkPort,
    view: watch::Sender<NetworkView>,
) -> Part {
    let setup = &context.setup;
    let (plane, keys, random) = (Arc::clone(&setup.plane), network.keys.clone(), setup.random.clone());
    let following = follow_with(plane, keys, setup.lease_ttl, view, random);
    Part::new("watch", Stop::Feed, following).reporting(report(context, port))
}

/// Returns what the network reports.
pub(super) fn report<P, K>(context: &Context<P, K>, port: &NetworkPort) -> NetworkReport {
    let node = context.setup.owner.node;
    NetworkReport { port: port.clone(), outcome: context.outcome.clone(), node }
}

/// Returns the subnet that an earlier run held, if it still fits the configuration that was in force or that is in the
/// last view.
fn held(dir: &StateDir, name: &NetworkName, view: &NetworkView) -> Option<Held> {
    let subnets = dir.read_subnet(name).unwrap_or_else(|error| {
        tracing::warn!(network = %name, error = chain(&error), "the last subnet cannot be read");
        None
    })?;
    let config = in_force(dir, name).or_else(|| Some((view.state.valid_config().cloned()?, Vec::new())));
    let (config, earlier) = config.filter(|(config, _)| lease_keeper::fits(config, subnets))?;
    Some(Held { subnets, config, change: Change::among(earlier), expires: None })
}

/// Reads the configuration in force here, and the earlier backends, from disk.
fn in_force(dir: &StateDir, network: &NetworkName) -> Option<(NetworkConfig, Vec<BackendConfig>)> {
    let text = dir.read_config(network).unwrap_or_else(|error| {
        tracing::warn!(network = %network, error = chain(&error), "the configuration in force cannot be read");
        None
    })?;
    let mut configs = text.split(|byte| *byte == b'\n').filter_map(|json| decode_in_force(json).ok());
    let (config, _) = configs.next()?;
    Some((config, configs.map(|(earlier, _)| earlier.backend).take(EARLIER_BACKENDS).collect()))
}

fn from_disk(dir: &StateDir, keys: &NetworkKeys) -> Option<NetworkView> {
    let name = keys.network();
    let bytes = dir.read_snapshot(name).unwrap_or_else(|error| {
        tracing::warn!(network = %name, error = chain(&error), "the last view cannot be read");
        None
    })?;
    match snapshot::decode(keys, &bytes) {
        Ok(view) => {
            debug_assert_eq!(view.source, Source::Disk);
            tracing::info!(network = %name, leases = view.state.leases.len(), "starting from the last view on disk");
            Some(view)
        }
        Err(error) => {
            tracing::warn!(network = %name, %error, "the last view on disk is not usable; waiting for the store");
            None
        }
    }
}
