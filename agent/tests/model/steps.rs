//! The run of one seed: random steps, then quiet, then exactness.

use std::collections::BTreeMap;
use std::time::Duration;

use flatnet_core::object::{Foreign, NexthopId, RouteKey};
use flatnet_core::op::{Action, ObjectKind};
use flatnet_kernel::fake::Strike;
use flatnet_model::{BackendData, BackendKind, IfName, Mac, NetworkName, Publication, Revision, SubnetKey, Vni};
use flatnet_plane::flannel::encode_lease;
use flatnet_plane::store::memory::{Fault, Link, MemoryStore};
use ipnet::IpNet;

use crate::attack::{self, Attack};
use crate::oracle;
use crate::world::{BACKENDS, Slot, World, config, strangers_address};

/// The numbers that Linux gives these errors (asm-generic/errno-base.h, errno.h).
const ERRNOS: [i32; 4] = [17, 105, 16, 19];
const ACTIONS: [Action; 4] = [Action::Create, Action::Change, Action::Replace, Action::Delete];

/// Runs the world through its steps and to its end.
pub async fn run(world: &mut World) -> Result<(), String> {
    let steps = 8 + world.chance.below(40);
    for server in 0..world.servers.as_ref().map_or(0, |servers| servers.clients.len()) {
        world.start_server(server).await;
    }
    for index in 0..world.slots.len() {
        if !world.chance.one_in(4) {
            world.start(index).await;
        }
    }
    for _ in 0..steps {
        let pause = match world.chance.below(12) {
            0..7 => world.chance.millis(0, 120),
            7..10 => world.chance.millis(100, 3_000),
            10 => world.chance.millis(3_000, 20_000),
            _ => world.chance.millis(20_000, 80_000),
        };
        world.pass(pause).await?;
        if world.servers.is_some() && world.chance.one_in(3) {
            world.server_step().await;
        } else {
            step(world).await;
        }
        world.look().await?;
    }
    calm(world).await?;
    settle(world).await
}

async fn step(world: &mut World) {
    let index = world.chance.below(world.slots.len());
    let running = world.slots[index].running.is_some();
    match world.chance.below(100) {
        0..14 if !running => world.start(index).await,
        0..14 => crash(world, index).await,
        14..18 => {
            let purge = world.chance.one_in(2);
            world.leave(index, purge).await;
        }
        18..20 => world.reboot(index).await,
        20..32 => faults(world, index),
        32..37 => {
            let link = world.chance.pick(&[Link::Down, Link::Stalled]);
            world.trace.say(format!("n{index} link {link:?}"));
            world.link(index, link);
        }
        37..43 => {
            world.trace.say(format!("n{index} link up"));
            world.link(index, Link::Up);
        }
        43..45 => everybody(world),
        45..48 => compact(world),
        48..51 => {
            go_back(world, 1).await;
            world.trace.say("store wiped");
            world.store.wipe();
        }
        51..54 => {
            world.trace.say("store backed up");
            let backup = world.store.backup();
            world.backups.push((world.store.revision(), backup));
        }
        54..57 => {
            if !world.backups.is_empty() {
                let backup = world.chance.pick(&world.backups);
                let (revision, backup) = backup;
                go_back(world, revision).await;
                world.trace.say("store restored");
                world.store.restore(&backup);
            }
        }
        57..59 => {
            world.trace.say("store restarts");
            world.store.break_watches();
        }
        59..70 => foreign_write(world),
        70..73 => configure(world),
        73..77 => {
            let slot = &mut world.slots[index];
            slot.address += 1;
            slot.readdress();
            if let Some(servers) = &world.servers {
                servers.net.set_address(index, slot.underlay());
            }
            world.trace.say(format!("n{index} has another underlay address"));
        }
        77..85 => drift(world, index),
        85..91 => kernel_fault(world, index),
        91..93 => {
            world.trace.say(format!("n{index}'s kernel heals"));
            world.slots[index].kernel.heal();
        }
        93..97 => plant(world, index),
        97..99 => expire(world),
        _ => renumber(world, index).await,
    }
}

/// Prepares for a store that is about to go back to `revision`. A store with so few changes that it could grow past
/// where it was in no time is away for as long as exchanging a cluster's data takes.
async fn go_back(world: &mut World, revision: Revision) {
    /// A number of changes that is more than all agents write when they come back.
    const FEW: Revision = 30;
    const AWAY: Duration = Duration::from_secs(6);
    world.goes_back(revision);
    if world.store.revision() >= revision + FEW {
        return;
    }
    let clients = world.clients();
    let links: Vec<Link> = clients.iter().map(MemoryStore::link).collect();
    for client in &clients {
        client.set_link(Link::Down);
    }
    tokio::time::sleep(AWAY).await;
    for (client, link) in clients.iter().zip(links) {
        client.set_link(link);
    }
}

