//! The servers between hosts and the store, and what happens to them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flatnet_controlplane::authority::NODE_LIFETIME;
use flatnet_controlplane::server;
use flatnet_controlplane::simulation::{Replica, time_of_day};
use flatnet_model::keys::FLANNEL_PREFIX;
use flatnet_model::{NodeId, Owner};
use flatnet_plane::client::channel::Transport;
use flatnet_plane::client::credentials::{CERTIFICATE_FILE, Credentials};
use flatnet_plane::client::{Remote, RemoteOptions, ServerAddress};
use flatnet_plane::store::memory::{Link, MemoryStore};
use flatnet_proto::controlplane::v1 as proto;
use hyper_util::rt::TokioIo;
use proto::admin_client::AdminClient;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::chance::Chance;
use crate::net::Net;
use crate::oracle;
use crate::plane::ModelPlane;
use crate::store::ModelStore;
use crate::trace::RunLog;
use crate::world::World;

/// The time that an administrator waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most networks that administrators create, two at a time.
const MADE: u32 = 6;

/// All servers of a run.
pub struct Servers {
    /// The network through which hosts reach them.
    pub net: Net,
    /// Each server's way to the store.
    pub clients: Vec<MemoryStore>,
    dir: PathBuf,
    /// The time that nodes' certificates are good.
    node_lifetime: Duration,
    ca_hash: String,
    starts: u64,
    made: u32,
}

impl Servers {
    /// Creates the servers; none runs yet.
    pub fn new(hosts: usize, count: usize, store: &MemoryStore, dir: PathBuf, mut chance: Chance) -> Self {
        /// A lifetime that is renewed after a minute: a host that is cut off or down for two may be too late.
        const SHORT: Duration = Duration::from_secs(180);
        let node_lifetime = if chance.one_in(3) { SHORT } else { NODE_LIFETIME };
        Self {
            net: Net::new(hosts, count, chance),
            clients: (0..count).map(|_| store.client()).collect(),
            dir,
            node_lifetime,
            ca_hash: String::new(),
            starts: 0,
            made: 0,
        }
    }
}

impl World {
    /// Starts a server that does not run.
    pub async fn start_server(&mut self, index: usize) {
        let networks = self.networks.iter().map(|network| network.keys.clone()).collect();
        let (seed, trace, mutant) = (self.seed(), self.trace.clone(), self.mutant());
        let Some(servers) = &mut self.servers else { return };
        if servers.net.is_up(index) {
            return;
        }
        servers.starts += 1;
        let log = RunLog {
            name: format!("server{index}"),
            networks,
            leaving: AtomicBool::new(false),
            snapshots: Mutex::default(),
            chance: Mutex::new(Chance::new(seed ^ (servers.starts << 48))),
            trace,
        };
        log.trace.say(format!("server{index} starts"));
        let store = ModelStore { inner: servers.clients[index].clone(), log: Arc::new(log), mutant };
        let replica = Replica::start(Arc::new(store), FLANNEL_PREFIX, &servers.dir, servers.node_lifetime);
        let replica = replica.await.unwrap();
        servers.ca_hash = replica.ca_hash().to_owned();
        servers.net.set_replica(index, Some(replica));
    }

    /// Makes a node's way to the servers, with a token if the node has no certificate.
    pub async fn join_servers(&mut self, owner: &Owner, host: usize, log: Arc<RunLog>) -> ModelPlane {
        let state = self.dirs(host).0;
        self.slots[host].has_token = !has_certificate(&state);
        if self.slots[host].has_token && state.join(CERTIFICATE_FILE).exists() {
            log.trace.say(format!("{}'s certificate is over", log.name));
        }
        let token = if self.slots[host].has_token {
            let ttl = Duration::from_secs(self.chance.pick(&[20, 3600]));
            Some(server::create_token(&self.store, ttl, 1).await.unwrap().token)
        } else {
            None
        };
        let servers = self.servers.as_ref().unwrap();
        servers.net.set_address(host, self.slots[host].underlay());
        let count = servers.clients.len();
        let first = self.chance.below(count);
        let seats = (0..count).map(|seat| (first + seat) % count);
        let seats = seats.map(|seat| ServerAddress { host: "server".to_owned(), port: u16::try_from(seat).unwrap() });
        let options = RemoteOptions {
            servers: seats.collect(),
            dir: state,
            node: owner.node,
            name: owner.name.clone(),
            token,
            ca_hash: Some(servers.ca_hash.clone()),
        };
        let transport = Transport::Simulated(servers.net.dialer(host));
        let remote = Remote::over(transport, options).unwrap();
        ModelPlane::Servers { remote, log }
    }

