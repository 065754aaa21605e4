//! Tests over a real listener, to which requests come as from Prometheus and a load balancer.

use std::net::SocketAddr;
use std::time::SystemTime;

use flatnet_core::object::Datapath;
use flatnet_core::outcome::NetworkOutcome;
use flatnet_model::state::ConfigState;
use flatnet_model::{BackendData, BackendKind, InstanceNonce, Lease, NetworkName, NodeId, Owner, SubnetKey};
use flatnet_plane::store::StoreErrorKind;
use flatnet_plane::watch::NetworkView;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::node::network_report::NetworkReport;
use crate::wiring::networks::{Held, Holding, NetworkPort};
use crate::wiring::part::Reports;

fn own_lease(subnets: SubnetKey) -> Lease {
    Lease {
        subnets,
        public_ip: Some([192, 0, 2, 1].into()),
        public_ipv6: None,
        backend: BackendKind::HostGw,
        data: BackendData::None,
        data_v6: BackendData::None,
        besides: Vec::new(),
        owner: Some(Owner { node: NodeId::new(1), name: "host1".to_owned(), nonce: InstanceNonce::new(1) }),
        etcd_lease: None,
        create_revision: 1,
        mod_revision: 1,
    }
}

/// The sources of the pages, to be changed by a test.
struct Agent {
    address: SocketAddr,
    outcome: watch::Sender<Outcome>,
    holding: watch::Sender<Holding>,
    view: watch::Sender<NetworkView>,
    env_written: watch::Sender<bool>,
}

impl Agent {
    async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (outcome, outcomes) = watch::channel(Outcome::default());
        let (holding, holdings) = watch::channel(Holding::default());
        let (view, views) = watch::channel(NetworkView::default());
        let (env_written, written) = watch::channel(false);
        let port = NetworkPort {
            name: NetworkName::default_network(),
            view: views,
            holding: holdings,
            bridge: None,
            env_file: Default::default(),
        };
        let report = NetworkReport { port: port.clone(), outcome: outcomes.clone(), node: NodeId::new(1) };
        let status = StatusSource {
            node: NodeId::new(1),
            name: "host1".to_owned(),
            networks: watch::channel(vec![port]).1,
            reports: Reports::of(vec![Arc::new(outcomes.clone()), Arc::new(report)]),
            outcome: outcomes,
        };
        tokio::spawn(serve(listener, status, Arc::new(Metrics::new()), written));
        Self { address, outcome, holding, view, env_written }
    }

    /// Gives the agent a lease, and makes the kernel what it should be.
    fn converge(&self) {
        let config = flatnet_plane::flannel::decode_config(br#"{"Network":"10.100.0.0/16"}"#).unwrap().0;
        self.view.send_modify(|view| view.state.config = ConfigState::Valid(config.clone()));
        let held = Held {
            subnets: "10.100.7.0-24".parse().unwrap(),
            config,
            change: Default::default(),
            expires: Some(SystemTime::now()),
        };
        self.view.send_modify(|view| drop(view.state.leases.insert(held.subnets, own_lease(held.subnets))));
        self.holding.send_modify(|holding| holding.held = Some(held));
        self.view.send_modify(|view| view.connection = flatnet_plane::watch::Connection::Connected);
        self.passed(true);
    }

    fn passed(&self, complete: bool) {
        self.outcome.send_modify(|outcome| {
            outcome.passes += 1;
            outcome.last_pass = Some(Instant::now());
            outcome.complete = complete;
            let name = NetworkName::default_network();
            outcome.networks = vec![NetworkOutcome {
                name,
                mtu: None,
                devices: Vec::new(),
                datapath: Datapath::Kernel,
                ways: Vec::new(),
                peers: Vec::new(),
            }];
        });
    }

    /// Requests `path`. Returns status code, head and body.
    async fn get(&self, path: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
    }
}

#[tokio::test]
async fn readiness_comes_with_lease_kernel_and_env_file_and_stays_while_the_store_is_away() {
    let agent = Agent::serve().await;
    let (code, _, body) = agent.get("/readyz").await;
    assert_eq!((code, body.lines().next()), (503, Some("starting")));
    assert!(body.contains("store-connecting: "), "{body}");
    agent.converge();
    assert_eq!(agent.get("/readyz").await.0, 503, "the env file is not written");
    agent.env_written.send_replace(true);
    let (code, _, body) = agent.get("/readyz").await;
    assert_eq!((code, body.as_str()), (200, "converged\n"));
    let lost = flatnet_plane::watch::Connection::Lost { reason: "gone".to_owned(), kind: StoreErrorKind::Unavailable };
    agent.view.send_modify(|view| view.connection = lost);
    assert_eq!(agent.get("/readyz").await.0, 200);
    agent.passed(false);
    assert_eq!(agent.get("/readyz").await.0, 503, "the kernel refused something");
}

#[tokio::test]
async fn a_lease_that_the_others_do_not_see_is_neither_ready_nor_converged() {
    let agent = Agent::serve().await;
    agent.converge();
    agent.env_written.send_replace(true);
    assert_eq!(agent.get("/readyz").await.0, 200);
    // The lease ended in the store, though what was held stays in force here.
    agent.view.send_modify(|view| view.state.leases.clear());
    let (code, _, body) = agent.get("/readyz").await;
    assert_eq!((code, body.lines().next()), (503, Some("degraded")));
    assert!(body.contains("lease-unconfirmed: "), "{body}");
    agent.converge();
    assert_eq!(agent.get("/readyz").await.0, 200);
    // The lease is known from disk alone: the one in the store may be an earlier run's, and end.
    agent.holding.send_modify(|holding| {
        if let Some(held) = &mut holding.held {
            held.expires = None;
        }
    });
    let (code, _, body) = agent.get("/readyz").await;
    assert!(code == 503 && body.contains("lease-unconfirmed: "), "{code} {body}");
    // A store that is away says nothing either way: packets flow.
    let lost = flatnet_plane::watch::Connection::Lost { reason: "gone".to_owned(), kind: StoreErrorKind::Unavailable };
    agent.view.send_modify(|view| view.connection = lost);
    let (code, _, body) = agent.get("/readyz").await;
    assert_eq!((code, body.as_str()), (200, "degraded\n"));
}

#[tokio::test]
async fn unknown_paths_are_not_found_and_health_is_there_from_the_start() {
    let agent = Agent::serve().await;
    assert_eq!(agent.get("/").await.0, 404);
    let (code, _, body) = agent.get("/healthz").await;
    assert_eq!((code, body.as_str()), (200, "ok\n"));
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_never_begins_or_stops_turning_is_not_healthy() {
    let (sender, receiver) = watch::channel(Outcome::default());
    let pulse = Pulse::new(receiver);
    assert!(pulse.check().is_ok());
    tokio::time::advance(STALLED_AFTER).await;
    assert_eq!(pulse.check(), Err(STALLED_AFTER), "it never began");
    sender.send_modify(|outcome| outcome.last_pass = Some(Instant::now()));
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(pulse.check(), Ok(Duration::from_secs(61)), "it passes once a minute when nothing happens");
    tokio::time::advance(STALLED_AFTER).await;
    assert!(pulse.check().is_err());
}

#[tokio::test]
async fn metrics_say_what_they_are_and_end_as_openmetrics_must() {
    let agent = Agent::serve().await;
    agent.converge();
    let (code, head, body) = agent.get("/metrics").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    assert!(body.contains("flatnet_controlplane_connected{network=\"default\"} 1\n"), "{body}");
}
