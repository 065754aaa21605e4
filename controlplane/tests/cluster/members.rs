//! Three members on loopback, each to be killed, stopped and started again.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A loaded machine.
const START: Duration = Duration::from_secs(60);

/// Three of them; killed when dropped.
pub struct Members {
    ports: Vec<(u16, u16)>,
    dir: PathBuf,
    children: Vec<Option<Child>>,
    hung: Option<usize>,
}

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Members {
    /// Starts them and waits until they answer.
    pub async fn start(dir: &Path) -> Self {
        let ports = (0..3).map(|_| (port(), port())).collect();
        let mut members = Self { ports, dir: dir.to_owned(), children: vec![None, None, None], hung: None };
        (0..3).for_each(|index| members.run(index));
        members.wait().await;
        members
    }

    /// Where clients come to.
    pub fn endpoints(&self) -> Vec<String> {
        self.ports.iter().map(|(client, _)| format!("http://127.0.0.1:{client}")).collect()
    }

    fn run(&mut self, index: usize) {
        if self.children[index].is_some() {
            return;
        }
        let (client, peer) = self.ports[index];
        let all: Vec<String> = self
            .ports
            .iter()
            .enumerate()
            .map(|(number, (_, peer))| format!("m{number}=http://127.0.0.1:{peer}"))
            .collect();
        let log = File::options().create(true).append(true).open(self.dir.join(format!("m{index}.log"))).unwrap();
        let child = Command::new("etcd")
            .arg(format!("--name=m{index}"))
            .arg(format!("--data-dir={}", self.dir.join(format!("m{index}")).display()))
            .args(
                ["listen-client-urls", "advertise-client-urls"]
                    .map(|flag| format!("--{flag}=http://127.0.0.1:{client}")),
            )
            .args(
                ["listen-peer-urls", "initial-advertise-peer-urls"]
                    .map(|flag| format!("--{flag}=http://127.0.0.1:{peer}")),
            )
            .arg(format!("--initial-cluster={}", all.join(",")))
            .arg("--unsafe-no-fsync")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd is installed");
        self.children[index] = Some(child);
    }

    /// What it printed, if it succeeded.
    fn ctl(&self, arguments: &[&str]) -> Option<String> {
        let ran = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--dial-timeout=1s", "--command-timeout=2s", "--endpoints", &self.endpoints().join(",")])
            .args(arguments)
            .output()
            .unwrap();
        ran.status.success().then(|| String::from_utf8_lossy(&ran.stdout).into_owned())
    }

    async fn wait(&self) {
        let began = Instant::now();
        while self.ctl(&["endpoint", "health"]).is_none() {
            assert!(began.elapsed() < START, "the members do not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Which one leads.
    fn leader(&self) -> usize {
        // endpoint, id, version, size, leader, …
        let status = self.ctl(&["endpoint", "status"]).unwrap_or_default();
        let leads = |line: &str| line.split(", ").nth(4) == Some("true");
        let line = status.lines().find(|line| leads(line)).unwrap_or_default();
        self.endpoints().iter().position(|endpoint| line.starts_with(endpoint.as_str())).unwrap_or(0)
    }

    fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.children[index].take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, index: usize, signal: &str) {
        let child = self.children[index].as_ref().unwrap();
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    }

    /// The next fault; what it is.
    pub async fn fault(&mut self, round: u32) -> &'static str {
        match round % 5 {
            0 => {
                self.kill(self.leader());
                "the leader is killed"
            }
            1 => {
                let leader = self.leader();
                self.signal(leader, "-STOP");
                self.hung = Some(leader);
                "the leader hangs"
            }
            2 => {
                let leader = self.leader();
                (0..3)
                    .filter(|index| *index != leader)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|index| self.kill(index));
                "the leader is left alone"
            }
            3 => {
                let status = self.ctl(&["endpoint", "status", "--write-out=json"]).expect("all of them answer");
                let at = status
                    .split("\"revision\":")
                    .nth(1)
                    .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
                let revision = at.expect("a revision").to_owned();
                self.ctl(&["compact", &revision]).expect("it compacts");
                self.kill((self.leader() + 1) % 3);
                "compacted, and a follower is killed"
            }
            _ => {
                (0..3).for_each(|index| self.kill(index));
                "all are killed"
            }
        }
    }

    /// All run again.
    pub async fn heal(&mut self) {
        if let Some(hung) = self.hung.take() {
            self.signal(hung, "-CONT");
        }
        (0..3).for_each(|index| self.run(index));
        self.wait().await;
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        (0..3).for_each(|index| self.kill(index));
    }
}