    /// Returns an administrator's client of a server.
    fn admin(&self, server: usize) -> AdminClient<Channel> {
        let net = self.servers.as_ref().unwrap().net.clone();
        let endpoint = Endpoint::from_static("http://controlplane");
        AdminClient::new(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let stream = net.local(server).ok_or_else(|| std::io::Error::other("the server does not run"));
            std::future::ready(stream.map(TokioIo::new))
        })))
    }

    /// Returns the nodes that the store says are revoked.
    pub fn revoked(&self) -> BTreeSet<NodeId> {
        self.slots
            .iter()
            .map(|slot| self.owner(slot.index).node)
            .filter(|node| is_revoked(&self.store, *node))
            .collect()
    }

    /// Lets something happen to the servers or to the network.
    pub async fn server_step(&mut self) {
        let count = self.servers.as_ref().unwrap().clients.len();
        let (server, host) = (self.chance.below(count), self.chance.below(self.slots.len()));
        let what = self.chance.below(100);
        let link = self.chance.pick(&[Link::Down, Link::Stalled]);
        let servers = self.servers.as_ref().unwrap();
        let trace = &self.trace;
        match what {
            0..20 if servers.net.is_up(server) => {
                trace.say(format!("server{server} crashes"));
                servers.net.set_replica(server, None);
            }
            0..40 => self.start_server(server).await,
            40..52 => {
                trace.say(format!("n{host} to server{server} {link:?}"));
                servers.net.set_link(host, server, link);
            }
            52..62 => {
                trace.say(format!("n{host} reaches all servers"));
                servers.net.set_host(host, Link::Up);
            }
            62..70 => {
                trace.say(format!("server{server} to the store {link:?}"));
                servers.clients[server].set_link(link);
            }
            70..78 => {
                trace.say("all servers reach the store");
                servers.clients.iter().for_each(|client| client.set_link(Link::Up));
            }
            78..86 => {
                trace.say(format!("n{host} is slow to read: {}", what < 83));
                servers.net.set_slow(host, what < 83);
            }
            86..93 => self.make_networks(server).await,
            _ => self.revoke(server, host).await,
        }
    }

    /// Has two administrators create a network each, at the same time, at two servers, now and then out of the same
    /// range.
    async fn make_networks(&mut self, server: usize) {
        let other = self.chance.below(self.servers.as_ref().unwrap().clients.len());
        let same = self.chance.one_in(2);
        let servers = self.servers.as_mut().unwrap();
        if servers.made >= MADE {
            return;
        }
        let first = servers.made;
        servers.made += 2;
        let request = |number: u32, range: u32| proto::ChangeNetworkRequest {
            name: format!("made{number}"),
            cidr: Some(format!("10.{}.0.0/16", 200 + range)),
            backend: Some("vxlan".to_owned()),
            ..Default::default()
        };
        let (one, two) = (request(first, first), request(first + 1, if same { first } else { first + 1 }));
        let (mut at, mut beside) = (self.admin(server), self.admin(other));
        let both = async { tokio::join!(at.create_network(one), beside.create_network(two)) };
        let said = tokio::time::timeout(PATIENCE, both).await;
        let said = said.map(|(one, two)| (one.map(drop).map_err(|e| e.code()), two.map(drop).map_err(|e| e.code())));
        self.trace.say(format!("made{first}, made{} at server{server}, server{other}: {said:?}", first + 1));
        if same && matches!(said, Ok((Ok(()), Ok(())))) && !self.went_back {
            self.trace.violation("two networks got the same range");
        }
    }

    /// Has an administrator end a node's rights.
    async fn revoke(&mut self, server: usize, host: usize) {
        let id = self.owner(host).node.to_string();
        let mut admin = self.admin(server);
        let said = tokio::time::timeout(PATIENCE, admin.revoke_node(proto::NodeRequest { id })).await;
        self.trace.say(format!("n{host} is revoked at server{server}: {:?}", said.map(|said| said.map(drop))));
    }

    /// Makes the servers run and be reachable. Whoever holds a token that is over gets another one.
    pub async fn calm_servers(&mut self) {
        let Some(servers) = &self.servers else { return };
        let count = servers.clients.len();
        let hosts = self.slots.len();
        for client in &servers.clients {
            client.clear_faults();
            client.set_link(Link::Up);
        }
        for host in 0..hosts {
            servers.net.set_host(host, Link::Up);
            servers.net.set_slow(host, false);
        }
        // One of several servers may stay away.
        let away = (count > 1 && self.chance.one_in(2)).then(|| self.chance.below(count));
        for server in 0..count {
            if away == Some(server) {
                self.servers.as_ref().unwrap().net.set_replica(server, None);
            } else {
                self.start_server(server).await;
            }
        }
        for host in 0..hosts {
            if self.slots[host].running.is_some() && !has_certificate(&self.dirs(host).0) {
                self.kill(host).await;
                self.start(host).await;
            }
        }
    }
}

/// Returns true if a node has a certificate that is good until it can renew it.
fn has_certificate(state: &Path) -> bool {
    /// The time that a node needs to reach a server again while one of them is away.
    const TO_RENEW: Duration = Duration::from_secs(30);
    let found = Credentials::read(state).unwrap();
    found.is_some_and(|found| !found.holder().is_over(time_of_day() + TO_RENEW))
}

fn is_revoked(store: &MemoryStore, node: NodeId) -> bool {
    let key = format!("/flatnet/controlplane/nodes/{node}");
    let value = store.dump().remove(key.as_bytes()).map(|kv| kv.value);
    let record: Option<serde_json::Value> = value.and_then(|value| serde_json::from_slice(&value).ok());
    record.is_some_and(|record| record["revoked"] == true)
}

/// Returns two networks that administrators created and that share a VNI or a range, if there are any.
pub fn two_networks(world: &World) -> Option<String> {
    let made = world.servers.as_ref()?.made;
    let configs: Vec<_> = (0..made)
        .filter_map(|number| {
            let name = format!("made{number}");
            let keys = flatnet_model::keys::NetworkKeys::new(&name.parse().unwrap(), FLANNEL_PREFIX);
            oracle::configuration(&world.store, &keys).map(|config| (name, config))
        })
        .collect();
    for (index, (name, config)) in configs.iter().enumerate() {
        for (other, second) in &configs[index + 1..] {
            let (a, b) = (config.v4.as_ref()?.network(), second.v4.as_ref()?.network());
            if a.contains(&b) || b.contains(&a) || config.backend == second.backend {
                return Some(format!("two owners: networks {name} and {other} have the same range or VNI"));
            }
        }
    }
    None
}