async fn crash(world: &mut World, index: usize) {
    if world.chance.one_in(2) {
        for _ in 0..world.chance.below(40) {
            tokio::task::yield_now().await;
        }
    }
    world.kill(index).await;
    if world.chance.one_in(2) {
        world.start(index).await;
    }
}

fn faults(world: &mut World, index: usize) {
    let count = 1 + world.chance.below(6);
    let chance = &mut world.chance;
    let faults: Vec<Fault> = (0..count)
        .map(|_| match chance.below(6) {
            0 => Fault::None,
            1 | 2 => Fault::Fail,
            3 => Fault::LoseReply,
            4 => Fault::Delay(chance.millis(1, 2_500)),
            _ => Fault::Delay(chance.millis(3_000, 15_000)),
        })
        .collect();
    let clients = world.clients();
    let number = index % clients.len();
    world.trace.say(format!("client {number} of the store faults {faults:?}"));
    clients[number].fault_next(faults);
}

/// Takes the store away from everybody, or brings it back.
fn everybody(world: &mut World) {
    let link = world.chance.pick(&[Link::Down, Link::Stalled, Link::Up, Link::Up]);
    world.trace.say(format!("all links {link:?}"));
    for index in 0..world.slots.len() {
        world.link(index, link);
    }
}

fn compact(world: &mut World) {
    let now = world.store.revision();
    let back = i64::try_from(world.chance.below(6)).unwrap();
    world.trace.say(format!("store compacted to {}", now - back));
    world.store.compact(now - back);
}

/// Lets somebody else write into the store.
fn foreign_write(world: &mut World) {
    let network = world.chance.pick(&world.networks);
    let keys = network.keys.clone();
    let leases: Vec<String> = oracle::lease_keys(&world.store, &keys);
    let lease = (!leases.is_empty()).then(|| world.chance.pick(&leases));
    match world.chance.below(7) {
        0 => {
            let name = world.chance.pick(&["../../config", "garbage", "10.100.1.0-024", "\u{7}", "300.1.1.1-24"]);
            world.trace.say(format!("garbage at {name:?}"));
            world.store.put(format!("{}{name}", keys.subnets()), "{}", None);
        }
        1 => {
            if let Some(lease) = lease {
                world.trace.say(format!("{lease} overwritten with garbage"));
                world.store.put(lease, "{\"PublicIP\":1e400}", None);
            }
        }
        2 | 3 => {
            if let Some(lease) = lease {
                world.trace.say(format!("{lease} deleted by hand"));
                world.store.delete(lease);
            }
        }
        4 => {
            if let Some(lease) = lease {
                let value = strangers_lease(world);
                world.trace.say(format!("{lease} overwritten by flanneld"));
                world.store.put(lease, value, None);
            }
        }
        _ => {
            let Some(config) = oracle::configuration(&world.store, &keys) else { return };
            let nets: Vec<Option<IpNet>> = [config.v4.as_ref(), config.v6.as_ref()]
                .into_iter()
                .map(|pool| {
                    let pool = pool?;
                    pool.nth(u128::from(world.chance.bits()) % pool.capacity())
                })
                .collect();
            let v4 = nets[0].and_then(|net| match net {
                IpNet::V4(net) => Some(net),
                IpNet::V6(_) => None,
            });
            let v6 = nets[1].and_then(|net| match net {
                IpNet::V6(net) => Some(net),
                IpNet::V4(_) => None,
            });
            let Ok(subnets) = SubnetKey::new(v4, v6) else { return };
            let value = strangers_lease(world);
            world.trace.say(format!("flanneld takes {subnets}"));
            world.store.put(keys.lease(&subnets), value, None);
        }
    }
}

fn strangers_lease(world: &mut World) -> Vec<u8> {
    let public_ip = match strangers_address(&mut world.chance) {
        std::net::IpAddr::V4(ip) => Some(ip),
        std::net::IpAddr::V6(_) => None,
    };
    let public_ipv6 = Some("2001:db8::ffff".parse().unwrap());
    let [a, b, ..] = world.chance.bits().to_be_bytes();
    let data = BackendData::Vxlan { vni: Vni::new(1).ok(), mac: Mac::local([2, 0, 0, 0, a, b]) };
    let backend = world.chance.pick(&[BackendKind::Vxlan, BackendKind::HostGw]);
    encode_lease(
        &Publication { public_ip, public_ipv6, backend, data: data.clone(), data_v6: data, besides: Vec::new() },
        None,
    )
}

