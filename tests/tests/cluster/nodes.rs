//! Nodes that come and go, and the view that each has.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flatnet_model::keys::{FLANNEL_PREFIX, NetworkKeys};
use flatnet_model::{
    BackendData, BackendKind, InstanceNonce, IpFamily, NetworkName, NodeId, Owner, Publication, SubnetKey, Vni,
    vtep_mac,
};
use flatnet_plane::allocate::{Claim, ClaimRequest};
use flatnet_plane::client::{Remote, RemoteOptions, ServerAddress};
use flatnet_plane::flannel::decode_lease;
use flatnet_plane::plane::ControlPlane as _;
use flatnet_plane::random::OsRandom;
use flatnet_plane::store::etcd::EtcdStore;
use flatnet_plane::store::{KeyRange, Store};
use flatnet_plane::watch::{NetworkView, follow};
use flatnet_tests::control_plane::ControlPlane;
use flatnet_tests::wait::{pause, wait_until};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The lease's time to live, longer than any fault: what is lost is lost by a fault, not by time.
const TTL: Duration = Duration::from_secs(600);

/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// The time for a cold start of all members, and an election, under load.
const ANSWERS: Duration = Duration::from_secs(60);

fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), FLANNEL_PREFIX)
}

/// The state that all nodes share.
#[derive(Default)]
struct Shared {
    joins: AtomicU32,
    leaves: AtomicU32,
    /// True once nobody leaves any more.
    still: watch::Sender<bool>,
    /// The subnets each node was told that it has. A node that is asking or leaving has no entry.
    held: Mutex<BTreeMap<NodeId, SubnetKey>>,
}

/// The nodes.
pub struct Load {
    shared: Arc<Shared>,
    views: Vec<watch::Receiver<NetworkView>>,
    count: usize,
}

