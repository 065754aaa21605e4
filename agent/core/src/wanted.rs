//! The decision about what the kernel should hold, from what the store, the host and this node's leases say.
//!
//! [`want`] is asked at every pass. Whoever runs it gathers the [`Inputs`], and keeps what the next pass needs of this
//! one: the underlay, and each network's part of the guard ([`Wanted::remember`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flatnet_model::state::NetworkState;
use flatnet_model::{
    HostRanges, IfName, IpFamily, Lease, NetworkConfig, NetworkName, NodeId, Revision, SubnetKey, WireguardKey,
};

use crate::backend;
use crate::desired::{Desired, HostInput, NetworkInput, admit, admit_changes, desired};
use crate::diff::Prune;
use crate::exposure::Exposure;
use crate::facts::HostFacts;
use crate::firewall::FirewallNetwork;
use crate::host_ranges;
use crate::object::{KernelState, SetName, TunnelId};
use crate::outcome::Judgement;
use crate::problem::{Problem, ProblemCode};
use crate::transition::{Change, Stage};
use crate::underlay::{self, Selection, Underlay};

/// Everything that a pass decides from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// This node's identity.
    pub node: NodeId,
    /// The facts about the host, as they were found.
    pub facts: &'a HostFacts,
    /// The rules by which the underlay is chosen.
    pub selection: &'a Selection,
    /// The underlay of the last pass; `None`: no pass of this run has found one.
    pub underlay: Option<&'a Underlay>,
    /// The underlay that carried the tunnels when the last run ended, if that is known.
    pub recorded: Option<&'a Underlay>,
    /// The addresses of the store's endpoints, as far as they are known.
    pub store: &'a [IpAddr],
    /// The outsiders that may open connections into the networks, and the store endpoints that containers may not
    /// reach.
    pub exposure: &'a Exposure,
    /// The public half of the key with which this host encrypts, or the reason why there is none. `None`: it was not
    /// asked for, since no network needs it ([`backend::Needs`]).
    pub key: Option<&'a Result<WireguardKey, Problem>>,
    /// True if traffic that leaves a network is masqueraded.
    pub masquerade: bool,
    /// True if a tunnel device that another program left is replaced.
    pub take_over: bool,
    /// Each network's part of the guard, as it was programmed last in this run.
    pub guards: &'a [FirewallNetwork],
    /// The networks that this host has joined, in that order.
    pub networks: &'a [Joined<'a>],
}

/// One network that this host has joined.
#[derive(Clone, Copy, Debug)]
pub struct Joined<'a> {
    /// The network's name.
    pub name: &'a NetworkName,
    /// The network as the store has it.
    pub state: &'a NetworkState,
    /// True if the state is a whole snapshot of the store in this run.
    pub is_whole: bool,
    /// This node's hold on the network, if it has one.
    pub held: Option<Hold<'a>>,
    /// The bridge of our own in this network, if it has one.
    pub bridge: Option<IfName>,
}

/// This node's hold on a network.
#[derive(Clone, Copy, Debug)]
pub struct Hold<'a> {
    /// The subnets held.
    pub subnets: SubnetKey,
    /// The configuration in force.
    pub config: &'a NetworkConfig,
    /// The change of the network's backend that this host is in.
    pub change: &'a Change,
}

/// The state that is wanted, and what else follows from the inputs.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The objects that the kernel should have, and the outcome for each network that is held.
    pub desired: Desired,
    /// Judgements of configurations that are not in force.
    pub judgements: BTreeMap<NetworkName, Judgement>,
    /// Problems beside those of `desired`.
    pub problems: Vec<Problem>,
    /// The objects of ours that are not wanted and may go.
    pub prune: Prune,
    /// The store's revision of the newest network.
    pub revision: Revision,
    /// The ranges that this host uses itself.
    pub ranges: HostRanges,
    /// The public half of the key that this host's devices should have, if there is one.
    pub key: Option<WireguardKey>,
    /// The underlay: the one found now, or else the last one. Without any, nothing is wanted.
    pub underlay: Option<Underlay>,
    /// The tunnels of networks that are programmed: for these it is known who may send.
    programmed: BTreeSet<(TunnelId, IpFamily)>,
}

impl Wanted {
    /// Keeps what waiting networks have in the kernel.
    pub fn keep(&mut self, found: &KernelState) {
        self.desired.keep_waiting(found);
        self.keep_guard(found);
    }

