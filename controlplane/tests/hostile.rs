//! Hostile clients by the thousand at a real server process: its memory stays bounded, and an honest node goes on.

#![expect(clippy::unwrap_used, reason = "these are tests: a surprise fails them, and figures are printed")]

#[cfg(test)]
mod support;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::Request;
use flatnet_controlplane::server::SOCKET;
use flatnet_model::{HostRanges, InstanceNonce, NodeId, Owner};
use flatnet_plane::client::credentials::Credentials;
use flatnet_plane::client::{Remote, RemoteOptions, ServerAddress, channel};
use flatnet_plane::plane::ControlPlane;
use flatnet_plane::tls::{self, Trust};
use flatnet_proto::controlplane::v1 as proto;
use http_body::{Body as HttpBody, Frame};
use proto::admin_client::AdminClient;
use proto::enrollment_client::EnrollmentClient;
use proto::node_client::NodeClient;
use support::{ScratchDir, free_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::Service;

/// Bad tokens sent.
const TOKENS: u32 = 10_000;
/// Connections that say nothing, or nonsense.
const IDLE: usize = 1_000;
/// Watches that are opened and never read.
const SLOW: usize = 100;
/// The most memory that all of them together may cost the server, in KiB: 256 strangers and 100 streams, some 100 KiB
/// each, twice over.
const GROWTH_KIB: u64 = 96 * 1024;
/// The time a loaded machine may take to start the server; an idle one takes milliseconds.
const START: Duration = Duration::from_secs(60);

/// A server in a process of its own, killed when dropped.
struct Process {
    child: Child,
    address: ServerAddress,
    token: String,
    ca_hash: String,
    dir: ScratchDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    async fn start() -> Self {
        Self::start_with(65_536, &[]).await
    }

    /// Starts a server with at most `descriptors` open, and further arguments.
    async fn start_with(descriptors: u32, further: &[&str]) -> Self {
        let dir = ScratchDir::new("hostile");
        let port = free_port();
        let printed = dir.path().join("printed");
        let limited = format!("ulimit -n {descriptors} 2>/dev/null; exec \"$0\" \"$@\"");
        let child = Command::new("sh")
            .args(["-c", &limited, env!("CARGO_BIN_EXE_controlplane"), "serve", "--init", "10.50.0.0/16"])
            .args(further)
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--data-dir={}", dir.path().join("data").display()))
            .stdin(Stdio::null())
            .stdout(File::create(&printed).unwrap())
            .stderr(File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let line = loop {
            let text = fs::read_to_string(&printed).unwrap_or_default();
            if text.ends_with('\n') {
                break text;
            }
            assert!(began.elapsed() < START, "{}", fs::read_to_string(dir.path().join("log")).unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let after = |flag: &str| line.split_whitespace().skip_while(|word| *word != flag).nth(1).unwrap().to_owned();
        let address = ServerAddress { host: "127.0.0.1".to_owned(), port };
        Self { child, address, token: after("--token"), ca_hash: after("--ca-hash"), dir }
    }

    /// Returns the resident memory, in KiB.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    async fn node(&self, number: u8) -> (Remote, Owner) {
        let dir = self.dir.path().join(format!("node{number}"));
        fs::create_dir_all(&dir).unwrap();
        let owner = Owner {
            node: NodeId::new(u128::from(number)),
            name: format!("node{number}"),
            nonce: InstanceNonce::new(u128::from(number) + 1000),
        };
        let options = RemoteOptions {
            servers: vec![self.address.clone()],
            dir,
            node: owner.node,
            name: owner.name.clone(),
            token: Some(self.token.clone()),
            ca_hash: Some(self.ca_hash.clone()),
        };
        (Remote::new(options).unwrap(), owner)
    }

    /// Makes a client for the administrator on this machine.
    fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(channel::local(&self.dir.path().join("data").join(SOCKET)))
    }

    /// Makes a connection without a certificate.
    fn stranger(&self) -> Channel {
        channel::tls(&self.address, tls::client(&Trust::Hash(self.ca_hash.clone()), None).unwrap()).unwrap()
    }

    /// Makes a connection with the certificate of a node that joined.
    fn raw(&self, number: u8) -> NodeClient<Channel> {
        NodeClient::new(self.channel(number))
    }

    fn channel(&self, number: u8) -> Channel {
        let credentials = Credentials::read(&self.dir.path().join(format!("node{number}"))).unwrap().unwrap();
        channel::tls(&self.address, credentials.client_config()).unwrap()
    }
}

/// A message of a megabyte whose last bytes never come.
struct HalfSent {
    left: usize,
}

impl HalfSent {
    const LEN: usize = 1024 * 1024;
    const CHUNK: usize = 16 * 1024;

    fn request(path: &str) -> Request<Body> {
        let body = Body::new(Self { left: Self::LEN });
        let request = Request::post(format!("http://x{path}")).header("content-type", "application/grpc");
        request.header("te", "trailers").body(body).unwrap()
    }
}

impl HttpBody for HalfSent {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let frame = if self.left == Self::LEN {
            let len = u32::try_from(Self::LEN).unwrap();
            [&[0][..], &len.to_be_bytes()].concat()
        } else if self.left > Self::CHUNK {
            vec![0; Self::CHUNK]
        } else {
            return Poll::Pending;
        };
        self.left -= frame.len().min(Self::CHUNK);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(frame)))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_messages_of_strangers_nodes_and_administrators_cost_little_and_end() {
    /// Streams a connection, as many as HTTP/2 usually allows.
    const STREAMS: usize = 128;
    /// The most memory in KiB that 12 strangers' connections may cost, and all others here as well.
    const GROWTH: u64 = 64 * 1024;
    const ACQUIRE: &str = "/flatnet.controlplane.v1.Node/Acquire";
    const CREATE: &str = "/flatnet.controlplane.v1.Admin/CreateNetwork";
    const JOIN: &str = "/flatnet.controlplane.v1.Enrollment/Join";
    const HEALTH: &str = "/grpc.health.v1.Health/Check";
    const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let server = Process::start().await;
    let (honest, owner) = server.node(1).await;
    let presence = honest.announce(&owner, &HostRanges::default()).await.expect("an honest node joins");
    let (culprit, culprit_owner) = server.node(2).await;
    culprit.announce(&culprit_owner, &HostRanges::default()).await.expect("another one joins");
    let created = proto::CreateAdminRequest { name: "ops".to_owned(), ttl_secs: 3600 };
    let file = server.dir.path().join("ops.pem");
    fs::write(&file, server.admin().create_admin(created).await.unwrap().into_inner().pem).unwrap();
    let ops = Credentials::of_file(&file).unwrap();
    let before = server.resident();

    let mut channels = Vec::new();
    for path in [ACQUIRE, CREATE, JOIN, JOIN, HEALTH, REFLECTION] {
        channels.extend((0..6).map(|_| (server.stranger(), path)));
    }
    channels.extend((0..12).map(|_| (server.channel(2), ACQUIRE)));
    channels.extend((0..12).map(|_| (channel::tls(&server.address, ops.client_config()).unwrap(), CREATE)));
    let mut calls = tokio::task::JoinSet::new();
    for (channel, path) in &channels {
        for _ in 0..STREAMS {
            let (mut channel, path) = (channel.clone(), *path);
            calls.spawn(async move {
                std::future::poll_fn(|cx| channel.poll_ready(cx)).await.ok()?;
                let answer = channel.call(HalfSent::request(path)).await.ok()?;
                Some(answer.headers().get("grpc-status").is_none_or(|status| status != "0"))
            });
        }
    }
    let (mut most, mut longest) = (before, Duration::ZERO);
    // Each of them ends: refused at once, when its time is up, or with its connection.
    let ends = Instant::now() + Duration::from_secs(90);
    while !calls.is_empty() {
        assert!(Instant::now() < ends, "{} messages are still waited for", calls.len());
        let _ = tokio::time::timeout(Duration::from_millis(100), calls.join_next()).await;
        while let Some(answered) = calls.try_join_next() {
            assert_ne!(answered.unwrap(), Some(false), "half a message was taken");
        }
        most = most.max(server.resident());
        let began = Instant::now();
        honest.stay(&presence).await.expect("the honest node goes on");
        longest = longest.max(began.elapsed());
    }
    eprintln!("server: {before} KiB, {most} KiB at most; the honest node waited {} ms at most", longest.as_millis());
    assert!(most < before + GROWTH, "{before} KiB before, {most} KiB at most");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_sockets_by_the_thousand_keep_no_node_out() {
    /// The number of sockets in all, and of those open at a time: as many as the server has places for and some.
    const SOCKETS: u32 = 6_000;
    const OPEN: usize = 500;
    let server = Process::start_with(1024, &[]).await;
    let (honest, owner) = server.node(1).await;
    honest.announce(&owner, &HostRanges::default()).await.expect("an honest node joins");
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], server.address.port));
    let storm = tokio::spawn(async move {
        let mut open = VecDeque::new();
        for number in 0..SOCKETS {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            // One address with many, and many with one each.
            let [_, _, high, low] = number.to_be_bytes();
            let from = if number % 2 == 0 { [127, 0, 1, 1] } else { [127, 1, high, low] };
            socket.bind((from, 0).into()).unwrap();
            let connecting = tokio::time::timeout(Duration::from_millis(500), socket.connect(address));
            if let Ok(Ok(mut stream)) = connecting.await {
                if number % 3 == 0 {
                    // These are a handshake's first bytes, which announce more.
                    let _ = stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1]).await;
                }
                open.push_back(stream);
            }
            if open.len() > OPEN {
                open.pop_front();
            }
        }
        open
    });
    let mut waits = Vec::new();
    while !storm.is_finished() || waits.len() < 20 {
        // Each time a connection of its own.
        let began = Instant::now();
        let request = proto::WatchRequest { network: "default".to_owned(), position: None };
        server.raw(1).watch(request).await.expect("an honest node reconnects");
        waits.push(began.elapsed());
    }
    waits.sort();
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    eprintln!("{} times, median {} ms, {} ms at most", waits.len(), median.as_millis(), longest.as_millis());
    // The bar is 1 s on an idle machine; the storm here is on the same one.
    assert!(median < Duration::from_secs(1) && longest < Duration::from_secs(3), "{longest:?}");
    drop(storm.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_certificates_connections_and_half_asked_pages_leave_descriptors_and_the_administrator_revokes_it() {
    let port = free_port();
    let server = Process::start_with(300, &[&format!("--http-listen=127.0.0.1:{port}")]).await;
    let (honest, owner) = server.node(1).await;
    honest.announce(&owner, &HostRanges::default()).await.expect("an honest node joins");
    let (culprit, culprit_owner) = server.node(2).await;
    culprit.announce(&culprit_owner, &HostRanges::default()).await.expect("another one joins");

    // Connections that answer pings, each with a stream.
    let request = || proto::WatchRequest { network: "default".to_owned(), position: None };
    let mut held = Vec::new();
    for _ in 0..300 {
        let mut node = server.raw(2);
        let opened = tokio::time::timeout(Duration::from_secs(5), node.watch(request())).await;
        held.push((node, opened));
    }
    let mut pages = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").await;
        pages.push(stream);
    }
    let descriptors = fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap().count();
    assert!(descriptors < 150, "{descriptors} descriptors");

    let began = Instant::now();
    server.raw(1).watch(request()).await.expect("another node comes");
    let mut page = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    page.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    page.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
    let revoke = proto::NodeRequest { id: culprit_owner.node.to_string() };
    server.admin().revoke_node(revoke).await.expect("the administrator revokes the culprit");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let refused = server.raw(2).watch(request()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    // Its connections end too, and it is told why before.
    let ended = async {
        for (_, opened) in &mut held {
            if let Ok(Ok(stream)) = opened {
                while let Ok(Some(_)) = stream.get_mut().message().await {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("its streams end");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_bad_tokens_silent_connections_and_unread_watches_cost_a_bounded_memory() {
    let server = Process::start().await;
    let (honest, owner) = server.node(1).await;
    let presence = honest.announce(&owner, &HostRanges::default()).await.expect("an honest node joins");
    // This comes before the bad tokens: a node that shares an address with their sender waits a minute.
    let (slow, slow_owner) = server.node(2).await;
    slow.announce(&slow_owner, &HostRanges::default()).await.expect("another one joins");
    let before = server.resident();
    let mut longest = Duration::ZERO;

    let config = tls::client(&Trust::Hash(server.ca_hash.clone()), None).unwrap();
    let (_, csr) = flatnet_plane::identity::new_request().unwrap();
    let mut stranger = EnrollmentClient::new(channel::tls(&server.address, config.clone()).unwrap());
    for number in 0..TOKENS {
        let message = proto::JoinRequest {
            token: format!("{number:010x}.{}", "0".repeat(40)),
            csr: csr.clone(),
            node: format!("{:032x}", u64::from(number) + 1_000_000),
            name: "x".to_owned(),
        };
        // Connections of strangers end after a while: then there is another one.
        if stranger.join(message).await.is_ok() {
            unreachable!("a bad token was taken");
        }
        if number % 1_000 == 0 {
            let began = Instant::now();
            honest.stay(&presence).await.expect("the honest node goes on");
            longest = longest.max(began.elapsed());
        }
    }
    let after_tokens = server.resident();

    // Slow readers: streams of a valid certificate that nobody reads, with changes coming.
    let mut unread = Vec::new();
    for _ in 0..SLOW {
        let request = proto::WatchRequest { network: "default".to_owned(), position: None };
        unread.push(server.raw(2).watch(request).await.expect("a watch opens").into_inner());
    }
    let after_watches = server.resident();

    let mut idle = Vec::new();
    for number in 0..IDLE {
        let connecting = TcpStream::connect((server.address.host.as_str(), server.address.port));
        // The kernel's queue is full: the server takes no more of them, as it should.
        let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_millis(500), connecting).await else { break };
        if number % 2 == 0 {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n\0\0\0\0").await;
        }
        idle.push(stream);
    }
    let began = Instant::now();
    honest.stay(&presence).await.expect("the honest node goes on");
    longest = longest.max(began.elapsed());
    let after_idle = server.resident();
    eprintln!(
        "server: {before} KiB; after {TOKENS} bad tokens {after_tokens}; with {SLOW} unread watches {after_watches}; with {} \
         idle connections {after_idle}; the honest node waited {} ms at most",
        idle.len(),
        longest.as_millis()
    );
    let most = after_tokens.max(after_watches).max(after_idle);
    assert!(most < before + GROWTH_KIB, "{before} KiB before, {most} KiB at most");
    drop((unread, idle));
}
