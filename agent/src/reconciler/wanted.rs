//! The decision about what the kernel should hold, from what the store, the host and this node's leases say.

use std::collections::{BTreeMap, BTreeSet};

use flatnet_controlplane::watch::Source;
use flatnet_core::desired::{Desired, HostInput, NetworkInput, admit, admit_changes, desired};
use flatnet_core::diff::Prune;
use flatnet_core::exposure::Exposure;
use flatnet_core::host_ranges;
use flatnet_core::object::{KernelState, Link, LinkKind, SetName, TunnelId};
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_core::transition::Said;
use flatnet_core::underlay;
use flatnet_kernel::Kernel;
use flatnet_model::{
    BackendConfig, HostRanges, IfName, IpFamily, Lease, NetworkConfig, NetworkName, Revision, SubnetKey, Vni,
    WireguardKey,
};

use super::{Judgement, Reconciler};
use crate::networks::Held;

/// The state that is wanted, and what it was decided from.
pub(super) struct Wanted {
    pub desired: Desired,
    pub judgements: BTreeMap<NetworkName, Judgement>,
    pub problems: Vec<Problem>,
    /// The tunnels of networks that are programmed: for these it is known who may send.
    programmed: BTreeSet<(TunnelId, IpFamily)>,
    /// `Yes` if everything that may be wanted is known, so that what is not wanted may go.
    pub prune: Prune,
    pub revision: Revision,
    /// The ranges that this host uses itself.
    pub ranges: HostRanges,
    /// The key that WireGuard devices should have, if there is any.
    pub wireguard: Option<WireguardKey>,
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
}

