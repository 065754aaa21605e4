//! The hosts, the store between them, and time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flatnet_agent::files::network_record::NetworkRecord;
use flatnet_agent::files::state_dir::StateDir;
use flatnet_agent::files::sysctl_record::SysctlRecord;
use flatnet_agent::files::underlay_record::UnderlayRecord;
use flatnet_agent::files::wireguard_key::WireguardIdentity;
use flatnet_agent::node::Node;
use flatnet_agent::wiring::context::NodeSetup;
use flatnet_agent::wiring::host_options::HostOptions;
use flatnet_agent::wiring::networks::NetworkSetup;
use flatnet_core::facts::{DroppingChain, Features, GreSupport, HostFacts, Interface};
use flatnet_core::object::{Datapath, Foreign, IptablesChain, IptablesVariant, KernelState};
use flatnet_core::underlay::Selection;
use flatnet_kernel::fake::FakeKernel;
use flatnet_model::keys::{FLANNEL_PREFIX, NetworkKeys};
use flatnet_model::{IfName, IpFamily, Mtu, NetworkName, NodeId, Owner, Revision, SubnetKey};
use flatnet_plane::random::NodeRandom;
use flatnet_plane::store::memory::{Backup, Link, MemoryStore};
use flatnet_plane::watch::{Connection, Sign, Source};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::chance::Chance;
use crate::kernel::ModelKernel;
use crate::oracle;
use crate::plane::ModelPlane;
use crate::servers::{Servers, two_networks};
use crate::store::{ModelStore, Mutant};
use crate::trace::{RunLog, Trace};

/// The time that the service manager waits before it starts an agent again that ended.
const RESTART: Duration = Duration::from_secs(2);

/// The time for which requests to a server may still be carried out after their agent was cut off: a call's time and
/// the slowest way there. No later run of the agent can know of that; a lease made so expires.
const UNDER_WAY: Duration = Duration::from_secs(20);

/// The parts between the hosts and the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// There is nothing between.
    Direct,
    /// There are one to three servers between.
    Servers,
}

/// One network, and the configuration it began with.
#[derive(Clone)]
pub struct Network {
    /// The network's keys.
    pub keys: NetworkKeys,
    /// The configuration in flannel's JSON.
    pub config: String,
}

/// A running agent.
pub struct Running {
    /// The agent's tasks.
    pub node: Node<ModelPlane, ModelKernel>,
    log: Arc<RunLog>,
    dir: Arc<StateDir>,
}

/// One host.
pub struct Slot {
    /// The place among the hosts.
    pub index: usize,
    /// The host's kernel, which outlives agents.
    pub kernel: FakeKernel,
    /// The host's way to the store.
    pub client: MemoryStore,
    /// The agent, if it runs.
    pub running: Option<Running>,
    /// True if an agent should run here (it may be down, for now or for good).
    pub member: bool,
    /// The number of the installation: another one has another identity.
    pub installation: usize,
    /// True if the agent was started with a token to join servers with.
    pub has_token: bool,
    /// The number of the boot.
    pub boot: usize,
    /// The number of the underlay address.
    pub address: usize,
    /// The time at which an agent that ended is started again.
    pub restart_at: Option<Instant>,
    /// The time at which an agent was cut off here last.
    pub cut_off: Option<Instant>,
    /// The subnet of each network that containers live in.
    pub held: BTreeMap<NetworkName, SubnetKey>,
    /// The objects that were planted in the kernel and are not ours.
    pub foreign: Foreign,
}

impl Slot {
    /// Returns the name in the trace.
    pub fn name(&self) -> String {
        format!("n{}", self.index)
    }

    fn id(&self, seed: u64) -> NodeId {
        let host = u128::try_from(self.index * 100 + self.installation + 1).unwrap();
        NodeId::new((u128::from(seed) << 64) | host)
    }
}

