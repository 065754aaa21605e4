//! Clients that want to do harm, beside honest ones.

use std::time::{Duration, Instant};

use flatnet_model::HostRanges;
use flatnet_plane::client::channel;
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::tls::{self, Trust};
use flatnet_proto::controlplane::v1 as proto;
use proto::enrollment_client::EnrollmentClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::fleet::{Fleet, keys};

#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens_by_the_thousand_harm_no_honest_node() {
    let fleet = Fleet::start().await;
    let honest = fleet.node(1).await;
    let claim = honest.acquire().await;
    let config = tls::client(&Trust::Hash(fleet.ca_hash.clone()), None).unwrap();
    let channel = channel::tls(&fleet.server(), config).unwrap();
    let (_, csr) = flatnet_plane::identity::new_request().unwrap();
    let mut codes = std::collections::BTreeMap::new();
    for number in 0..2000_u32 {
        let message = proto::JoinRequest {
            token: format!("{number:010x}.{}", "0".repeat(40)),
            csr: csr.clone(),
            node: format!("{number:032x}"),
            name: "x".to_owned(),
        };
        let code = EnrollmentClient::new(channel.clone()).join(message).await.unwrap_err().code();
        *codes.entry(format!("{code:?}")).or_insert(0) += 1;
        if number % 500 == 0 {
            assert!(honest.remote.renew(&keys(), &claim).await.is_ok());
        }
    }
    assert_eq!(codes["Unauthenticated"], 10, "{codes:?}");
    assert!(honest.remote.renew(&keys(), &claim).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_and_garbage_are_bounded_and_honest_nodes_get_through() {
    let fleet = Fleet::start().await;
    let honest = fleet.node(1).await;
    let claim = honest.acquire().await;
    // Nothing, or nonsense, and then silence.
    let mut idle = Vec::new();
    for number in 0..400 {
        let Ok(mut stream) = TcpStream::connect(fleet.address).await else { break };
        if number % 2 == 0 {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n\0\0\0\0").await;
        }
        idle.push(stream);
    }
    // The one that is there already, and one that comes now: handshakes that say nothing end after 5 s.
    assert!(honest.remote.renew(&keys(), &claim).await.is_ok());
    let began = Instant::now();
    let token = fleet.token(1).await;
    let late = fleet.newcomer(2, Some(&token));
    while late.remote.announce(&late.owner, &HostRanges::default()).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(40), "an honest node does not get through");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut rest = Vec::new();
    // The server hung up on the clients that talked nonsense.
    let _ = tokio::time::timeout(Duration::from_secs(10), idle[0].read_to_end(&mut rest)).await.expect("closed");
}

/// HTTP/2 (RFC 9113): the preface, an empty SETTINGS frame; and a PING, which must be answered.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_asks_and_never_reads_is_gone_within_its_time_all_the_same() {
    let fleet = Fleet::start().await;
    let config = tls::client(&Trust::Hash(fleet.ca_hash.clone()), None).unwrap();
    let tcp = tokio::net::TcpSocket::new_v4().unwrap();
    // So that the server's answers soon have no room.
    tcp.set_recv_buffer_size(4096).unwrap();
    let tcp = tcp.connect(fleet.address).await.unwrap();
    let name = tls::server_name().unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
    let began = Instant::now();
    stream.write_all(PREFACE).await.unwrap();
    let pings = PING.repeat(1000);
    let error = loop {
        assert!(began.elapsed() < Duration::from_secs(30), "it is still served");
        // The window is full: the server reads no more, as it cannot answer.
        match tokio::time::timeout(Duration::from_secs(1), stream.write_all(&pings)).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => break error,
        }
    };
    assert!(began.elapsed() > Duration::from_secs(15), "{error} after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_and_senseless_messages_are_refused() {
    let fleet = Fleet::start().await;
    let node = fleet.node(1).await;
    let mut raw = node.raw(&fleet);
    let instance = Some(flatnet_plane::wire::instance(&node.owner));
    let request = |publication: Vec<u8>, wanted: Vec<String>| proto::AcquireRequest {
        network: "default".to_owned(),
        instance: instance.clone(),
        publication,
        wanted,
        ttl_secs: 3600,
        ..Default::default()
    };
    let huge = raw.acquire(request(vec![b' '; 3_000_000], vec![])).await.unwrap_err();
    assert!(matches!(huge.code(), Code::OutOfRange | Code::ResourceExhausted), "{huge:?}");
    for publication in [vec![], b"{}".to_vec(), vec![0xff; 1000], b"[".repeat(8000)] {
        assert_eq!(raw.acquire(request(publication, vec![])).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let good = flatnet_plane::flannel::encode_lease(&node.publication(), None);
    for wanted in ["", "10.50.0.0/16/1", "10.50.3.1/24", &"9".repeat(5000)] {
        let refused = raw.acquire(request(good.clone(), vec![wanted.to_owned()])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{wanted:.20}");
        assert!(refused.message().len() < 500, "hostile input is never said back whole");
    }
    for network in ["", "../x", "A", &"x".repeat(10_000)] {
        let watch = raw.watch(proto::WatchRequest { network: network.to_owned(), position: None }).await;
        assert_eq!(watch.unwrap_err().code(), Code::InvalidArgument);
    }
    assert!(fleet.store.dump().keys().all(|key| !key.starts_with(keys().subnets().as_bytes())));
}
