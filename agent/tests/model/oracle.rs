//! The oracle: what must be, computed from the store's content alone, by nobody's memory.

use std::collections::{BTreeMap, BTreeSet};

use flatnet_core::backend;
use flatnet_core::desired::{HostInput, NetworkInput, desired};
use flatnet_core::object::KernelState;
use flatnet_core::outcome::WayOutcome;
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_core::transition;
use flatnet_core::underlay::{self, Selection};
use flatnet_kernel::{Kernel, Questions};
use flatnet_model::keys::{NetworkKeys, presence};
use flatnet_model::state::{ConfigState, NetworkState};
use flatnet_model::{IpFamily, Lease, NetworkConfig, NodeId, Revision, SubnetKey, ipam};
use flatnet_plane::flannel::{decode_change, decode_config};
use flatnet_plane::store::memory::MemoryStore;
use flatnet_plane::store::{KeyValue, WatchEvent};
use ipnet::IpNet;

use crate::world::{Slot, World};

type Content = BTreeMap<Vec<u8>, KeyValue>;

/// Returns one network as the store has it, read at once.
fn state(content: &Content, keys: &NetworkKeys) -> NetworkState {
    let mut state = NetworkState::default();
    for kv in content.values() {
        if let Some(change) = decode_change(keys, &WatchEvent::Put(kv.clone())) {
            state.apply(change);
        }
    }
    state
}

/// Returns the usable configuration in the store.
pub fn configuration(store: &MemoryStore, keys: &NetworkKeys) -> Option<NetworkConfig> {
    store.dump().get(keys.config().as_bytes()).and_then(|kv| decode_config(&kv.value).ok()).map(|(config, _)| config)
}

/// Returns the key of every lease.
pub fn lease_keys(store: &MemoryStore, keys: &NetworkKeys) -> Vec<String> {
    state(&store.dump(), keys).leases.keys().map(|subnets| keys.lease(subnets)).collect()
}

/// Returns the keys that name subnets and hold what cannot be read.
pub fn unreadable_leases(store: &MemoryStore, keys: &NetworkKeys) -> Vec<String> {
    let names = |key: &String| key.strip_prefix(&keys.subnets()).is_some_and(|name| name.parse::<SubnetKey>().is_ok());
    state(&store.dump(), keys).rejected.into_keys().filter(names).collect()
}

/// Returns the keys of leases that no agent of ours holds.
pub fn strangers(store: &MemoryStore, keys: &NetworkKeys) -> Vec<String> {
    let state = state(&store.dump(), keys);
    state.leases.values().filter(|lease| lease.owner.is_none()).map(|lease| keys.lease(&lease.subnets)).collect()
}

/// Returns the subnet of the lease of `node` that was written after `revision`, if there is one.
pub fn written_since(store: &MemoryStore, keys: &NetworkKeys, node: NodeId, revision: Revision) -> Option<SubnetKey> {
    let state = state(&store.dump(), keys);
    let mut leases = state.leases.values();
    leases.find(|lease| lease.is_owned_by(node) && lease.mod_revision > revision).map(|lease| lease.subnets)
}

/// Returns true if `subnets` could have been leased under `config`.
pub fn fits(config: &NetworkConfig, subnets: SubnetKey) -> bool {
    IpFamily::BOTH.into_iter().all(|family| match (config.pool(family), subnets.of(family)) {
        (Some(pool), Some(net)) => pool.network().contains(&net) && pool.subnet_len() == net.prefix_len(),
        (pool, net) => pool.is_none() && net.is_none(),
    })
}

/// Returns a description of two nodes with leases that overlap, if there are any.
pub fn two_owners(store: &MemoryStore, networks: &[NetworkKeys]) -> Option<String> {
    let content = store.dump();
    for keys in networks {
        let state = state(&content, keys);
        let owned: Vec<(NodeId, &Lease)> =
            state.leases.values().filter_map(|lease| Some((lease.owner.as_ref()?.node, lease))).collect();
        for (index, (node, lease)) in owned.iter().enumerate() {
            for (other, second) in &owned[index + 1..] {
                if node != other && overlap(&lease.subnets, &second.subnets) {
                    return Some(format!("two owners: {} of {node} and {} of {other}", lease.subnets, second.subnets));
                }
            }
        }
    }
    None
}