/// The whole world of a seed.
pub struct World {
    /// The chance, which the seed decides.
    pub chance: Chance,
    /// The operator's way to the store.
    pub store: MemoryStore,
    /// The servers between the hosts and the store, if there are any.
    pub servers: Option<Servers>,
    /// The hosts.
    pub slots: Vec<Slot>,
    /// The networks, in the order in which hosts join them.
    pub networks: Vec<Network>,
    /// The time that a lease outlives its agent.
    pub ttl: Duration,
    /// The trace of what happened.
    pub trace: Trace,
    /// Copies of the store, each with its revision.
    pub backups: Vec<(Revision, Backup)>,
    /// True if the store ever went back.
    pub went_back: bool,
    /// Networks whose configuration must come back, each with the node that knows that the store lost it.
    pub owed: BTreeMap<NetworkName, usize>,
    /// Networks whose configuration an operator took away.
    pub removed: BTreeSet<NetworkName>,
    seed: u64,
    dir: PathBuf,
    mutant: Mutant,
    checked: Option<Revision>,
    runs: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl World {
    /// Creates hosts without agents, and a store with networks.
    pub fn new(seed: u64, way: Way, mutant: Mutant) -> Self {
        let mut chance = Chance::new(seed);
        let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let dir = base.join(format!("flatnet-model-{}-{seed:x}-{way:?}-{mutant:?}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let store = MemoryStore::new();
        let networks = networks(&mut chance);
        for network in &networks {
            store.put(network.keys.config(), network.config.clone(), None);
        }
        let hosts = 2 + chance.below(4);
        let slots = (0..hosts).map(|index| slot(index, &store, &mut chance)).collect();
        let servers = (way == Way::Servers).then(|| {
            let (count, bits) = (1 + chance.below(3), chance.bits());
            Servers::new(hosts, count, &store, dir.join("servers"), Chance::new(bits))
        });
        let ttl = Duration::from_secs(chance.pick(&[20, 60]));
        let trace = Trace::new();
        trace.say(format!("{hosts} hosts, ttl {} s", ttl.as_secs()));
        for network in &networks {
            trace.say(format!("network {}: {}", network.keys.network(), network.config));
        }
        Self {
            chance,
            store,
            servers,
            slots,
            networks,
            ttl,
            trace,
            backups: Vec::new(),
            went_back: false,
            owed: BTreeMap::new(),
            removed: BTreeSet::new(),
            seed,
            dir,
            mutant,
            checked: None,
            runs: 0,
        }
    }

    /// Returns the node at `index`, as it calls itself.
    pub fn owner(&self, index: usize) -> Owner {
        let slot = &self.slots[index];
        let nonce = flatnet_model::InstanceNonce::new(
            slot.id(self.seed).bits() ^ (u128::try_from(slot.boot + 1).unwrap() << 32),
        );
        Owner { node: slot.id(self.seed), name: slot.name(), nonce }
    }

    /// Starts an agent at `index`.
    pub async fn start(&mut self, index: usize) {
        if self.slots[index].running.is_some() {
            return;
        }
        let owner = self.owner(index);
        let (state, run) = self.dirs(index);
        write_identity(&state.join("node-id"), &owner.node.to_string());
        write_identity(&run.join("instance"), &owner.nonce.to_string());
        let dir = Arc::new(StateDir::open(&state, &run).unwrap());
        assert_eq!((dir.node(), dir.nonce()), (owner.node, owner.nonce));
        let setups: Vec<NetworkSetup> = self
            .networks
            .iter()
            .map(|network| NetworkSetup {
                keys: network.keys.clone(),
                init: Vec::new(),
                wanted: Vec::new(),
                env_file: dir.env_file(network.keys.network()),
            })
            .collect();
        self.runs += 1;
        let log = Arc::new(RunLog {
            name: owner.name.clone(),
            networks: self.networks.iter().map(|network| network.keys.clone()).collect(),
            leaving: AtomicBool::new(false),
            snapshots: Mutex::default(),
            chance: Mutex::new(Chance::new(self.seed ^ (self.runs << 32))),
            trace: self.trace.clone(),
        });
        let slot = &mut self.slots[index];
        let inner = slot.client.clone();
        let plane = match &self.servers {
            None => ModelPlane::Direct(ModelStore { inner, log: Arc::clone(&log), mutant: self.mutant }),
            Some(_) => self.join_servers(&owner, index, Arc::clone(&log)).await,
        };
        let slot = &mut self.slots[index];
        let kernel = ModelKernel::new(slot.kernel.clone(), Arc::clone(&log), self.mutant);
        let node = Node::start(NodeSetup {
            plane: Arc::new(plane),
            kernel: Arc::new(kernel),
            sysctls: SysctlRecord::open(Arc::clone(&dir)).unwrap(),
            wireguard: WireguardIdentity::new(Arc::clone(&dir), Default::default()),
            host: HostOptions {
                node: owner.node,
                selection: Selection::default(),
                bridge: None,
                masquerade: true,
                take_over: false,
                exposure: Default::default(),
                endpoints: watch::channel(Vec::new()).1,
                userspace: false,
                other_endpoints: Vec::new(),
            },
            ranges: Default::default(),
            underlay: UnderlayRecord::open(Arc::clone(&dir)),
            store_at: watch::channel(Vec::new()).1,
            owner,
            networks: setups,
            record: NetworkRecord::open(Arc::clone(&dir)),
            lease_ttl: self.ttl,
            flannel_prefix: FLANNEL_PREFIX.to_owned(),
            random: NodeRandom::seeded(self.seed ^ (self.runs << 40)),
            dir: Arc::clone(&dir),
        });
        slot.running = Some(Running { node, log, dir });
        slot.member = true;
        slot.restart_at = None;
        self.trace.say(format!("n{index} starts"));
    }

    /// Cuts an agent off where it stands.
    pub async fn kill(&mut self, index: usize) {
        let Some(Running { node, dir, .. }) = self.slots[index].running.take() else { return };
        self.owed.retain(|_, witness| *witness != index);
        self.slots[index].cut_off = Some(Instant::now());
        drop(node);
        // A write to the disk that is under way ends with the process in reality; here it is waited for.
        while Arc::strong_count(&dir) > 1 {
            tokio::task::yield_now().await;
        }
        self.trace.say(format!("n{index} is dead"));
    }

    /// Lets the node at `index` leave.
    pub async fn leave(&mut self, index: usize, purge: bool) {
        let Some(mut running) = self.slots[index].running.take() else { return };
        running.log.leaving.store(true, Ordering::Relaxed);
        let before = self.store.revision();
        let failures = running.node.leave(purge).await;
        self.trace.say(format!("n{index} left (purge {purge}): {failures:?}"));
        self.slots[index].running = Some(running);
        // The store is looked at now: later the lease would have expired, or have been taken for another run's. Where
        // giving back failed, what was being written when the node was asked to leave may be there, and the node says
        // so.
        let node = self.owner(index).node;
        let cut_off = self.slots[index].cut_off.filter(|_| self.servers.is_some());
        let is_answerable = failures.is_empty() && cut_off.is_none_or(|at| at.elapsed() >= UNDER_WAY);
        for network in self.networks.iter().filter(|_| is_answerable) {
            if let Some(left) = oracle::written_since(&self.store, &network.keys, node, before) {
                self.trace.violation(format!("n{index} left, and wrote {left} after it was asked to"));
            }
        }
        self.kill(index).await;
        let (state, run) = self.dirs(index);
        let slot = &mut self.slots[index];
        slot.member = false;
        (slot.restart_at, slot.cut_off) = (None, None);
        slot.held.clear();
        if !purge {
            return;
        }
        let left = KernelState { sysctls: BTreeMap::new(), ..slot.kernel.state() };
        if failures.is_empty() && left != KernelState::default() {
            self.trace.violation(format!("n{index} purged and left {left:?}"));
        }
        let _ = (std::fs::remove_dir_all(state), std::fs::remove_dir_all(run));
        slot.installation += 1;
    }

    /// Reboots the host: what the kernel and the run directory had is gone.
    pub async fn reboot(&mut self, index: usize) {
        self.kill(index).await;
        let run = self.dirs(index).1;
        let _ = std::fs::remove_dir_all(run);
        let slot = &mut self.slots[index];
        slot.boot += 1;
        slot.kernel.edit(|state| *state = KernelState::default());
        slot.kernel.edit_foreign(|foreign| *foreign = Foreign::default());
        slot.foreign = Foreign::default();
        self.trace.say(format!("n{index} reboots"));
    }

    /// Returns the seed, from which all numbers of this world follow.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns what is broken on purpose.
    pub fn mutant(&self) -> Mutant {
        self.mutant
    }

    /// Returns the clients of the store: the hosts', or the servers'.
    pub fn clients(&self) -> Vec<MemoryStore> {
        match &self.servers {
            Some(servers) => servers.clients.clone(),
            None => self.slots.iter().map(|slot| slot.client.clone()).collect(),
        }
    }

    /// Returns the state and run directory of a host.
    pub fn dirs(&self, index: usize) -> (PathBuf, PathBuf) {
        let host = self.dir.join(format!("n{index}"));
        (host.join("state"), host.join("run"))
    }

    /// Changes a node's way to the store. Whoever is cut off may find a store that has grown past what they have seen
    /// of it.
    pub fn link(&mut self, index: usize, link: Link) {
        match &self.servers {
            Some(servers) => servers.net.set_host(index, link),
            None => self.slots[index].client.set_link(link),
        }
        if link != Link::Up {
            self.owed.retain(|_, witness| *witness != index);
        }
    }

    /// Prepares for a store that is about to go back to `revision`. A node that follows it and has seen far more can
    /// tell: what it knows of a network's configuration must then come back.
    pub fn goes_back(&mut self, revision: Revision) {
        /// A number of changes that is more than all nodes write before the slowest of them has looked again.
        const FAR: Revision = 30;
        self.went_back = true;
        self.owed.clear();
        if self.servers.is_some() {
            // Servers take a lost network's configuration from nodes only when they came to an empty store.
            return;
        }
        for slot in self.slots.iter().filter(|slot| slot.client.link() == Link::Up) {
            let Some(running) = &slot.running else { continue };
            for port in &running.node.status().ports() {
                let view = port.view.borrow();
                let follows = view.connection == Connection::Connected && view.source == Source::Store;
                let knows = view.state.valid_config().is_some() && view.suspect.is_none();
                if follows && knows && view.state.revision >= revision + FAR {
                    self.owed.insert(port.name.clone(), slot.index);
                }
            }
        }
    }

    /// Notes which nodes have found out that a configuration was lost with the store: they bring it back.
    fn look_for_the_lost(&mut self) {
        if self.servers.is_some() {
            return;
        }
        for slot in &self.slots {
            let Some(running) = &slot.running else { continue };
            for port in &running.node.status().ports() {
                let view = port.view.borrow();
                let lost = view.suspect.as_ref().is_some_and(|now| now.kept_config && now.sign == Sign::Revision);
                let follows = view.connection == Connection::Connected && slot.client.link() == Link::Up;
                if lost && follows && !self.removed.contains(&port.name) {
                    self.owed.insert(port.name.clone(), slot.index);
                }
            }
        }
    }

    /// Lets time pass, and looks at everything on the way.
    pub async fn pass(&mut self, time: Duration) -> Result<(), String> {
        /// The longest time for which nobody looks.
        const LOOK: Duration = Duration::from_millis(500);
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(LOOK);
            tokio::time::sleep(step).await;
            left -= step;
            self.look().await?;
        }
        Ok(())
    }

    /// Checks what must hold at any time.
    pub async fn look(&mut self) -> Result<(), String> {
        let now = Instant::now();
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if let Some(running) = &mut slot.running
                && let Ok(failure) = running.node.fatal.try_recv()
            {
                let failure = failure.to_string();
                self.trace.say(format!("n{index} cannot go on: {failure}"));
                if failure.contains("identity") {
                    return Err(format!("n{index} took itself for a copy: {failure}"));
                }
                slot.restart_at = Some(now + RESTART);
                self.kill(index).await;
            }
            if self.slots[index].restart_at.is_some_and(|at| at <= now) {
                self.start(index).await;
            }
            let slot = &mut self.slots[index];
            slot.holds()?;
            if slot.kernel.foreign() != slot.foreign {
                return Err(format!("n{index}: what is not ours was changed"));
            }
        }
        self.look_for_the_lost();
        let revision = self.store.revision();
        if self.checked != Some(revision) {
            let keys: Vec<NetworkKeys> = self.networks.iter().map(|network| network.keys.clone()).collect();
            if let Some(two) = oracle::two_owners(&self.store, &keys) {
                return Err(two);
            }
            if let Some(two) = two_networks(self) {
                return Err(two);
            }
            self.checked = Some(revision);
        }
        if let Some(panic) = crate::run::panicked() {
            return Err(format!("a task panicked: {panic}"));
        }
        self.trace.violated().map_or(Ok(()), Err)
    }

    /// Plants or removes objects that are not ours.
    pub fn edit_foreign(&mut self, index: usize, change: impl Fn(&mut Foreign)) {
        let slot = &mut self.slots[index];
        change(&mut slot.foreign);
        slot.kernel.edit_foreign(|foreign| change(foreign));
    }
}

impl Slot {
    /// Checks that the subnets that are held stay the same.
    fn holds(&mut self) -> Result<(), String> {
        let Some(running) = &self.running else { return Ok(()) };
        for port in &running.node.status().ports() {
            let holding = port.holding.borrow();
            let Some(now) = &holding.held else { continue };
            let before = *self.held.entry(port.name.clone()).or_insert(now.subnets);
            if before != now.subnets {
                return Err(format!(
                    "n{} was renumbered in {} from {before} to {}",
                    self.index, port.name, now.subnets
                ));
            }
            if !oracle::fits(&now.config, now.subnets) {
                return Err(format!(
                    "n{} has {} in force in {}, in which its subnet {before} is not",
                    self.index,
                    now.config.pools().map(|pool| pool.network().to_string()).collect::<Vec<_>>().join(" "),
                    port.name
                ));
            }
        }
        Ok(())
    }

