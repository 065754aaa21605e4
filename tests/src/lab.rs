//! A lab of one test: its namespaces, wiring and etcd. The wiring is that of `agent lab`; agents are the test's.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use flatnet_lab::Families;
use flatnet_lab::command_line::CommandLine;
use flatnet_lab::topology::{Topology, UNDERLAY_V4};
use serde_json::{Value, json};

use crate::agent::{Agent, BRIDGE};
use crate::etcd::Etcd;
use crate::netns::{Namespace, run};

/// Numbers the labs of this program: part of every namespace's name.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The make-up of a lab.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Number of hosts.
    pub hosts: u8,
    /// The `Type` of the network's backend.
    pub backend: &'static str,
    /// The network's families.
    pub overlay: Families,
    /// The hosts' families.
    pub underlay: Families,
}

impl Shape {
    /// Makes the shape of a network of IPv4 over VXLAN.
    #[must_use]
    pub fn vxlan(hosts: u8) -> Self {
        Self { hosts, backend: "vxlan", overlay: Families::V4, underlay: Families::V4 }
    }

    /// Returns the network's configuration as flannel has it. Its agents get subnets from 10.100.40.0 to 10.100.199.0,
    /// so that tests can put leases and garbage beside them.
    #[must_use]
    pub fn config(&self) -> Value {
        let mut config = json!({ "Backend": { "Type": self.backend } });
        if self.overlay != Families::V6 {
            config["Network"] = "10.100.0.0/16".into();
            config["SubnetMin"] = "10.100.40.0".into();
            config["SubnetMax"] = "10.100.199.0".into();
        } else {
            config["EnableIPv4"] = false.into();
        }
        if self.overlay != Families::V4 {
            config["EnableIPv6"] = true.into();
            config["IPv6Network"] = "fd00:100::/56".into();
        }
        config
    }
}

/// A running lab. Its namespaces go when it is dropped; agents must be dropped before, as locals declared later are.
#[derive(Debug)]
pub struct Lab {
    /// The wiring.
    pub topology: Topology,
    /// The store.
    pub etcd: Etcd,
    /// The directory for files.
    pub directory: PathBuf,
}

impl Lab {
    /// Wires the hosts, starts etcd, and writes the network's configuration.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        let lab = Self::without_network(shape);
        lab.etcd.put("/coreos.com/network/config", &shape.config().to_string(), None);
        lab
    }

    /// Makes a lab as [`Self::new`] does, with an empty store.
    #[must_use]
    pub fn without_network(shape: &Shape) -> Self {
        Self::on(shape, UNDERLAY_V4)
    }

    /// Makes a lab with an empty store, on an underlay whose IPv4 addresses begin with `underlay_v4`.
    #[must_use]
    pub fn on(shape: &Shape, underlay_v4: [u8; 3]) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let topology =
            Topology { prefix: format!("t{number}-"), hosts: shape.hosts, underlay: shape.underlay, underlay_v4 };
        let directory = PathBuf::from(format!("/run/t{number}"));
        fs::create_dir_all(&directory).unwrap();
        wire(&topology.underlay_commands());
        wire(&topology.station_commands(&topology.store()));
        for number in 1..=shape.hosts {
            wire(&topology.station_commands(&topology.host(number)));
        }
        let store = Namespace(topology.store().namespace);
        let etcd = Etcd::start(store, topology.endpoint(), &directory.join("etcd"));
        Self { topology, etcd, directory }
    }

    /// Returns host `number`, from 1.
    #[must_use]
    pub fn host(&self, number: u8) -> Namespace {
        Namespace(self.topology.host(number).namespace)
    }

    /// Returns the namespace of the underlay's bridge, every host's default gateway.
    #[must_use]
    pub fn underlay(&self) -> Namespace {
        Namespace(self.topology.underlay_namespace())
    }

    /// Returns the container of host `number`.
    #[must_use]
    pub fn container(&self, number: u8) -> Namespace {
        Namespace(self.topology.container(number))
    }

    /// Makes an agent for host `number`, not started.
    #[must_use]
    pub fn agent(&self, number: u8) -> Agent {
        let directory = self.directory.join(format!("host{number}"));
        Agent::new(number, self.host(number), &self.topology.endpoint(), &directory)
    }

    /// Starts an agent with a bridge on host `number`.
    #[must_use]
    pub fn join(&self, number: u8) -> Agent {
        let mut agent = self.agent(number).with(&["--bridge", BRIDGE]);
        agent.start();
        agent
    }

    /// Starts an agent on every host and waits until all know each other.
    #[must_use]
    pub fn join_all(&self) -> Vec<Agent> {
        let agents: Vec<Agent> = (1..=self.topology.hosts).map(|number| self.join(number)).collect();
        for agent in &agents {
            agent.wait_converged(agents.len() - 1);
        }
        agents
    }

    /// Gives the agent's host its container.
    pub fn attach(&self, agent: &Agent) {
        wire(&self.topology.container_commands(agent.number, BRIDGE, &agent.subnet()));
    }

    /// Gives every agent's host its container.
    pub fn attach_all(&self, agents: &[Agent]) {
        agents.iter().for_each(|agent| self.attach(agent));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.etcd.end_if_running();
        for name in self.topology.namespaces() {
            // Not every lab has every container.
            let _ = run(Command::new("ip").args(["netns", "del", &name]));
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Runs wiring commands, which must all succeed.
pub fn wire(commands: &[CommandLine]) {
    for command in commands {
        let ran = run(&mut command.to_command());
        assert_eq!(ran.code, 0, "`{command}`: {}", ran.stderr);
    }
}