fn overlap(a: &SubnetKey, b: &SubnetKey) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.contains(&b) || b.contains(&a)))
}

/// Checks that everything is exact. An error says what is not.
pub async fn settled(world: &World) -> Result<(), String> {
    let content = world.store.dump();
    present(world, &content)?;
    for network in &world.networks {
        restored(world, &content, &network.keys)?;
        owned_by_the_living(world, &content, &network.keys)?;
    }
    let revoked = world.revoked();
    for slot in world.slots.iter().filter(|slot| slot.running.is_some()) {
        if revoked.contains(&world.owner(slot.index).node) {
            // The lease that the node held is gone, which is checked above. What the node still does is its own affair.
            continue;
        }
        host(world, slot, &content).await.map_err(|why| format!("n{}: {why}", slot.index))?;
    }
    Ok(())
}

/// Checks that the nodes that run are present, and nobody else.
fn present(world: &World, content: &Content) -> Result<(), String> {
    let found: BTreeSet<Vec<u8>> = content.keys().filter(|key| key.starts_with(b"/flatnet/nodes/")).cloned().collect();
    let revoked = world.revoked();
    let running = world.slots.iter().filter(|slot| slot.running.is_some());
    let running = running.filter(|slot| !revoked.contains(&world.owner(slot.index).node));
    let wanted: BTreeSet<Vec<u8>> = running.map(|slot| presence(world.owner(slot.index).node).into_bytes()).collect();
    if found == wanted { Ok(()) } else { Err(format!("{} nodes are present, {} run", found.len(), wanted.len())) }
}

/// Checks that a configuration that somebody removed stays away, and that one that was lost with the store comes back,
/// if a node that still runs could tell the two apart. Such a node followed the store and had seen far more of it than
/// there was afterwards, or it has found out otherwise. A store that has grown past what anybody saw looks exactly like
/// one whose configuration was removed.
fn restored(world: &World, content: &Content, keys: &NetworkKeys) -> Result<(), String> {
    let there = content.contains_key(keys.config().as_bytes());
    let removed = world.removed.contains(keys.network());
    if there && removed && !world.went_back {
        return Err(format!("{} came back although it was removed", keys.config()));
    }
    match world.owed.get(keys.network()) {
        Some(witness) if !there && !removed => Err(format!("{} is lost although n{witness} knows it", keys.config())),
        _ => Ok(()),
    }
}

/// Checks that each lease of ours is of a node that runs, at most one each.
fn owned_by_the_living(world: &World, content: &Content, keys: &NetworkKeys) -> Result<(), String> {
    let state = state(content, keys);
    let (mut seen, revoked) = (BTreeSet::new(), world.revoked());
    for lease in state.leases.values() {
        let Some(owner) = &lease.owner else { continue };
        let running =
            world.slots.iter().any(|slot| slot.running.is_some() && world.owner(slot.index).node == owner.node);
        if !running {
            return Err(format!("{} is still there, of {}, which is gone", lease.subnets, owner.name));
        }
        if revoked.contains(&owner.node) {
            return Err(format!("{} is still there, of {}, which was revoked", lease.subnets, owner.name));
        }
        if !seen.insert(owner.node) {
            return Err(format!("{} has two leases", owner.name));
        }
        if lease.etcd_lease.is_none() {
            return Err(format!("{} would never expire", lease.subnets));
        }
    }
    Ok(())
}

