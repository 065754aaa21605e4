//! Tests of a whole node over a store and a kernel in memory, in paused time: networks come and go while it runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flatnet_core::facts::{Features, HostFacts, Interface};
use flatnet_core::object::KernelState;
use flatnet_core::problem::ProblemCode;
use flatnet_core::underlay::Selection;
use flatnet_kernel::fake::FakeKernel;
use flatnet_model::keys::{FLANNEL_PREFIX, NetworkKeys};
use flatnet_model::{IfName, InstanceNonce, IpFamily, Mtu, NodeId, Owner};
use flatnet_plane::random::NodeRandom;
use flatnet_plane::store::memory::{Link, MemoryStore};
use tokio::time::sleep;

use super::*;
use crate::files::state_dir::StateDir;
use crate::files::sysctl_record::SysctlRecord;
use crate::files::underlay_record::UnderlayRecord;
use crate::files::wireguard_key::WireguardIdentity;
use crate::node::Node;
use crate::report::Exit;
use crate::wiring::context::NodeSetup;
use crate::wiring::host_options::HostOptions;

/// A time in which a node with a store in memory has done everything there is to do.
const SETTLED: Duration = Duration::from_secs(3);

fn name(text: &str) -> NetworkName {
    text.parse().unwrap()
}

fn device(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn keys(network: &str) -> NetworkKeys {
    NetworkKeys::new(&name(network), FLANNEL_PREFIX)
}

fn facts() -> HostFacts {
    let eth0 = device("eth0");
    let interface = Interface {
        name: eth0,
        up: true,
        loopback: false,
        mtu: Some(Mtu::new(1500).unwrap()),
        addresses: vec!["192.0.2.10/24".parse().unwrap()],
        ours: false,
    };
    HostFacts {
        interfaces: vec![interface],
        default_route: vec![(IpFamily::V4, eth0)],
        features: Features { nexthop_objects: true, ipv6: true, ..Features::default() },
        ..HostFacts::default()
    }
}

/// A host with a node. Its files go when it is dropped.
struct Host {
    /// The operator's way to the store.
    store: MemoryStore,
    /// The node's way to the store.
    client: MemoryStore,
    kernel: FakeKernel,
    dir: PathBuf,
    /// The networks that the command line names.
    named: Vec<NetworkName>,
    node: Option<Node<MemoryStore, FakeKernel>>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.node = None;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Host {
    /// Starts a node in `default` and, if they are `named`, further networks. The store has `default`, `blue` and
    /// `red`. `test` keeps the files of tests apart.
    async fn start(test: &str, named: &[&str]) -> Self {
        let store = MemoryStore::new();
        for (network, range, vni) in
            [("default", "10.100.0.0/16", 1), ("blue", "10.101.0.0/16", 2), ("red", "10.102.0.0/16", 3)]
        {
            let config = format!(r#"{{"Network":"{range}","Backend":{{"Type":"vxlan","VNI":{vni}}}}}"#);
            store.put(keys(network).config(), config, None);
        }
        let dir = std::env::temp_dir().join(format!("flatnet-membership-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (client, kernel) = (store.client(), FakeKernel::new(facts()));
        let named = named.iter().map(|text| name(text)).collect();
        let mut host = Self { store, client, kernel, dir, named, node: None };
        host.run().await;
        host
    }

    /// Starts the node on the files and the kernel of an earlier one.
    async fn run(&mut self) {
        let dir = Arc::new(StateDir::open(&self.dir.join("state"), &self.dir.join("run")).unwrap());
        let record = NetworkRecord::open(Arc::clone(&dir));
        let owner = Owner { node: NodeId::new(1), name: "host1".to_owned(), nonce: InstanceNonce::new(1) };
        let networks = self.named.iter().map(|name| record.setup(name, &RunTimeOptions::default(), FLANNEL_PREFIX));
        let host = HostOptions {
            node: owner.node,
            selection: Selection::default(),
            bridge: Some(device("flbr0")),
            masquerade: true,
            take_over: false,
            exposure: Default::default(),
            endpoints: watch::channel(Vec::new()).1,
            userspace: false,
            other_endpoints: Vec::new(),
        };
        let setup = NodeSetup {
            plane: Arc::new(self.client.clone()),
            kernel: Arc::new(self.kernel.clone()),
            sysctls: SysctlRecord::open(Arc::clone(&dir)).unwrap(),
            wireguard: WireguardIdentity::new(Arc::clone(&dir), Default::default()),
            underlay: UnderlayRecord::open(Arc::clone(&dir)),
            ranges: Default::default(),
            store_at: watch::channel(Vec::new()).1,
            owner,
            host,
            networks: networks.collect(),
            record,
            lease_ttl: Duration::from_secs(3_600),
            flannel_prefix: FLANNEL_PREFIX.to_owned(),
            random: NodeRandom::seeded(7),
            dir,
        };
        self.node = Some(Node::start(setup));
        sleep(SETTLED).await;
    }

    /// Ends the node and starts the next one.
    async fn restart(&mut self) {
        self.node().stop().await;
        self.node = None;
        self.run().await;
    }

    fn node(&mut self) -> &mut Node<MemoryStore, FakeKernel> {
        self.node.as_mut().unwrap()
    }

    async fn join(&mut self, network: &str, options: RunTimeOptions) -> Result<Joining, JoinError> {
        self.node().membership().join(&name(network), options).await
    }

    async fn leave(&mut self, network: &str, purge: bool) -> Result<Left, LeaveError> {
        let left = self.node().membership().leave(&name(network), purge).await;
        // The env file goes a moment later.
        sleep(Duration::from_millis(1)).await;
        left
    }

    /// Returns the networks that the status lists.
    fn networks(&mut self) -> Vec<String> {
        self.node().status().status().networks.into_iter().map(|network| network.name).collect()
    }

    fn state(&mut self) -> String {
        self.node().status().status().state
    }

    fn leases(&self, network: &str) -> usize {
        let prefix = keys(network).subnets().into_bytes();
        self.store.dump().keys().filter(|key| key.starts_with(&prefix)).count()
    }

    /// Returns true if nothing that the kernel has lies in the range of `blue`.
    fn has_nothing_of_blue(&self) -> bool {
        let state = self.kernel.state();
        !state.links.contains_key(&device("flat.2")) && !format!("{state:?}").contains("10.101.")
    }

    fn env_file(&self, network: &str) -> bool {
        self.dir.join("run").join(format!("{network}.env")).exists()
    }

    fn file(&self, file: &str) -> bool {
        self.dir.join("state").join(Path::new(file)).exists()
    }
}

/// Returns the state without the settings of devices, which come and go with them.
fn objects(kernel: &FakeKernel) -> KernelState {
    KernelState { sysctls: Default::default(), ..kernel.state() }
}

#[tokio::test(start_paused = true)]
async fn a_further_network_comes_up_and_goes_and_the_first_has_exactly_what_it_had() {
    let mut host = Host::start("come-and-go", &["default"]).await;
    assert_eq!(host.state(), "converged");
    let before = objects(&host.kernel);
    let joined = host.join("blue", RunTimeOptions::default()).await.unwrap();
    assert!(joined.up, "{:?}", joined.problems);
    assert_eq!(joined.document.device.as_deref(), Some("flat.2"));
    assert_eq!((host.leases("blue"), host.env_file("blue")), (1, true), "who waited for it may start containers");
    assert_eq!(
        (host.networks(), host.state()),
        (vec!["default".to_owned(), "blue".to_owned()], "converged".to_owned())
    );
    let with_blue = host.kernel.state();
    assert!(before.links.iter().all(|(name, link)| with_blue.links.get(name) == Some(link)));
    sleep(SETTLED).await;

    let left = host.leave("blue", false).await.unwrap();
    assert!(left.remains.is_empty() && !left.is_named, "{left:?}");
    assert_eq!(objects(&host.kernel), before);
    assert_eq!((host.leases("blue"), host.leases("default"), host.env_file("blue")), (0, 1, false));
    assert_eq!((host.networks(), host.state()), (vec!["default".to_owned()], "converged".to_owned()));
    assert!(!host.file("networks"), "there is nothing to remember");
    let page = {
        let node = host.node();
        node.metrics().render(&node.status().status(), &node.status().gauges())
    };
    assert!(!page.contains("network=\"blue\""), "{page}");
    assert!(matches!(host.leave("blue", false).await, Err(LeaveError::NotJoined(_))));
}

#[tokio::test(start_paused = true)]
async fn what_was_joined_and_left_is_remembered_and_what_was_said_last_holds() {
    let mut host = Host::start("remembered", &["default", "red"]).await;
    let asked = RunTimeOptions { subnets: vec!["10.101.9.0/24".parse().unwrap()], subnet_file: None };
    assert!(host.join("blue", asked.clone()).await.unwrap().up);
    assert!(host.join("blue", asked).await.unwrap().up, "joining what is joined changes nothing");
    assert!(host.leave("red", false).await.unwrap().is_named);
    host.restart().await;
    assert_eq!(host.networks(), ["default", "blue"]);
    assert_eq!(
        host.join("blue", RunTimeOptions::default()).await.unwrap().document.subnet.as_deref(),
        Some("10.101.9.0/24")
    );
    let named = RunTimeOptions { subnet_file: Some("/run/red".into()), ..RunTimeOptions::default() };
    assert!(matches!(host.join("red", named).await, Err(JoinError::Named(_))));
    assert!(host.join("red", RunTimeOptions::default()).await.unwrap().up);
    host.restart().await;
    assert_eq!(host.networks(), ["default", "red", "blue"]);

    // A node that leaves all its networks has nothing to remember.
    assert_eq!(host.node().leave(false).await, Vec::<String>::new());
    assert_eq!((host.leases("default"), host.leases("blue"), host.leases("red")), (0, 0, 0));
    host.restart().await;
    assert_eq!(host.networks(), ["default", "red"]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_joined_is_refused_and_nothing_is_left_of_the_attempt() {
    let mut host = Host::start("refused", &["default"]).await;
    let before = objects(&host.kernel);
    assert!(matches!(host.join("green", RunTimeOptions::default()).await, Err(JoinError::NoSuchNetwork(_))));
    let outside = RunTimeOptions { subnets: vec!["10.99.9.0/24".parse().unwrap()], subnet_file: None };
    let refused = host.join("blue", outside.clone()).await.unwrap_err();
    assert!(matches!(&refused, JoinError::Refused(failure) if failure.exit() == Exit::InvalidConfig), "{refused}");
    assert!(matches!(host.join("default", outside).await, Err(JoinError::OtherOptions(_))));
    let same_file = RunTimeOptions { subnets: Vec::new(), subnet_file: Some(host.dir.join("run/subnet.env")) };
    assert!(matches!(host.join("blue", same_file).await, Err(JoinError::FileInUse { .. })));
    assert!(host.node().fatal.try_recv().is_err(), "the agent goes on");
    assert_eq!(host.networks(), ["default"]);
    assert_eq!((objects(&host.kernel), host.file("networks"), host.leases("blue")), (before, false, 0));
}

#[tokio::test(start_paused = true)]
async fn a_network_that_this_host_cannot_have_now_waits_and_another_may_leave_meanwhile() {
    let mut host = Host::start("waits", &["default"]).await;
    assert!(host.join("blue", RunTimeOptions::default()).await.unwrap().up);
    // The range of the underlay.
    let covers = r#"{"Network":"192.0.0.0/16","Backend":{"Type":"vxlan","VNI":3}}"#;
    host.store.put(keys("red").config(), covers, None);
    let joined = host.join("red", RunTimeOptions::default()).await.unwrap();
    assert!(!joined.up);
    assert!(
        joined.problems.iter().any(|problem| problem.code == ProblemCode::NetworkCoversHost),
        "{:?}",
        joined.problems
    );
    assert_eq!((host.networks().len(), host.leases("red")), (3, 0));
    host.leave("blue", false).await.unwrap();
    assert!(!host.kernel.state().links.contains_key(&device("flat.2")), "its tunnel is not left open without a guard");
    let range = r#"{"Network":"10.102.0.0/16","Backend":{"Type":"vxlan","VNI":3}}"#;
    host.store.put(keys("red").config(), range, None);
    sleep(SETTLED).await;
    assert_eq!((host.state(), host.leases("red"), host.has_nothing_of_blue()), ("converged".to_owned(), 1, true));
}

#[tokio::test(start_paused = true)]
async fn a_network_is_left_while_the_store_is_away_and_the_lease_that_remains_is_said() {
    let mut host = Host::start("away", &["default"]).await;
    assert!(host.join("blue", RunTimeOptions::default()).await.unwrap().up);
    host.client.set_link(Link::Down);
    sleep(SETTLED).await;
    let left = host.leave("blue", false).await.unwrap();
    assert!(matches!(left.remains.as_slice(), [Remains::Lease(_)]), "{left:?}");
    assert!(host.has_nothing_of_blue());
    assert_eq!((host.networks(), host.file("blue.subnet")), (vec!["default".to_owned()], true));
    host.client.set_link(Link::Up);
    sleep(SETTLED).await;
    let again = host.join("blue", RunTimeOptions::default()).await.unwrap();
    assert!(again.up, "its lease is found again: {:?}", again.problems);
    assert_eq!(host.leases("blue"), 1);
    host.leave("blue", true).await.unwrap();
    assert!(!host.file("blue.subnet") && !host.file("blue.snapshot"));
}

#[tokio::test(start_paused = true)]
async fn the_bridge_of_our_own_stays_with_the_first_network_that_is_named() {
    let mut host = Host::start("bridge", &["default"]).await;
    assert!(host.join("blue", RunTimeOptions::default()).await.unwrap().up);
    let bridge = host.kernel.state().links.get(&device("flbr0")).cloned();
    assert!(bridge.is_some());
    host.leave("default", false).await.unwrap();
    sleep(SETTLED).await;
    assert_eq!(host.kernel.state().links.keys().map(IfName::as_str).collect::<Vec<_>>(), ["flat.2"]);
    assert!(host.join("default", RunTimeOptions::default()).await.unwrap().up);
    assert_eq!(host.kernel.state().links.get(&device("flbr0")).cloned(), bridge);
}