    /// Returns the host's IPv4 address.
    pub fn underlay(&self) -> IpAddr {
        underlay_addresses(self.index, self.address)[0].addr()
    }

    /// Makes the underlay's addresses those that [`Self::address`] says.
    pub fn readdress(&self) {
        let addresses = underlay_addresses(self.index, self.address);
        self.kernel.edit_facts(|facts| facts.interfaces[1].addresses = addresses);
    }
}

fn underlay_addresses(index: usize, address: usize) -> Vec<ipnet::IpNet> {
    let last = 10 + index + 10 * (address % 20);
    vec![format!("192.0.2.{last}/24").parse().unwrap(), format!("2001:db8::{last:x}/64").parse().unwrap()]
}

fn slot(index: usize, store: &MemoryStore, chance: &mut Chance) -> Slot {
    let interface = |name: &str, addresses: Vec<ipnet::IpNet>| Interface {
        name: IfName::new(name).unwrap(),
        up: true,
        loopback: name == "lo",
        mtu: Some(Mtu::new(1500).unwrap()),
        addresses,
        ours: false,
    };
    let eth0 = IfName::new("eth0").unwrap();
    let mut facts = HostFacts {
        interfaces: vec![
            interface("lo", vec!["127.0.0.1/8".parse().unwrap()]),
            interface("eth0", underlay_addresses(index, 0)),
        ],
        default_route: vec![(IpFamily::V4, eth0), (IpFamily::V6, eth0)],
        features: Features {
            nexthop_objects: !chance.one_in(3),
            ipv6: true,
            wireguard: Some(Datapath::Kernel),
            gre: GreSupport { v4: Some(Datapath::Kernel), v6: Some(Datapath::Kernel) },
        },
        ..HostFacts::default()
    };
    if chance.one_in(3) {
        facts.dropping_chains.insert(DroppingChain {
            variant: IptablesVariant::Nft,
            family: IpFamily::V4,
            chain: IptablesChain::Forward,
        });
    }
    Slot {
        index,
        kernel: FakeKernel::new(facts),
        client: store.client(),
        running: None,
        member: false,
        installation: 0,
        has_token: false,
        boot: 0,
        address: 0,
        restart_at: None,
        cut_off: None,
        held: BTreeMap::new(),
        foreign: Foreign::default(),
    }
}

fn networks(chance: &mut Chance) -> Vec<Network> {
    let names: &[&str] = if chance.one_in(3) { &["default", "blue"] } else { &["default"] };
    names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let keys = NetworkKeys::new(&name.parse().unwrap(), FLANNEL_PREFIX);
            let bits = chance.pick(&[22, 21, 20]);
            Network { keys, config: config(index, bits, chance.below(3), chance.below(BACKENDS)) }
        })
        .collect()
}