/// Checks what one host must have and say.
async fn host(world: &World, slot: &Slot, content: &Content) -> Result<(), String> {
    let Some(running) = &slot.running else { return Ok(()) };
    let node = world.owner(slot.index).node;
    let asked = Questions { gre: true, ..Questions::host([]) };
    let facts = slot.kernel.facts(&asked).await.map_err(|error| error.to_string())?.host;
    let source = running.node.status();
    let mut codes = BTreeSet::new();
    let mut may = BTreeSet::new();
    let mut held = Vec::new();
    let mut starting = false;
    // A device that flanneld left is in the way or not, depending on the networks' identifiers. That it exists is
    // enough for the node to be allowed to say so.
    let left_by_flanneld = slot.foreign.links.keys().any(|name| name.as_str().starts_with("flannel"));
    for (network, port) in world.networks.iter().zip(&source.ports()) {
        let state = state(content, &network.keys);
        codes.extend(state.rejected.keys().map(|_| "key-rejected".to_owned()));
        match &state.config {
            ConfigState::Missing => drop(codes.insert("no-config".to_owned())),
            ConfigState::Invalid(_) => drop(codes.insert("config-invalid".to_owned())),
            ConfigState::Valid(_) => {}
        }
        match port.holding.borrow().held.clone() {
            Some(now) => {
                let config = match state.valid_config() {
                    Some(config) if fits(config, now.subnets) => config.clone(),
                    Some(_) => {
                        codes.insert("network-changed".to_owned());
                        now.config.clone()
                    }
                    None => now.config.clone(),
                };
                let others = || state.leases.values().filter(|lease| !lease.is_owned_by(node));
                // A node that has not published the next backend gives nothing up. If it should have published it is
                // looked at with its lease below.
                let has_followed = |lease: &Lease| {
                    lease.backend == now.config.backend.kind() && lease.under(&now.config.backend).is_some()
                };
                let published = state.leases.values().any(|lease| lease.is_owned_by(node) && has_followed(lease));
                let all_follow = published
                    && others().all(|lease| lease.owner.is_none() || lease.under(&now.config.backend).is_some());
                let unneeded = |backend: &&flatnet_model::BackendConfig| {
                    all_follow && !others().any(|lease| lease.under(backend).is_some_and(|(_, sends)| sends))
                };
                if let Some(backend) = now.change.earlier().iter().find(unneeded) {
                    return Err(format!("it keeps {}, which nobody sends by", backend.kind()));
                }
                held.push(Some((now.subnets, config, state, now.change)));
            }
            None => {
                starting = true;
                match without_lease(&state) {
                    Ok(code) => codes.extend(code),
                    Err(_) if left_by_flanneld => {}
                    Err(why) => return Err(why),
                }
                held.push(None);
            }
        }
    }
    let families: Vec<IpFamily> = IpFamily::BOTH
        .into_iter()
        .filter(|family| held.iter().flatten().any(|(_, config, ..)| config.pool(*family).is_some()))
        .collect();
    let underlay = underlay::select(&facts, &Selection::default(), &families).map_err(|error| error.to_string())?;
    let resolved: Vec<Vec<&Lease>> = held
        .iter()
        .map(|held| {
            let Some((own, config, state, _)) = held else { return Vec::new() };
            let resolution = state.resolve(config);
            codes.extend(resolution.refused.iter().map(|_| "lease-refused".to_owned()));
            resolution.leases.into_iter().filter(|lease| lease.subnets != *own && !lease.is_owned_by(node)).collect()
        })
        .collect();
    let inputs: Vec<NetworkInput<'_>> = world
        .networks
        .iter()
        .zip(&held)
        .zip(&resolved)
        .filter_map(|((network, held), peers)| {
            let (own, config, state, change) = held.as_ref()?;
            let name = network.keys.network();
            let read = state.leases.get(own).filter(|lease| lease.is_owned_by(node));
            Some(NetworkInput {
                name,
                config,
                own: *own,
                stage: change.stage(read),
                peers,
                bridge: None,
                masquerade: true,
                guard: None,
            })
        })
        .collect();
    let none = Problem::new(ProblemCode::WireguardNoKey, "no device has a key", "", "");
    let key = source.outcome.borrow().key;
    let wanted = desired(&HostInput {
        store: &[],
        node,
        key: key.ok_or(&none),
        underlay: &underlay,
        facts: &facts,
        exposure: &flatnet_core::exposure::Exposure::default(),
        networks: &inputs,
    });
    codes.extend(wanted.problems.iter().map(|problem| problem.code.to_string()));
    let own_links = slot.kernel.state().links;
    for (network, held) in world.networks.iter().zip(&held) {
        let Some((own, config, state, _)) = held else { continue };
        let name = network.keys.network();
        let made = wanted.networks.iter().find(|made| made.name == *name);
        // The tunnel of a device that is somebody else's takes no packets: peers must not be told of it.
        let is_there = |way: &&WayOutcome| {
            let devices = &way.devices;
            !devices.iter().any(|device| slot.foreign.links.contains_key(device) && !own_links.contains_key(device))
        };
        let ways: Vec<_> = made.into_iter().flat_map(|made| &made.ways).filter(is_there).collect();
        let published = match ways.iter().any(|way| way.backend != config.backend) {
            true => transition::publication(node, key, name, config, &underlay, &ways),
            false => backend::publication(node, key, name, config, &underlay),
        };
        if !state.leases.values().any(|lease| lease.is_owned_by(node)) {
            codes.insert("lease-unconfirmed".to_owned());
        } else if state.valid_config().is_none() {
            // Nobody claims anything, and so the node may not have had its lease confirmed in this run.
            may.insert("lease-unconfirmed".to_owned());
        }
        let stored = configuration(&world.store, &network.keys);
        if world.servers.is_some() && stored.is_some_and(|stored| !fits(&stored, *own)) {
            // A server gives a subnet that was lost outside of the network as it is now to nobody again. The node says
            // so.
            may.insert("subnet-outside".to_owned());
            if state.leases.values().all(|lease| !lease.is_owned_by(node)) {
                may.insert("subnet-lost".to_owned());
                continue;
            }
        }
        own_lease(node, *own, state, published.ok().as_ref(), &mut codes, &mut may)?;
    }
    let kernel = slot.kernel.state();
    // This holds while another network has no lease, too: those that have one are programmed.
    let blocked = in_the_way(slot, &wanted.state, &kernel);
    if blocked {
        codes.insert("foreign-object".to_owned());
    }
    if !starting {
        same(&wanted.state, &kernel, blocked)?;
    }
    if left_by_flanneld {
        may.insert("flannel-device".to_owned());
        if starting && codes.remove("subnets-exhausted") {
            // The problem that the node reports depends on the network that the device is in the way of.
            may.insert("subnets-exhausted".to_owned());
        }
    }
    said(&source.status(), &codes, &may, starting)
}

