//! A real etcd on loopback ports of its own, ended with the test.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use flatnet_plane::store::etcd::{EtcdOptions, EtcdStore};
use flatnet_plane::store::{KeyRange, Store};

/// One etcd server, killed and its data removed on drop.
pub struct Etcd {
    dir: PathBuf,
    client_port: u16,
    peer_port: u16,
    flags: Vec<String>,
    child: Option<Child>,
}

impl Etcd {
    /// Starts an empty one and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts an empty one with further flags and waits until it answers.
    pub async fn start_with(flags: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // tmpfs if there is one: etcd waits for the disk with every write.
        let base = [PathBuf::from("/dev/shm"), std::env::temp_dir()].into_iter().find(|dir| dir.is_dir()).unwrap();
        let name = format!("flatnet-etcd-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = base.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let (client_port, peer_port) = (free_port(), free_port());
        let flags = flags.iter().map(ToString::to_string).collect();
        let mut etcd = Self { dir, client_port, peer_port, flags, child: None };
        etcd.run().await;
        etcd
    }

    /// Starts the server on its data and waits until it answers.
    pub async fn run(&mut self) {
        self.spawn();
        let store = self.store();
        let began = Instant::now();
        while store.range(&KeyRange::key("x")).await.is_err() {
            let ended = self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some());
            assert!(!ended, "etcd ended: {}", std::fs::read_to_string(self.log()).unwrap_or_default());
            assert!(began.elapsed() < Duration::from_secs(20), "etcd does not answer; see {}", self.log().display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the server on its data.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none());
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer_port));
        let log = std::fs::File::create(self.log()).unwrap();
        let child = Command::new("etcd")
            .args(["--name", "t", "--data-dir"])
            .arg(self.dir.join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args([
                "--initial-cluster",
                &format!("t={peer}"),
                "--heartbeat-interval",
                "20",
                "--election-timeout",
                "200",
            ])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("etcd cannot be started ({error}): install Debian's package etcd-server"));
        self.child = Some(child);
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills the server and removes its data.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.dir.join("data")).unwrap();
    }

    /// Sends the server a signal by name (`STOP`, `CONT`).
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Runs etcdctl against it.
    pub fn ctl(&self, args: &[&str]) -> String {
        // Some of its commands wait for ever for a server that is not there.
        let output = Command::new("timeout")
            .env("ETCDCTL_API", "3")
            .args(["30", "etcdctl", "--endpoints", &self.url()])
            .args(args)
            .output()
            .unwrap_or_else(|error| panic!("etcdctl cannot be run ({error}): install Debian's package etcd-client"));
        assert!(
            output.status.success(),
            "etcdctl {args:?}: {}: {}\netcd: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            std::fs::read_to_string(self.log()).unwrap_or_default()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// Makes a client of its own.
    pub fn store(&self) -> EtcdStore {
        connect(&[self.url()])
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Makes a client of these endpoints.
pub fn connect(endpoints: &[String]) -> EtcdStore {
    EtcdStore::connect(EtcdOptions { endpoints: endpoints.to_vec(), ..EtcdOptions::default() }).unwrap()
}

/// Returns a loopback port that nobody listens on now, and that nobody else is given or takes before a server has it:
/// no other caller in this process, and no connection, since it is below the ports that Linux takes for those (32,768
/// to 60,999). Other processes begin to look elsewhere.
pub fn free_port() -> u16 {
    /// The ports looked at.
    const PORTS: std::ops::Range<u32> = 10_000..32_000;
    /// The ports from where one process begins to where the next one does.
    const APART: u32 = 64;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(APART);
    loop {
        let number = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        let port = u16::try_from(PORTS.start + number).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A directory on a real disk, removed with the test.
pub struct ScratchDir(PathBuf);

impl ScratchDir {
    /// Makes an empty one.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("flatnet-{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // A server that a test has only told to end may write a file while its directory goes, which then is not empty;
        // once the directory is gone it can write none.
        for _ in 0..100 {
            if std::fs::remove_dir_all(&self.0).is_ok() || !self.0.exists() {
                return;
            }
        }
    }
}