    /// Keeps the guard that an earlier run left while a network waits that was not programmed in this run: its peers
    /// are in that table only. A guard that somebody has changed since is not kept: then the tunnels of such a network
    /// are shut.
    fn keep_guard(&mut self, found: &KernelState) {
        if !self.desired.guard_unknown {
            return;
        }
        if let Some(loaded) = &found.ruleset {
            self.desired.state.ruleset = Some(loaded.clone());
        }
        let Some(ruleset) = &self.desired.state.ruleset else { return };
        let is_known = |set: &SetName| self.programmed.contains(&(set.tunnel, set.family));
        let sets: BTreeSet<SetName> = ruleset.sets().filter(|set| !is_known(set)).collect();
        self.desired.state.peer_sources.extend(found.peer_sources.iter().filter(|source| sets.contains(&source.set)));
    }

    /// Brings `guards`, the next pass's [`Inputs::guards`], up to date. The guard of a network that is not programmed
    /// now stays known for as long as the network is held.
    pub fn remember(&mut self, guards: &mut Vec<FirewallNetwork>) {
        if self.underlay.is_none() {
            return;
        }
        let made = std::mem::take(&mut self.desired.guards);
        let is_held = |name: &NetworkName| self.desired.networks.iter().any(|network| network.name == *name);
        guards.retain(|guard| is_held(&guard.name) && made.iter().all(|new| new.name != guard.name));
        guards.extend(made);
    }
}

/// Decides what the kernel should hold.
#[must_use]
pub fn want(inputs: &Inputs<'_>) -> Wanted {
    let mut problems = Vec::new();
    let underlay = choose_underlay(inputs, &mut problems);
    let subnets: Vec<SubnetKey> = inputs.networks.iter().filter_map(|joined| Some(joined.held?.subnets)).collect();
    let nothing = Wanted {
        desired: Desired::default(),
        judgements: BTreeMap::new(),
        problems: Vec::new(),
        prune: Prune::No,
        revision: inputs.networks.iter().map(|joined| joined.state.revision).max().unwrap_or_default(),
        ranges: host_ranges::own(inputs.facts, &subnets, inputs.store),
        key: None,
        underlay: None,
        programmed: BTreeSet::new(),
    };
    let Some(underlay) = underlay else { return Wanted { problems, ..nothing } };
    let leases: Vec<Leases<'_>> =
        inputs.networks.iter().map(|joined| leases(inputs.node, joined, &mut problems)).collect();
    let networks = held_networks(inputs, &leases);
    let unneeded = backend::key_not_needed();
    let key = inputs.key.map_or(Err(&unneeded), |key| key.as_ref().map(|key| *key));
    let host = HostInput {
        node: inputs.node,
        key,
        underlay: &underlay,
        facts: inputs.facts,
        store: inputs.store,
        exposure: inputs.exposure,
        networks: &networks,
    };
    let desired = desired(&host);
    let judgements = judge(inputs, &host);
    let prune = prune(inputs, &desired);
    let tunnels = desired.guards.iter().flat_map(|guard| &guard.tunnels);
    let programmed = tunnels.map(|tunnel| (tunnel.id, tunnel.family)).collect();
    let key = key.ok();
    Wanted { desired, judgements, problems, prune, key, underlay: Some(underlay), programmed, ..nothing }
}

/// Returns the underlay. If none is found now, it is the one of the last pass.
fn choose_underlay(inputs: &Inputs<'_>, problems: &mut Vec<Problem>) -> Option<Underlay> {
    let held = || inputs.networks.iter().filter_map(|joined| joined.held);
    let families: Vec<IpFamily> =
        IpFamily::BOTH.into_iter().filter(|family| held().any(|held| held.config.pool(*family).is_some())).collect();
    match underlay::select(inputs.facts, inputs.selection, &families) {
        Ok(found) => {
            let (underlay, lost) = match inputs.underlay.or(inputs.recorded) {
                Some(last) => found.keeping(last, &families),
                None => (found, Vec::new()),
            };
            problems.extend(lost.into_iter().map(|family| lost_address(underlay.device, family)));
            Some(underlay)
        }
        Err(error) => {
            let device = inputs.underlay.map_or_else(String::new, |underlay| underlay.device.to_string());
            problems.push(Problem::new(ProblemCode::UnderlayMissing, error.to_string(), error.hint(), device));
            inputs.underlay.cloned()
        }
    }
}