/// Checks that there is a reason for having no lease. Returns the code of its problem.
fn without_lease(state: &NetworkState) -> Result<Option<String>, String> {
    let Some(config) = state.valid_config() else { return Ok(None) };
    let leased: Vec<IpNet> = state.leases.keys().flat_map(SubnetKey::iter).collect();
    if config.pools().all(|pool| ipam::choose(pool, &leased, &[], 0).is_ok()) {
        return Err(format!("no lease although one of {} is free", config.pools().count()));
    }
    Ok(Some("subnets-exhausted".to_owned()))
}

/// Checks that the store has what the node holds, with what the node is reached by, or that the node says that it has
/// not.
fn own_lease(
    node: NodeId,
    own: SubnetKey,
    state: &NetworkState,
    wanted: Option<&flatnet_model::Publication>,
    codes: &mut BTreeSet<String>,
    may: &mut BTreeSet<String>,
) -> Result<(), String> {
    match state.leases.values().find(|lease| lease.is_owned_by(node)) {
        Some(lease) if lease.subnets != own => Err(format!("it holds {own}, the store says {}", lease.subnets)),
        Some(lease) if wanted.is_some_and(|wanted| lease.publication() != *wanted) => {
            Err(format!("{own} does not say how it is reached: {:?}", lease.publication()))
        }
        Some(_) => Ok(()),
        None if state.leases.keys().any(|other| overlap(other, &own)) => {
            // Without a configuration nobody claims anything, and so the node may not find out.
            let said = if state.valid_config().is_some() { codes } else { may };
            said.insert("subnet-lost".to_owned());
            Ok(())
        }
        // Without a configuration nobody claims anything.
        None if state.valid_config().is_none() => Ok(()),
        None => Err(format!("{own} is not claimed although nobody else has it")),
    }
}