impl<K: Kernel> Reconciler<K> {
    /// Decides what the kernel should hold.
    pub(super) fn want(&mut self) -> Wanted {
        let mut problems = Vec::new();
        let held: Vec<Option<Held>> =
            self.ports.iter_mut().map(|port| port.holding.borrow_and_update().held.clone()).collect();
        let families: Vec<IpFamily> = IpFamily::BOTH
            .into_iter()
            .filter(|family| held.iter().flatten().any(|held| held.config.pool(*family).is_some()))
            .collect();
        match underlay::select(&self.facts, &self.host.selection, &families) {
            Ok(found) => {
                let (underlay, lost) = match self.underlay.as_ref().or(self.underlay_record.last()) {
                    Some(last) => found.keeping(last, &families),
                    None => (found, Vec::new()),
                };
                problems.extend(lost.into_iter().map(|family| lost_address(underlay.device, family)));
                self.underlay = Some(underlay);
            }
            Err(error) => {
                let device = self.underlay.as_ref().map_or_else(String::new, |underlay| underlay.device.to_string());
                problems.push(Problem::new(ProblemCode::UnderlayMissing, error.to_string(), error.hint(), device));
            }
        }
        for port in &mut self.ports {
            // The view is marked as seen before it is read: what comes in between wakes the loop again.
            port.view.mark_unchanged();
        }
        let wireguard = self.wireguard_key(&held);
        let subnets: Vec<SubnetKey> = held.iter().flatten().map(|held| held.subnets).collect();
        let store = self.host.store();
        let ranges = host_ranges::own(&self.facts, &subnets, &store);
        // Each is borrowed once: a second borrow by the same task would wait for a writer that waits for the first.
        let views: Vec<_> = self.ports.iter().map(|port| port.view.borrow()).collect();
        // Pruning needs the whole truth: the store's own snapshot of every network, and this node's hold on each
        // network that can be held.
        let prune = self.underlay.is_some()
            && views.iter().zip(&held).all(|(view, held)| {
                view.source == Source::Store && (held.is_some() || view.state.valid_config().is_none())
            });
        let revision = views.iter().map(|view| view.state.revision).max().unwrap_or_default();
        let Some(underlay) = &self.underlay else {
            return Wanted {
                desired: Desired::default(),
                judgements: BTreeMap::new(),
                problems,
                programmed: BTreeSet::new(),
                prune: Prune::No,
                revision,
                ranges,
                wireguard: None,
            };
        };
        let peers: Vec<Vec<&Lease>> = views
            .iter()
            .zip(&held)
            .map(|(view, held)| match held {
                None => Vec::new(),
                Some(held) => {
                    let resolution = view.state.resolve(&held.config);
                    problems.extend(resolution.refused.iter().map(|refused| {
                        Problem::new(
                            ProblemCode::LeaseRefused,
                            format!("the lease {} does not hold: {}", refused.subnets, refused.reason),
                            "remove or correct that key in the store",
                            refused.subnets,
                        )
                    }));
                    let own = |lease: &&Lease| lease.subnets == held.subnets || lease.is_owned_by(self.host.node);
                    resolution.leases.into_iter().filter(|lease| !own(lease)).collect()
                }
            })
            .collect();
        let said: Vec<Said<'_>> = std::iter::zip(&views, &held)
            .map(|(view, held)| {
                let Some(held) = held else { return Said::default() };
                let own = |lease: &&Lease| lease.is_owned_by(self.host.node);
                Said { read: view.state.leases.get(&held.subnets).filter(own), unread: &held.unread }
            })
            .collect();
        let inputs: Vec<NetworkInput<'_>> = self
            .ports
            .iter()
            .zip(&held)
            .zip(std::iter::zip(&peers, &said))
            .filter_map(|((port, held), (peers, said))| {
                let held = held.as_ref()?;
                Some(NetworkInput {
                    name: &port.name,
                    config: &held.config,
                    before: &held.before,
                    own: held.subnets,
                    said: *said,
                    peers,
                    bridge: port.bridge,
                    masquerade: self.host.masquerade,
                    guard: self.guards.iter().find(|guard| guard.name == port.name),
                })
            })
            .collect();
        let changed: Vec<Option<&NetworkConfig>> = std::iter::zip(&views, &held)
            .filter_map(|(view, held)| {
                let in_force = &held.as_ref()?.config;
                Some(view.state.valid_config().filter(|stored| *stored != in_force))
            })
            .collect();
        let kept_from = self.host.endpoints.borrow_and_update().iter().copied().collect();
        let exposure = Exposure { store: kept_from, ..self.host.exposure.clone() };
        let input = HostInput {
            node: self.host.node,
            wireguard: wireguard.as_ref().map(|key| *key),
            underlay,
            facts: &self.facts,
            store: &store,
            exposure: &exposure,
            networks: &inputs,
        };
        let mut desired = desired(&input);
        let prune = match (prune, desired.unsettled) {
            (true, false) => Prune::Yes,
            (true, true) => Prune::Settled,
            (false, _) => Prune::No,
        };
        let unheld = self.ports.iter().zip(&views).zip(&held).filter(|(_, held)| held.is_none());
        let mut judgements: BTreeMap<NetworkName, Judgement> = unheld
            .filter_map(|((port, view), _)| {
                let config = view.state.valid_config()?;
                Some((port.name.clone(), self.judge(&input, &port.name, config)))
            })
            .collect();
        judgements.extend(judge_changes(&input, &changed));
        let held: Vec<NetworkName> = inputs.iter().map(|network| network.name.clone()).collect();
        let made = std::mem::take(&mut desired.guards);
        let tunnels = made.iter().flat_map(|guard| &guard.tunnels);
        let programmed = tunnels.map(|tunnel| (tunnel.id, tunnel.family)).collect();
        // The guard of a network that is not programmed now stays known for as long as the network is held.
        self.guards.retain(|guard| held.contains(&guard.name) && made.iter().all(|new| new.name != guard.name));
        self.guards.extend(made);
        Wanted { desired, judgements, problems, programmed, prune, revision, ranges, wireguard: wireguard.ok() }
    }

    /// Returns true if any network has, or is about to have, GRE tunnels here.
    pub(super) fn wants_gre(&self) -> bool {
        let is_gre = |backend: &BackendConfig| matches!(backend, BackendConfig::Gre(_));
        self.ports.iter().any(|port| {
            port.holding.borrow().held.as_ref().is_some_and(|held| held.backends().any(is_gre))
                || port.view.borrow().state.valid_config().is_some_and(|config| is_gre(&config.backend))
        })
    }