/// The leases of a network that is held: those of its peers, and what follows from this host's own.
#[derive(Default)]
struct Leases<'a> {
    peers: Vec<&'a Lease>,
    stage: Stage<'a>,
}

/// Returns the leases of `joined`; those that do not hold are reported.
fn leases<'a>(node: NodeId, joined: &Joined<'a>, problems: &mut Vec<Problem>) -> Leases<'a> {
    let Some(held) = joined.held else { return Leases::default() };
    let resolution = joined.state.resolve(held.config);
    problems.extend(resolution.refused.iter().map(|refused| {
        Problem::new(
            ProblemCode::LeaseRefused,
            format!("the lease {} does not hold: {}", refused.subnets, refused.reason),
            "remove or correct that key in the store",
            refused.subnets,
        )
    }));
    let is_own = |lease: &&Lease| lease.subnets == held.subnets || lease.is_owned_by(node);
    let peers = resolution.leases.into_iter().filter(|lease| !is_own(lease)).collect();
    let read = joined.state.leases.get(&held.subnets).filter(|lease| lease.is_owned_by(node));
    Leases { peers, stage: held.change.stage(read) }
}

/// Returns the networks that are held, with the `leases` of all.
fn held_networks<'a>(inputs: &Inputs<'a>, leases: &'a [Leases<'a>]) -> Vec<NetworkInput<'a>> {
    std::iter::zip(inputs.networks, leases)
        .filter_map(|(joined, leases)| {
            let held = joined.held?;
            Some(NetworkInput {
                name: joined.name,
                config: held.config,
                own: held.subnets,
                stage: leases.stage,
                peers: &leases.peers,
                bridge: joined.bridge,
                masquerade: inputs.masquerade,
                guard: inputs.guards.iter().find(|guard| guard.name == *joined.name),
            })
        })
        .collect()
}

/// Decides what may be pruned. That needs the whole truth: the store's own snapshot of every network, and this node's
/// hold on each network that can be held.
fn prune(inputs: &Inputs<'_>, desired: &Desired) -> Prune {
    let is_known =
        |joined: &Joined<'_>| joined.is_whole && (joined.held.is_some() || joined.state.valid_config().is_none());
    match (inputs.networks.iter().all(is_known), desired.unsettled) {
        (true, false) => Prune::Yes,
        (true, true) => Prune::Settled,
        (false, _) => Prune::No,
    }
}

/// Judges the configurations in the store that are not in force: whether a lease may be taken under them, and whether
/// they may come into force.
fn judge(inputs: &Inputs<'_>, host: &HostInput<'_>) -> BTreeMap<NetworkName, Judgement> {
    let unheld = inputs.networks.iter().filter(|joined| joined.held.is_none());
    let mut judgements: BTreeMap<NetworkName, Judgement> = unheld
        .filter_map(|joined| {
            let config = joined.state.valid_config()?;
            let refused = admit(host, joined.name, config).err().or_else(|| rival(inputs, config));
            Some((joined.name.clone(), Judgement { config: config.clone(), refused }))
        })
        .collect();
    let changed: Vec<Option<&NetworkConfig>> = inputs
        .networks
        .iter()
        .filter_map(|joined| {
            let in_force = joined.held?.config;
            Some(joined.state.valid_config().filter(|stored| *stored != in_force))
        })
        .collect();
    let verdicts = host.networks.iter().zip(&changed).zip(admit_changes(host, &changed));
    judgements.extend(verdicts.filter_map(|((network, config), verdict)| {
        let judgement = Judgement { config: (*config)?.clone(), refused: verdict?.err() };
        Some((network.name.clone(), judgement))
    }));
    judgements
}

/// Returns the problem of another program's device that has what a tunnel of `config` needs, unless the device is to
/// be taken over. Publishing our tunnel's address while that device still receives would cut this host off.
fn rival(inputs: &Inputs<'_>, config: &NetworkConfig) -> Option<Problem> {
    let is_there = |name: &IfName| inputs.facts.interface(*name).is_some_and(|interface| !interface.ours);
    let found = backend::rivals(config).into_iter().find(is_there).filter(|_| !inputs.take_over);
    found.map(|name| backend::rival_problem(name, "in use"))
}

fn lost_address(device: IfName, family: IpFamily) -> Problem {
    Problem::new(
        ProblemCode::UnderlayMissing,
        format!("{device} has lost its {family} address; the last one stays in force"),
        format!("give {device} an {family} address again"),
        device,
    )
}

#[cfg(test)]
mod tests;
