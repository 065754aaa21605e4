//! A real control plane's server in a namespace of a lab, to be stopped, killed and robbed of its data.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent::{Agent, BRIDGE};
use crate::lab::Lab;
use crate::netns::{Namespace, Ran};
use crate::wait::wait_until;

/// The time for a cold start under load; on an idle machine it is some milliseconds.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// The token with which a test's hosts join.
const TOKEN_USES: &str = "--token-uses=100";

/// Finds the program: `FLATNET_CONTROLPLANE`, else beside the agent's.
pub fn find_program() -> Result<PathBuf, String> {
    let named = std::env::var_os("FLATNET_CONTROLPLANE").map(PathBuf::from);
    let beside = crate::agent::find_program()?.with_file_name("controlplane");
    let program = named.unwrap_or(beside);
    if program.is_file() {
        return Ok(program);
    }
    Err(format!(
        "{} does not exist: run `cargo build -p flatnet-controlplane`, or name the program in FLATNET_CONTROLPLANE",
        program.display()
    ))
}

/// Returns the address at which a server on host `number` listens.
fn host_address(lab: &Lab, number: u8) -> SocketAddr {
    SocketAddr::new(lab.topology.host(number).v4.into(), lab.topology.server_address().port())
}

/// One server; killed when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    namespace: Namespace,
    address: String,
    directory: PathBuf,
    /// Flags of `serve` besides the usual ones.
    pub flags: Vec<String>,
    child: Option<Child>,
    starts: u32,
}

impl ControlPlane {
    /// Starts a server for `lab` with its own store, and waits until it says how to join it.
    pub fn start(lab: &Lab, flags: &[&str]) -> Self {
        let store = Namespace(lab.topology.store().namespace);
        Self::start_in(lab, store, lab.topology.server_address(), flags)
    }

    /// Starts a server as [`Self::start`] does, on host `number`.
    pub fn start_on(lab: &Lab, number: u8, flags: &[&str]) -> Self {
        Self::start_in(lab, lab.host(number), host_address(lab, number), flags)
    }

    fn start_in(lab: &Lab, namespace: Namespace, address: SocketAddr, flags: &[&str]) -> Self {
        let directory = lab.directory.join("controlplane");
        fs::create_dir_all(&directory).unwrap();
        let mut server = Self {
            namespace,
            address: address.to_string(),
            directory,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            child: None,
            starts: 0,
        };
        server.run();
        server
    }

    /// Starts another one on the same etcd, with the same authority, at the next port.
    #[must_use]
    pub fn replica(&self, lab: &Lab) -> Self {
        let address = lab.topology.server_address();
        self.replica_in(lab, self.namespace.clone(), SocketAddr::new(address.ip(), address.port() + 1))
    }

    /// Starts another one as [`Self::replica`] does, on host `number`.
    #[must_use]
    pub fn replica_on(&self, lab: &Lab, number: u8) -> Self {
        self.replica_in(lab, lab.host(number), host_address(lab, number))
    }

    fn replica_in(&self, lab: &Lab, namespace: Namespace, address: SocketAddr) -> Self {
        let mut replica = Self {
            namespace,
            address: address.to_string(),
            directory: lab.directory.join("replica"),
            flags: self.flags.clone(),
            child: None,
            starts: 0,
        };
        fs::create_dir_all(replica.data_dir().join("pki")).unwrap();
        for file in fs::read_dir(self.file("pki")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), replica.file("pki").join(file.file_name())).unwrap();
        }
        replica.run();
        replica
    }

    /// Returns the address at which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address.parse().unwrap()
    }

    /// Returns the directory with its data.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn stdout(&self) -> PathBuf {
        self.directory.join(format!("stdout-{}", self.starts))
    }

    /// Starts it again and waits until it says how to join it.
    pub fn run(&mut self) {
        assert!(self.child.is_none(), "the control plane is running");
        self.starts += 1;
        let log = File::options().create(true).append(true).open(self.directory.join("log")).unwrap();
        let mut argv = vec![
            find_program().unwrap().display().to_string(),
            "serve".to_owned(),
            format!("--listen={}", self.address),
            format!("--data-dir={}", self.data_dir().display()),
            TOKEN_USES.to_owned(),
        ];
        argv.extend(self.flags.iter().cloned());
        let mut command = self.namespace.command(&argv);
        command.stdin(Stdio::null()).stdout(File::create(self.stdout()).unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        wait_until("the control plane says how to join", START_DEADLINE, || {
            if self.printed().ends_with('\n') { Ok(()) } else { Err(self.log()) }
        });
    }

    /// Returns all that it printed on stdout since it was last started.
    #[must_use]
    pub fn printed(&self) -> String {
        fs::read_to_string(self.stdout()).unwrap_or_default()
    }

    /// Returns all that it logged, over all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Returns the arguments after `agent` that it printed.
    #[must_use]
    pub fn join_arguments(&self) -> Vec<String> {
        let printed = self.printed();
        printed.trim_end().strip_prefix("agent ").unwrap().split(' ').map(str::to_owned).collect()
    }

    /// Makes an agent with a bridge on host `number` that joins as printed; not started.
    #[must_use]
    pub fn agent(&self, lab: &Lab, number: u8) -> Agent {
        let arguments = self.join_arguments();
        let directory = lab.directory.join(format!("host{number}"));
        let flags: Vec<&str> = arguments[2..].iter().map(String::as_str).chain(["--bridge", BRIDGE]).collect();
        Agent::new(number, lab.host(number), &arguments[1], &directory).with(&flags)
    }

    /// Starts an agent on every host of `lab` and waits until all know each other.
    #[must_use]
    pub fn join_all(&self, lab: &Lab) -> Vec<Agent> {
        let mut agents: Vec<Agent> = (1..=lab.topology.hosts).map(|number| self.agent(lab, number)).collect();
        agents.iter_mut().for_each(Agent::start);
        for agent in &agents {
            agent.wait_converged(agents.len() - 1);
        }
        agents
    }

    /// Runs another subcommand against this one's data directory.
    pub fn command(&self, arguments: &[&str]) -> Ran {
        self.commands()(arguments)
    }

    /// Makes a function that does what [`Self::command`] does. It can go to another thread, and works whatever becomes
    /// of the server meanwhile.
    pub fn commands(&self) -> impl Fn(&[&str]) -> Ran + Send + use<> {
        let (program, dir) = (find_program().unwrap().display().to_string(), self.data_dir().display().to_string());
        let namespace = self.namespace.clone();
        move |arguments| {
            let argv: Vec<&str> =
                [program.as_str()].into_iter().chain(arguments.iter().copied()).chain(["--data-dir", &dir]).collect();
            namespace.run(&argv)
        }
    }

    /// Ends the server with a signal and waits for it.
    pub fn end(&mut self, signal: Signal) {
        let mut child = self.child.take().expect("the control plane is not running");
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        child.wait().unwrap();
    }

    /// Removes a file or directory in its data directory.
    pub fn remove(&self, name: &str) {
        let path = self.data_dir().join(name);
        if path.is_dir() { fs::remove_dir_all(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
    }

    /// Returns the path of a file in its data directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.data_dir().join(Path::new(name))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself: then there is nothing to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