/// Lets the operator change, break, remove or put back a network's configuration.
fn configure(world: &mut World) {
    let number = world.chance.below(world.networks.len());
    let network = world.networks[number].clone();
    let (key, name) = (network.keys.config(), network.keys.network().clone());
    world.owed.remove(&name);
    match world.chance.below(6) {
        0 => {
            world.trace.say(format!("{key} removed"));
            world.store.delete(key);
            world.removed.insert(name);
        }
        1 => {
            world.trace.say(format!("{key} broken"));
            world.store.put(key, "{\"Network\":", None);
            world.removed.remove(&name);
        }
        2 => {
            let other = config(number + 5, 21, world.chance.below(3), world.chance.below(BACKENDS));
            world.trace.say(format!("{key} changed to {other}"));
            world.store.put(key, other, None);
            world.removed.remove(&name);
        }
        3 => {
            let family = match (network.config.contains("\"Network\""), network.config.contains("IPv6Network")) {
                (true, true) => 2,
                (false, _) => 1,
                (true, false) => 0,
            };
            let bits = world.chance.pick(&[20, 21, 22]);
            let same = config(number, bits, family, world.chance.below(BACKENDS));
            world.trace.say(format!("{key} updated to {same}"));
            world.store.put(key, same, None);
            world.removed.remove(&name);
        }
        _ => {
            world.trace.say(format!("{key} put back"));
            world.store.put(key, network.config, None);
            world.removed.remove(&name);
        }
    }
}

/// Lets somebody change what is ours in a kernel: an object of any kind.
fn drift(world: &mut World, index: usize) {
    let kernel = world.slots[index].kernel.clone();
    let kind = world.chance.pick(ObjectKind::ALL);
    let attack = world.chance.pick(&Attack::ALL);
    let number = usize::try_from(world.chance.bits() >> 40).unwrap();
    world.trace.say(format!("n{index} drifts ({kind:?}, {attack:?})"));
    attack::carry_out(&kernel, kind, attack, number);
}

fn kernel_fault(world: &mut World, index: usize) {
    let chance = &mut world.chance;
    let errno = chance.pick(&ERRNOS);
    let kernel = &world.slots[index].kernel;
    match chance.below(6) {
        0 => {
            world.trace.say(format!("n{index}'s kernel is unreadable"));
            kernel.fail_reads(errno);
        }
        1 => {
            let (kind, action) = (chance.pick(ObjectKind::ALL), chance.pick(&ACTIONS));
            world.trace.say(format!("n{index}'s kernel fails {kind:?} {action:?} with {errno}"));
            kernel.fail(Strike::KindAndAction(kind, action), errno);
        }
        2 => {
            let kind = chance.pick(ObjectKind::ALL);
            world.trace.say(format!("n{index}'s kernel fails {kind:?} with {errno}"));
            kernel.fail(Strike::Kind(kind), errno);
        }
        _ => {
            for _ in 0..1 + chance.below(4) {
                let nth = chance.below(15);
                world.trace.say(format!("n{index}'s kernel fails op {nth} with {errno}"));
                kernel.fail(Strike::Nth(u64::try_from(nth).unwrap()), errno);
            }
        }
    }
}

/// Plants somebody else's objects, in our way or not, or removes them again.
fn plant(world: &mut World, index: usize) {
    let which = world.chance.below(7);
    let networks = world.networks.clone();
    let network = world.chance.pick(&networks);
    let configuration = oracle::configuration(&world.store, &network.keys);
    let bits = world.chance.bits();
    let net = configuration.as_ref().and_then(|config| {
        let pool = config.v4.as_ref().or(config.v6.as_ref())?;
        pool.nth(u128::from(bits) % pool.capacity())
    });
    let ours = world.slots[index].kernel.state();
    world.trace.say(format!("n{index} gets something foreign ({which}, {net:?})"));
    world.edit_foreign(index, |foreign| match (which, net) {
        (0, _) => *foreign = Foreign::default(),
        (1, _) => drop(foreign.links.insert(IfName::new("flannel.1").unwrap(), "vxlan VNI 1".to_owned())),
        (2, _) => {
            let name = IfName::new("flat.1").unwrap();
            if !ours.links.contains_key(&name) {
                foreign.links.insert(name, "dummy".to_owned());
            }
        }
        (3, _) => drop(foreign.nexthops.insert(NexthopId(7))),
        (4, Some(IpNet::V4(net))) => {
            let id = NexthopId::of_subnet(net.addr());
            if !ours.nexthops.contains_key(&id) {
                foreign.nexthops.insert(id);
            }
        }
        (5, Some(net)) => {
            let key = RouteKey::to_peer(net);
            if !ours.routes.contains_key(&key) {
                foreign.routes.insert(key);
            }
        }
        _ => drop(foreign.routes.insert(RouteKey::to_peer("203.0.113.0/24".parse().unwrap()))),
    });
}