fn in_the_way(slot: &Slot, wanted: &KernelState, kernel: &KernelState) -> bool {
    let foreign = &slot.foreign;
    foreign.links.keys().any(|name| wanted.links.contains_key(name) && !kernel.links.contains_key(name))
        || foreign.nexthops.iter().any(|id| wanted.nexthops.contains_key(id) && !kernel.nexthops.contains_key(id))
        || foreign.routes.iter().any(|key| wanted.routes.contains_key(key) && !kernel.routes.contains_key(key))
}

/// Checks that the kernel holds what is wanted: all of it unless something foreign is in the way, and nothing else.
fn same(wanted: &KernelState, kernel: &KernelState, blocked: bool) -> Result<(), String> {
    let all = |name: &str, missing: Vec<String>, extra: Vec<String>| {
        if !extra.is_empty() {
            return Err(format!("its kernel has too much: {name} {extra:?}"));
        }
        if !missing.is_empty() && !blocked {
            return Err(format!("its kernel lacks {name} {missing:?}"));
        }
        Ok(())
    };
    macro_rules! compare {
        ($($kind:ident),*) => {$(
            let missing = wanted.$kind.iter().filter(|entry| !kernel.$kind.iter().any(|other| other == *entry));
            let missing = missing.map(|entry| format!("{entry:?}")).collect();
            let extra = kernel.$kind.iter().filter(|entry| !wanted.$kind.iter().any(|other| other == *entry));
            let extra = extra.map(|entry| format!("{entry:?}")).collect();
            all(stringify!($kind), missing, extra)?;
        )*};
    }
    compare!(peer_sources, links, addresses, neighbours, fdb, wireguard_peers, nexthops, routes, iptables);
    if let Some((altered, _)) = kernel.altered.first_key_value() {
        return Err(format!("its kernel has {altered:?} altered"));
    }
    if wanted.ruleset != kernel.ruleset {
        return Err("its kernel has another table".to_owned());
    }
    let unset = wanted.sysctls.iter().find(|(sysctl, value)| kernel.sysctls.get(*sysctl) != Some(*value));
    match unset {
        Some((sysctl, value)) if !blocked => Err(format!("its kernel has not {sysctl}={value}")),
        _ => Ok(()),
    }
}

/// Checks that the status says what is wrong: all of `codes`, perhaps some of `may`, and nothing else.
fn said(
    status: &flatnet_proto::agent::v1::Status,
    codes: &BTreeSet<String>,
    may: &BTreeSet<String>,
    starting: bool,
) -> Result<(), String> {
    let found: BTreeSet<String> = status.problems.iter().map(|problem| problem.code.to_string()).collect();
    let allowed: BTreeSet<String> = codes.union(may).cloned().collect();
    if !found.is_superset(codes) || !found.is_subset(&allowed) {
        let messages: Vec<&str> = status.problems.iter().map(|problem| problem.message.as_str()).collect();
        return Err(format!("it says {found:?} and should say {codes:?}: {messages:?}"));
    }
    let wanted = match (starting, found.is_empty()) {
        (true, _) => "starting",
        (false, true) => "converged",
        (false, false) => "degraded",
    };
    if status.state != wanted {
        return Err(format!("it says {} and should say {wanted}", status.state));
    }
    Ok(())
}
