//! Agents without a kernel: the real client, and the task that keeps a view equal to the store.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatnet_model::keys::{FLANNEL_PREFIX, NetworkKeys};
use flatnet_model::{
    BackendData, BackendKind, HostRanges, InstanceNonce, IpFamily, NetworkName, NodeId, Owner, Publication, SubnetKey,
    Vni, vtep_mac,
};
use flatnet_plane::allocate::ClaimRequest;
use flatnet_plane::client::{Remote, RemoteOptions, ServerAddress};
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::random::OsRandom;
use flatnet_plane::store::etcd::{EtcdOptions, EtcdStore};
use flatnet_plane::store::{Store, Txn, Write};
use flatnet_plane::watch::{NetworkView, Source, follow};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::processes::{DEADLINE, Etcd, Scratch, Server};

/// The agent's default.
const TTL: Duration = Duration::from_secs(24 * 3600);

fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), FLANNEL_PREFIX)
}

/// Agents that run.
pub struct Fleet {
    views: Vec<watch::Receiver<NetworkView>>,
    following: Vec<JoinHandle<()>>,
}

/// Agents that all have a lease and know all others.
pub struct Started {
    /// The agents.
    pub fleet: Fleet,
    /// The time since the first of them began.
    pub took: Duration,
}

impl Fleet {
    /// Starts `count` at once and waits until each has its lease and sees everybody's.
    pub async fn start(count: u32, server: &Server, scratch: &Scratch) -> Started {
        let began = Instant::now();
        let mut starting = JoinSet::new();
        for number in 0..count {
            let dir = scratch.0.join(format!("agent{number}"));
            std::fs::create_dir_all(&dir).unwrap();
            let options = RemoteOptions {
                servers: vec![ServerAddress { host: "127.0.0.1".to_owned(), port: server.port }],
                dir,
                node: NodeId::new(u128::from(number) + 1),
                name: format!("agent{number}"),
                token: Some(server.token.clone()),
                ca_hash: Some(server.ca_hash.clone()),
            };
            starting.spawn(agent(number, options));
        }
        let mut fleet = Self { views: Vec::new(), following: Vec::new() };
        while let Some(started) = starting.join_next().await {
            let (view, following) = started.unwrap();
            fleet.views.push(view);
            fleet.following.push(following);
        }
        for view in &mut fleet.views {
            let all = view.wait_for(|view| view.state.leases.len() >= usize::try_from(count).unwrap());
            tokio::time::timeout(DEADLINE, all).await.expect("everybody sees everybody").unwrap();
        }
        Started { fleet, took: began.elapsed() }
    }

    /// Ends them all as a power cut does.
    pub async fn drop_all(self) {
        for task in self.following {
            task.abort();
            let _ = task.await;
        }
    }

    /// Returns the time each of `count` new leases took to each agent.
    pub async fn changes(&self, etcd: &Etcd, count: u32) -> Vec<Duration> {
        let options =
            EtcdOptions { endpoints: vec![etcd.endpoint.clone()], ca: None, identity: None, user: None, again: None };
        let store = EtcdStore::connect(options).unwrap();
        let mut times = Vec::new();
        for number in 0..count {
            let net = format!("172.16.{number}.0/24").parse().unwrap();
            let subnets = SubnetKey::new(Some(net), None).unwrap();
            let value = flatnet_plane::flannel::encode_lease(&publication(60_000 + number), None);
            let began = Instant::now();
            let mut waiting = JoinSet::new();
            for view in &self.views {
                let mut view = view.clone();
                waiting.spawn(async move {
                    view.wait_for(|view| view.state.leases.contains_key(&subnets)).await.unwrap();
                    began.elapsed()
                });
            }
            let put = Write::Put { key: keys().lease(&subnets), value, lease: None };
            store.txn(Txn { when: Vec::new(), then: vec![put] }).await.unwrap();
            while let Some(time) = waiting.join_next().await {
                times.push(time.unwrap());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        times
    }
}

fn publication(number: u32) -> Publication {
    let [_, a, b, c] = number.to_be_bytes();
    let vni = Vni::new(1).unwrap();
    Publication {
        public_ip: Some(Ipv4Addr::new(198, 18 + a, b, c)),
        public_ipv6: None,
        backend: BackendKind::Vxlan,
        data: BackendData::Vxlan {
            vni: Some(vni),
            mac: vtep_mac(NodeId::new(u128::from(number) + 1), vni, IpFamily::V4),
        },
        data_v6: BackendData::None,
        besides: Vec::new(),
    }
}

/// Runs the tasks of an agent: presence, the view, and a lease once the network is known.
async fn agent(number: u32, options: RemoteOptions) -> (watch::Receiver<NetworkView>, JoinHandle<()>) {
    let owner = Owner {
        node: options.node,
        name: options.name.clone(),
        nonce: InstanceNonce::new(u128::from(number) + 1_000_000),
    };
    let remote = Remote::new(options).unwrap();
    let (sender, mut view) = watch::channel(NetworkView::default());
    let following = tokio::spawn(follow(Arc::new(remote.clone()), keys(), TTL, sender));
    let again = Duration::from_millis(200 + u64::from(number % 100) * 8);
    let began = Instant::now();
    while let Err(error) = remote.announce(&owner, &HostRanges::default()).await {
        assert!(began.elapsed() < DEADLINE, "agent{number} is not present: {error}");
        tokio::time::sleep(again).await;
    }
    let known = |view: &NetworkView| view.source == Source::Store && view.state.valid_config().is_some();
    let state = view.wait_for(known).await.unwrap().state.clone();
    let request = ClaimRequest {
        keys: keys(),
        owner,
        publication: publication(number),
        wanted: Vec::new(),
        previous: None,
        ttl: TTL,
        adopt: true,
        known: None,
    };
    while let Err(error) = remote.acquire(&request, &state, &mut OsRandom).await {
        assert!(began.elapsed() < DEADLINE, "agent{number} has no lease: {error}");
        tokio::time::sleep(again).await;
    }
    (view, following)
}