/// Lets a lease run out before its time, as after a long pause of its agent.
fn expire(world: &mut World) {
    let leases: Vec<_> = world.store.dump().into_values().filter_map(|kv| kv.lease).collect();
    if !leases.is_empty() {
        let lease = world.chance.pick(&leases);
        world.trace.say(format!("lease {:x} expires", lease.0));
        world.store.expire(lease);
    }
}

async fn renumber(world: &mut World, index: usize) {
    let slot = &mut world.slots[index];
    if let Some(running) = &slot.running {
        let held = |slot: &Slot| -> BTreeMap<NetworkName, SubnetKey> {
            let ports = slot.running.iter().flat_map(|running| running.node.status().ports());
            ports.filter_map(|port| Some((port.name.clone(), port.holding.borrow().held.as_ref()?.subnets))).collect()
        };
        let before = held(slot);
        let failures = running.node.renumber().await;
        world.trace.say(format!("n{index} may renumber: {failures:?}"));
        // A subnet that could not be kept may now be another, perhaps already is. Everything else stays, which the end
        // shows.
        let after = held(slot);
        slot.held.retain(|name, _| after.contains_key(name) && after.get(name) == before.get(name));
    }
}

/// Stops the faults, and has operators put right what only they can.
async fn calm(world: &mut World) -> Result<(), String> {
    world.trace.say("faults stop");
    world.calm_servers().await;
    for index in 0..world.slots.len() {
        let slot = &world.slots[index];
        slot.client.clear_faults();
        slot.client.set_link(Link::Up);
        slot.kernel.heal();
        if slot.member && !world.chance.one_in(4) {
            world.start(index).await;
        }
    }
    for network in world.networks.clone() {
        let keys = &network.keys;
        for key in oracle::unreadable_leases(&world.store, keys) {
            world.trace.say(format!("{key} removed, as the hint says"));
            world.store.delete(key);
        }
        if oracle::configuration(&world.store, keys).is_none() && world.removed.contains(keys.network()) {
            if world.chance.one_in(2) {
                world.trace.say("the removed configuration is put back");
                world.store.put(keys.config(), network.config.clone(), None);
                world.removed.remove(keys.network());
            }
        } else if oracle::configuration(&world.store, keys).is_none()
            && world.store.dump().contains_key(keys.config().as_bytes())
        {
            world.trace.say("the broken configuration is corrected");
            world.store.put(keys.config(), network.config.clone(), None);
        }
        if world.chance.one_in(2) {
            for key in oracle::strangers(&world.store, keys) {
                world.trace.say(format!("{key} removed"));
                world.store.delete(key);
            }
        }
    }
    if world.chance.one_in(2) {
        for index in 0..world.slots.len() {
            world.edit_foreign(index, |foreign| *foreign = Foreign::default());
        }
    }
    world.look().await
}

/// Waits until everything is exact, and checks that it stays so.
async fn settle(world: &mut World) -> Result<(), String> {
    /// The time beyond the lease's: the longest waits between tries (30 s for a lease and for a kernel) and the latest
    /// transaction (15 s), twice over.
    const SLACK: Duration = Duration::from_secs(150);
    const LOOK: Duration = Duration::from_secs(5);
    /// A time longer than the interval of periodic looks at the kernel.
    const WINDOW: Duration = Duration::from_secs(65);
    const WINDOWS: u32 = 3;
    let mut left = world.ttl * 2 + SLACK;
    let mut restless = String::new();
    let mut why = loop {
        world.pass(LOOK).await?;
        left = left.saturating_sub(LOOK);
        match oracle::settled(world).await {
            Ok(()) => break None,
            Err(why) if left.is_zero() => break Some(why),
            Err(_) => {}
        }
    };
    // There must be nothing more to do, and nothing done. A node that waits for a subnet to become free tries every 30
    // s, so it may still get what the end of the faults has freed. A node that never rests does not rest in the third
    // window either.
    for _ in 0..WINDOWS {
        if why.is_some() {
            break;
        }
        let before: Vec<u64> = world.slots.iter().map(|slot| slot.kernel.tried()).collect();
        world.pass(WINDOW).await?;
        let after: Vec<u64> = world.slots.iter().map(|slot| slot.kernel.tried()).collect();
        if before == after {
            return oracle::settled(world).await.map_err(|why| not_exact(&why));
        }
        restless = format!("the kernels did not come to rest: {before:?} then {after:?} operations");
        why = oracle::settled(world).await.err();
    }
    Err(not_exact(&why.unwrap_or(restless)))
}

fn not_exact(why: &str) -> String {
    format!("not exact at the end: {why}")
}