/// The number of backends that [`config`] tells apart.
pub const BACKENDS: usize = 5;

/// Returns flannel's JSON of network number `index`, with `bits` for its size, and numbers that choose family and
/// backend.
pub fn config(index: usize, bits: usize, family: usize, backend: usize) -> String {
    let v4 = format!(r#""Network":"10.{}.0.0/{bits}","SubnetLen":24"#, 100 + index);
    let v6 = format!(r#""EnableIPv6":true,"IPv6Network":"fd00:{}::/{}","IPv6SubnetLen":64"#, 100 + index, bits + 40);
    let ranges = match family {
        0 => v4,
        1 => format!(r#""EnableIPv4":false,{v6}"#),
        _ => format!("{v4},{v6}"),
    };
    let backend = match backend {
        0 => r#"{"Type":"host-gw"}"#.to_owned(),
        1 => format!(r#"{{"Type":"vxlan","VNI":{},"DirectRouting":true}}"#, index + 1),
        2 => format!(r#"{{"Type":"vxlan","VNI":{}}}"#, index + 1),
        3 => format!(r#"{{"Type":"gre","Key":{}}}"#, index + 1),
        _ => {
            let port = 51_820 + 10 * index;
            format!(r#"{{"Type":"wireguard","ListenPort":{port},"ListenPortV6":{}}}"#, port + 1)
        }
    };
    format!("{{{ranges},\"Backend\":{backend}}}")
}

fn write_identity(path: &Path, text: &str) {
    if !path.exists() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
    }
}

/// Returns an address of no host of the model, on its link or not.
pub fn strangers_address(chance: &mut Chance) -> IpAddr {
    let last = chance.below(20);
    if chance.one_in(2) { [192, 0, 2, 230 + u8::try_from(last).unwrap()].into() } else { [198, 51, 100, 7].into() }
}
