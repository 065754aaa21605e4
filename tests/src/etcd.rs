//! A real etcd in a namespace, to be stopped, killed, paused and filled.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::{Namespace, Ran};
use crate::wait::wait_until;

/// The time for a cold start under load; on an idle machine it is about a second.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// One member with its data in the sandbox's memory. Killed when dropped.
#[derive(Debug)]
pub struct Etcd {
    namespace: Namespace,
    endpoint: String,
    directory: PathBuf,
    /// Further flags of the next start.
    pub flags: Vec<String>,
    /// The `NAME:PASSWORD` that etcdctl gives.
    pub user: Option<String>,
    child: Option<Child>,
}

impl Etcd {
    /// Starts it and waits until it answers. Its data and log are in `directory`.
    pub fn start(namespace: Namespace, endpoint: String, directory: &Path) -> Self {
        fs::create_dir_all(directory).unwrap();
        let mut etcd =
            Self { namespace, endpoint, directory: directory.to_owned(), flags: Vec::new(), user: None, child: None };
        etcd.start_again();
        etcd
    }

    /// Starts it on the data it left.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "etcd is running");
        let log = File::options().create(true).append(true).open(self.directory.join("log")).unwrap();
        let peer = "http://127.0.0.1:2380";
        let argv = [
            "etcd".to_owned(),
            "--name=test".to_owned(),
            format!("--data-dir={}", self.directory.join("data").display()),
            format!("--listen-client-urls={},http://127.0.0.1:2379", self.endpoint),
            format!("--advertise-client-urls={}", self.endpoint),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=test={peer}"),
            "--unsafe-no-fsync".to_owned(),
        ];
        let argv: Vec<String> = argv.into_iter().chain(self.flags.iter().cloned()).collect();
        let mut command = self.namespace.command(&argv);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        wait_until("etcd answers", START_DEADLINE, || {
            let ran = self.ctl(&["endpoint", "health"]);
            if ran.code == 0 { Ok(()) } else { Err(format!("{}{}", ran.stderr, self.log())) }
        });
    }

    /// Ends it with a signal and waits for its end.
    pub fn end(&mut self, signal: Signal) {
        let mut child = self.child.take().expect("etcd is not running");
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        child.wait().unwrap();
    }

    /// Stops its clock: connections stay open, nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets its clock go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Runs `etcdctl` with `arguments`.
    pub fn ctl(&self, arguments: &[&str]) -> Ran {
        let prefix = ["env", "ETCDCTL_API=3", "etcdctl", "--dial-timeout=2s", "--command-timeout=5s", "--endpoints"];
        let user = self.user.as_ref().map(|user| format!("--user={user}"));
        let argv: Vec<&str> = prefix
            .iter()
            .copied()
            .chain([self.endpoint.as_str()])
            .chain(user.as_deref())
            .chain(arguments.iter().copied())
            .collect();
        self.namespace.run(&argv)
    }

    /// Writes a key, under an etcd lease if one is given (in hexadecimal, as etcdctl prints it).
    pub fn put(&self, key: &str, value: &str, lease: Option<&str>) {
        let lease = lease.map(|lease| format!("--lease={lease}"));
        let mut arguments = vec!["put"];
        arguments.extend(lease.as_deref());
        arguments.extend(["--", key, value]);
        let ran = self.ctl(&arguments);
        assert_eq!(ran.code, 0, "put {key}: {}", ran.stderr);
    }

    /// Grants a lease; returns its id in hexadecimal.
    pub fn grant(&self, ttl: Duration) -> String {
        let ran = self.ctl(&["lease", "grant", &ttl.as_secs().to_string()]);
        // "lease 694d…29 granted with TTL(60s)"
        ran.stdout.split_whitespace().nth(1).unwrap_or_else(|| panic!("no lease: {}", ran.stderr)).to_owned()
    }

    /// Returns the keys under `prefix`, with their values.
    pub fn list(&self, prefix: &str) -> Vec<(String, String)> {
        let ran = self.ctl(&["get", "--prefix", prefix]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let lines: Vec<&str> = ran.stdout.lines().collect();
        lines.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
    }

    /// Returns the subnet keys of the network `default` with their parsed values.
    pub fn subnets(&self) -> Vec<(String, Value)> {
        let prefix = "/coreos.com/network/subnets/";
        let parse = |(key, value): (String, String)| {
            (key[prefix.len()..].to_owned(), serde_json::from_str(&value).unwrap_or(Value::Null))
        };
        self.list(prefix).into_iter().map(parse).collect()
    }

    /// Removes a key.
    pub fn delete(&self, key: &str) {
        assert_eq!(self.ctl(&["del", key]).code, 0);
    }

    /// Returns all that it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Kills it if it runs.
    pub fn end_if_running(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself: then there is nothing to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("etcd is not running");
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.end_if_running();
    }
}
