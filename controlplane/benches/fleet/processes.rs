//! The processes measured: an etcd and a server, on loopback.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The time after which anything waited for counts as broken.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A directory that is removed with the benchmark.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// Makes one in memory if there is a file system in it: disks are not what is measured, except where that is said.
    pub fn new() -> Self {
        let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let path = base.join(format!("flatnet-bench-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `ready`.
#[expect(clippy::disallowed_methods, reason = "nothing else runs while a process is waited for")]
pub fn wait(what: &str, mut ready: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An etcd of one member, its data in memory.
pub struct Etcd {
    /// The endpoint for clients.
    pub endpoint: String,
    port: u16,
    _process: Ended,
}

impl Etcd {
    /// Starts it and waits until it answers.
    pub fn start(scratch: &Scratch) -> Self {
        let (port, peers) = (free_port(), free_port());
        let (endpoint, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        let log = File::create(scratch.0.join("etcd.log")).unwrap();
        let child = Command::new("etcd")
            .arg(format!("--data-dir={}", scratch.0.join("etcd").display()))
            .args(["--name=bench", "--unsafe-no-fsync"])
            .args([format!("--listen-client-urls={endpoint}"), format!("--advertise-client-urls={endpoint}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=bench={peer}"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd is installed");
        let etcd = Self { endpoint, port, _process: Ended(child) };
        wait("etcd answers", || etcd.get("/health").is_some_and(|text| text.contains("true")));
        etcd
    }

    /// Returns the number of watches that clients have, as etcd's metrics have it.
    pub fn watchers(&self) -> String {
        let metrics = self.get("/metrics").unwrap_or_default();
        let line = metrics.lines().find(|line| line.starts_with("etcd_debugging_mvcc_watcher_total "));
        line.and_then(|line| line.split(' ').nth(1)).unwrap_or("?").to_owned()
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }
}

/// A server.
pub struct Server {
    /// The port at which agents connect.
    pub port: u16,
    /// The token they join with.
    pub token: String,
    /// The hash of the authority they believe.
    pub ca_hash: String,
    /// The time from its start to the line that says how to join.
    pub started: Duration,
    process: Ended,
}

impl Server {
    /// Starts a server on a new data directory and waits until it says how to join.
    pub fn start(scratch: &Scratch, flags: &[&str], uses: u32) -> Self {
        let _ = fs::remove_dir_all(scratch.0.join("controlplane"));
        Self::start_again(scratch, flags, uses)
    }

    /// Starts a server on the data there is.
    pub fn start_again(scratch: &Scratch, flags: &[&str], uses: u32) -> Self {
        Self::start_in(&scratch.0.join("controlplane"), scratch, flags, uses)
    }

    /// Starts a server on the data in `dir`.
    pub fn start_in(dir: &Path, scratch: &Scratch, flags: &[&str], uses: u32) -> Self {
        let (port, printed) = (free_port(), scratch.0.join("printed"));
        let began = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_controlplane"))
            .args(["serve", "--init", "10.0.0.0/8", "--init-backend", "vxlan"])
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--data-dir={}", dir.display()))
            .arg(format!("--token-uses={uses}"))
            .args(flags)
            // As its unit does (packaging/flatnet-controlplane.service.in).
            .env("MALLOC_ARENA_MAX", "2")
            .env("MALLOC_TRIM_THRESHOLD_", "131072")
            .stdout(File::create(&printed).unwrap())
            .stderr(File::create(scratch.0.join("controlplane.log")).unwrap())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let process = Ended(child);
        wait("the server says how to join", || fs::read_to_string(&printed).is_ok_and(|text| text.ends_with('\n')));
        let started = began.elapsed();
        let text = fs::read_to_string(&printed).unwrap();
        let after = |flag: &str| {
            let mut words = text.split_whitespace().skip_while(|word| *word != flag).skip(1);
            words.next().unwrap_or_default().to_owned()
        };
        Self { port, token: after("--token"), ca_hash: after("--ca-hash"), started, process }
    }

    /// Returns the memory it holds, in KiB.
    pub fn resident_kib(&self) -> u32 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}
