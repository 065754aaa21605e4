//! Hostile clients by the thousand at a real server process: its memory stays bounded, and an honest node goes on.

#![expect(clippy::unwrap_used, reason = "these are tests: a surprise fails them, and figures are printed")]

#[cfg(test)]
mod support;

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flatnet_controlplane::client::credentials::Credentials;
use flatnet_controlplane::client::{Remote, RemoteOptions, ServerAddress, channel};
use flatnet_controlplane::plane::ControlPlane;
use flatnet_controlplane::tls::{self, Trust};
use flatnet_model::{HostRanges, InstanceNonce, NodeId, Owner};
use flatnet_proto::controlplane::v1 as proto;
use proto::enrollment_client::EnrollmentClient;
use proto::node_client::NodeClient;
use support::ScratchDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Bad tokens sent.
const TOKENS: u32 = 10_000;
/// Connections that say nothing, or nonsense.
const IDLE: usize = 1_000;
/// Watches that are opened and never read.
const SLOW: usize = 100;
/// What all of them together may cost the server, in KiB: 256 strangers and 100 streams, some 100 KiB each, twice over.
const GROWTH_KIB: u64 = 96 * 1024;
/// A loaded machine; an idle one starts in milliseconds.
const START: Duration = Duration::from_secs(60);

/// A server in a process of its own; killed when dropped.
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
        let dir = ScratchDir::new("hostile");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let printed = dir.path().join("printed");
        let child = Command::new(env!("CARGO_BIN_EXE_controlplane"))
            .args(["serve", "--init", "10.50.0.0/16"])
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

    /// Resident memory, in KiB.
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

    /// A connection with the certificate of a node that joined.
    fn raw(&self, number: u8) -> NodeClient<tonic::transport::Channel> {
        let credentials = Credentials::read(&self.dir.path().join(format!("node{number}"))).unwrap().unwrap();
        NodeClient::new(channel::tls(&self.address, credentials.client_config()).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_bad_tokens_silent_connections_and_unread_watches_cost_a_bounded_memory() {
    let server = Process::start().await;
    let (honest, owner) = server.node(1).await;
    let presence = honest.announce(&owner, &HostRanges::default()).await.expect("an honest node joins");
    // Before the bad tokens: whoever shares an address with their sender waits a minute.
    let (slow, slow_owner) = server.node(2).await;
    slow.announce(&slow_owner, &HostRanges::default()).await.expect("another one joins");
    let before = server.resident();
    let mut longest = Duration::ZERO;

    let config = tls::client(&Trust::Hash(server.ca_hash.clone()), None).unwrap();
    let (_, csr) = flatnet_controlplane::pki::new_request().unwrap();
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