impl Load {
    /// Starts them on the runtime of the caller.
    pub fn start(count: u8, servers: &[&ControlPlane], dir: &Path) -> Self {
        let arguments = servers[0].join_arguments();
        let flag = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name).unwrap();
            arguments[at + 1].clone()
        };
        let shared = Arc::new(Shared::default());
        let mut views = Vec::new();
        for number in 1..=count {
            let dir = dir.join(format!("node{number}"));
            std::fs::create_dir_all(&dir).unwrap();
            let address = |server: &&ControlPlane| ServerAddress {
                host: server.address().ip().to_string(),
                port: server.address().port(),
            };
            let remote = Remote::new(RemoteOptions {
                servers: servers.iter().map(address).collect(),
                dir,
                node: NodeId::new(u128::from(number)),
                name: format!("node{number}"),
                token: Some(flag("--token")),
                ca_hash: Some(flag("--ca-hash")),
            });
            let remote = remote.unwrap();
            let (sender, view) = watch::channel(NetworkView::default());
            tokio::spawn(follow(Arc::new(remote.clone()), keys(), TTL, sender));
            tokio::spawn(come_and_go(number, remote, Arc::clone(&shared), view.clone()));
            views.push(view);
        }
        Self { shared, views, count: usize::from(count) }
    }

    pub fn joins(&self) -> u32 {
        self.shared.joins.load(Ordering::Relaxed)
    }

    pub fn leaves(&self) -> u32 {
        self.shared.leaves.load(Ordering::Relaxed)
    }

    /// Lets nodes come and go again.
    pub fn go_on(&self) {
        self.shared.still.send_replace(false);
    }

    pub fn until_everybody_joined(&self, limit: Duration) {
        wait_until("everybody has joined once", limit, || {
            let joins = self.joins();
            if joins < u32::try_from(self.count).unwrap() { Err(format!("{joins} joined")) } else { Ok(()) }
        });
    }

    /// Keeps every node that is there. Waits until all are there with the subnets they were told, and until every view
    /// is what the store says, at most `limit` after the store answers for good. An election that a member brings with
    /// it when it comes back is the store's time. Returns the time until the store answered, and the time until all was
    /// exact.
    pub fn until_exact(&self, runtime: &Runtime, store: &Arc<EtcdStore>, limit: Duration) -> (Duration, Duration) {
        self.shared.still.send_replace(true);
        let began = Instant::now();
        let mut answers = Duration::ZERO;
        let mut seen: Vec<String> = Vec::new();
        loop {
            let store = Arc::clone(store);
            // On a thread of the runtime's: they are in the nodes' namespace.
            let read = runtime.block_on(runtime.spawn(async move { owners(&store).await })).unwrap();
            let (answered, result) = match read {
                Ok(owners) => (true, self.compare(&owners)),
                Err(why) => (false, Err(why)),
            };
            let now = began.elapsed();
            let Err(why) = result else { return (answers, now) };
            if !answered {
                answers = now;
            }
            if seen.last().is_none_or(|last| !last.ends_with(&why)) {
                seen.push(format!("{} ms: {why}", now.as_millis()));
            }
            assert!(now < answers + limit && now < ANSWERS, "not every view is the store:\n{}", seen.join("\n"));
            pause(LOOK);
        }
    }

    fn compare(&self, owners: &BTreeMap<SubnetKey, NodeId>) -> Result<(), String> {
        let held = self.shared.held.lock().unwrap().clone();
        if held.len() != self.count {
            return Err(format!("{} of {} nodes have a lease", held.len(), self.count));
        }
        for (node, subnets) in &held {
            if owners.get(subnets) != Some(node) {
                return Err(format!("{subnets} was given to {node} and belongs to {:?}", owners.get(subnets)));
            }
        }
        if owners.len() != held.len() {
            return Err(format!(
                "{} leases of {} nodes: one was given back, and is still there",
                owners.len(),
                held.len()
            ));
        }
        for (index, view) in self.views.iter().enumerate() {
            let view = view.borrow();
            let seen = view.state.leases.values();
            let seen: BTreeMap<_, _> =
                seen.filter_map(|lease| Some((lease.subnets, lease.owner.as_ref()?.node))).collect();
            if seen != *owners {
                return Err(format!("node{} sees {} leases, there are {}", index + 1, seen.len(), owners.len()));
            }
        }
        Ok(())
    }

    /// Looks all the time for a node that has the subnet another one was told that it has.
    pub fn look_for_two_owners(&self, runtime: &Runtime, store: EtcdStore) -> Watching {
        let found = Arc::new(Mutex::new(None));
        let (shared, tell) = (Arc::clone(&self.shared), Arc::clone(&found));
        runtime.spawn(async move {
            loop {
                // Told before the store is read and after: it had it all the time.
                let before = shared.held.lock().unwrap().clone();
                if let Ok(owners) = owners(&store).await {
                    let after = shared.held.lock().unwrap().clone();
                    for (node, subnets) in before.iter().filter(|(node, subnets)| after.get(*node) == Some(*subnets)) {
                        if owners.get(subnets) != Some(node) {
                            let other = owners.get(subnets);
                            *tell.lock().unwrap() = Some(format!("{subnets} is {node}'s and the store says {other:?}"));
                            return;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Watching { found }
    }
}

/// A task that looks for two owners.
pub struct Watching {
    found: Arc<Mutex<Option<String>>>,
}

impl Watching {
    /// Returns what it found so far.
    pub fn found(&self) -> Option<String> {
        self.found.lock().unwrap().clone()
    }
}

async fn owners(store: &EtcdStore) -> Result<BTreeMap<SubnetKey, NodeId>, String> {
    let reply = store.range(&KeyRange::prefix(&keys().subnets())).await.map_err(|error| error.to_string())?;
    let mut owners = BTreeMap::new();
    for kv in reply.kvs {
        let name = String::from_utf8(kv.key.clone()).unwrap();
        let subnets: SubnetKey = name.strip_prefix(&keys().subnets()).unwrap().parse().unwrap();
        owners.insert(subnets, decode_lease(subnets, &kv).unwrap().owner.unwrap().node);
    }
    Ok(owners)
}

fn publication(number: u8) -> Publication {
    let vni = Vni::new(7).unwrap();
    Publication {
        public_ip: Some(Ipv4Addr::new(192, 0, 2, number)),
        public_ipv6: None,
        backend: BackendKind::Vxlan,
        data: BackendData::Vxlan { vni: Some(vni), mac: vtep_mac(NodeId::new(u128::from(number)), vni, IpFamily::V4) },
        data_v6: BackendData::None,
        besides: Vec::new(),
    }
}

/// Joins, stays a while and leaves, again and again; anything that fails is tried again.
async fn come_and_go(number: u8, remote: Remote, shared: Arc<Shared>, mut view: watch::Receiver<NetworkView>) {
    let node = NodeId::new(u128::from(number));
    let owner = Owner { node, name: format!("node{number}"), nonce: InstanceNonce::new(u128::from(number) + 1000) };
    let again = Duration::from_millis(100 + 17 * u64::from(number));
    let known = |view: &NetworkView| view.state.valid_config().is_some();
    let state = view.wait_for(known).await.unwrap().state.clone();
    let mut round = u64::from(number);
    loop {
        let request = ClaimRequest {
            keys: keys(),
            owner: owner.clone(),
            publication: publication(number),
            wanted: Vec::new(),
            previous: None,
            ttl: TTL,
            adopt: true,
            known: None,
        };
        let claim: Claim = loop {
            match remote.acquire(&request, &state, &mut OsRandom).await {
                Ok(claim) => break claim,
                Err(_) => tokio::time::sleep(again).await,
            }
        };
        shared.held.lock().unwrap().insert(node, claim.lease.subnets);
        shared.joins.fetch_add(1, Ordering::Relaxed);
        round = round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_millis(300 + (round >> 33) % 2_000)).await;
        let mut still = shared.still.subscribe();
        still.wait_for(|still| !still).await.unwrap();
        shared.held.lock().unwrap().remove(&node);
        while remote.release(&keys(), &claim).await.is_err() {
            tokio::time::sleep(again).await;
        }
        shared.leaves.fetch_add(1, Ordering::Relaxed);
    }
}