    /// Returns this host's WireGuard key, which is made only once a network needs one.
    fn wireguard_key(&self, held: &[Option<Held>]) -> Result<WireguardKey, Problem> {
        let is_wireguard = |backend: &BackendConfig| matches!(backend, BackendConfig::Wireguard(_));
        let stored = |config: &NetworkConfig| is_wireguard(&config.backend);
        let needed = held.iter().flatten().any(|held| held.backends().any(is_wireguard))
            || self.ports.iter().any(|port| port.view.borrow().state.valid_config().is_some_and(stored));
        if needed {
            return self.wireguard.public();
        }
        let why = "no network of this host is WireGuard's";
        Err(Problem::new(ProblemCode::WireguardNoKey, why, "", ""))
    }

    /// Judges whether a lease may be taken in a network that has a configuration and no lease yet.
    fn judge(&self, input: &HostInput<'_>, name: &NetworkName, config: &NetworkConfig) -> Judgement {
        let refused = admit(input, name, config).err().or_else(|| self.left_by_flanneld(config));
        Judgement { config: config.clone(), refused }
    }

    /// Returns the problem of flanneld's device that holds a VNI which `config` needs, unless the device is to be taken
    /// over. Publishing our tunnel's address while that device still receives would cut this host off.
    fn left_by_flanneld(&self, config: &NetworkConfig) -> Option<Problem> {
        let BackendConfig::Vxlan(vxlan) = &config.backend else { return None };
        let families = IpFamily::BOTH.into_iter().filter(|family| config.pool(*family).is_some());
        let mut names = families.filter_map(|family| flannel_device(vxlan.vni, family));
        let is_there = |name: &IfName| self.facts.interface(*name).is_some_and(|interface| !interface.ours);
        names.find(|name| !self.host.take_over && is_there(name)).map(|name| left_by_flanneld(name, "in use"))
    }
}

/// Judges whether the configurations that the store has by now (`changed`, in the order of the networks held) may come
/// into force.
fn judge_changes(
    input: &HostInput<'_>,
    changed: &[Option<&NetworkConfig>],
) -> impl Iterator<Item = (NetworkName, Judgement)> {
    let verdicts = input.networks.iter().zip(changed).zip(admit_changes(input, changed));
    verdicts.filter_map(|((network, config), verdict)| {
        let judgement = Judgement { config: (*config)?.clone(), refused: verdict?.err() };
        Some((network.name.clone(), judgement))
    })
}

/// Returns the names that flanneld would give the devices we want, each with our device: flanneld's devices hold the
/// VNIs we need.
pub(super) fn flannel_devices(desired: &KernelState) -> impl Iterator<Item = (IfName, &Link)> {
    desired.links.values().filter_map(|link| match &link.kind {
        LinkKind::Vxlan(vxlan) => Some((flannel_device(vxlan.vni, IpFamily::of(vxlan.local))?, link)),
        LinkKind::Bridge | LinkKind::Wireguard(_) | LinkKind::Gre(_) | LinkKind::Gre6(_) => None,
    })
}

/// Returns flanneld's name for its tunnel device (`vxlan.go`: `flannel.%v`, `flannel-v6.%v`).
fn flannel_device(vni: Vni, family: IpFamily) -> Option<IfName> {
    IfName::new(&match family {
        IpFamily::V4 => format!("flannel.{vni}"),
        IpFamily::V6 => format!("flannel-v6.{vni}"),
    })
    .ok()
}

/// Returns the problem of a device that flanneld left and that is not to be taken over.
pub(super) fn left_by_flanneld(device: IfName, what: &str) -> Problem {
    Problem::new(
        ProblemCode::FlannelDevice,
        format!("{device} ({what}) was left by flanneld and holds the VNI this network needs"),
        "stop flanneld on this host, then join with --take-over: the subnet is kept",
        device,
    )
}

fn lost_address(device: IfName, family: IpFamily) -> Problem {
    Problem::new(
        ProblemCode::UnderlayMissing,
        format!("{device} has lost its {family} address; the last one stays in force"),
        format!("give {device} an {family} address again"),
        device,
    )
}
