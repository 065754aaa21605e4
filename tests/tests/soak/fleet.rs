//! The hosts: started, broken, put back, and looked at in the end.

use std::time::{Duration, Instant};

use flatnet_lab::subnet_env::SubnetEnv;
use flatnet_tests::Families;
use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::pinger::{self, Pinger};
use flatnet_tests::wait::{SOON, wait_until};

use crate::scene::{self, shell};

/// The number of hosts at the front whose agents are never ended: their memory is compared.
pub const VETERANS: usize = 4;

/// A change that is still to be undone.
pub enum Undo {
    /// An agent is started.
    Start(usize),
    /// A host's cable is plugged in.
    Plug(u8),
    /// etcd goes on.
    Resume,
    /// A key is removed.
    Delete(String),
}

/// Agents with containers in one network. The agents are dropped before the lab.
pub struct Fleet {
    pub agents: Vec<Agent>,
    pub lab: Lab,
    /// True while etcd is stopped.
    pub paused: bool,
    undo: Vec<(Instant, Undo)>,
    pictures: Vec<String>,
    subnets: Vec<SubnetEnv>,
}

impl Fleet {
    /// Makes a fleet, everybody converged and pinging, with the pictures of that.
    pub fn new(hosts: u8) -> Self {
        let shape = Shape { hosts, backend: "vxlan", overlay: Families::Dual, underlay: Families::Dual };
        let lab = Lab::new(&shape);
        let mut agents: Vec<Agent> = (1..=hosts).map(|number| scene::agent(&lab, number, &[])).collect();
        agents.iter_mut().for_each(Agent::start);
        for agent in &agents {
            agent.wait_converged(agents.len() - 1);
        }
        lab.attach_all(&agents);
        let subnets = agents.iter().map(Agent::subnet).collect();
        let mut fleet = Self { agents, lab, paused: false, undo: Vec::new(), pictures: Vec::new(), subnets };
        fleet.assert_ring();
        fleet.pictures = fleet.agents.iter().map(|agent| unordered(&scene::settled(&agent.host))).collect();
        fleet
    }

    /// Makes a steady stream between two hosts whose agents are not ended; everything else is done to them too.
    pub fn stream(&self) -> Pinger {
        let address = self.subnets[1].container_addresses().next().unwrap();
        Pinger::start(&self.lab, &self.lab.container(1), address)
    }

    /// Puts something back after `wait`.
    pub fn later(&mut self, wait: Duration, undo: Undo) {
        self.undo.push((Instant::now() + wait, undo));
    }

    pub fn undo_what_is_due(&mut self) {
        let now = Instant::now();
        let due: Vec<Undo> = self.undo.extract_if(.., |(at, _)| *at <= now).map(|(_, undo)| undo).collect();
        due.into_iter().for_each(|undo| self.undo(undo));
    }

    pub fn undo_everything(&mut self) {
        let mut all: Vec<Undo> = std::mem::take(&mut self.undo).into_iter().map(|(_, undo)| undo).collect();
        // Keys can be removed from a store that answers.
        all.sort_by_key(|undo| !matches!(undo, Undo::Resume));
        all.into_iter().for_each(|undo| self.undo(undo));
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Start(index) => self.agents[index].start(),
            Undo::Plug(number) => {
                shell(&self.lab.underlay(), &format!("ip link set {} up", self.lab.topology.host(number).port));
            }
            Undo::Resume => {
                self.lab.etcd.resume();
                self.paused = false;
            }
            Undo::Delete(key) if self.paused => self.later(Duration::from_secs(1), Undo::Delete(key)),
            Undo::Delete(key) => self.lab.etcd.delete(&key),
        }
    }

    /// Waits until every agent is converged and would change nothing, and every host looks as at the start; returns how
    /// long that took from `since`.
    pub fn wait_until_exact(&self, since: Instant) -> Duration {
        for agent in &self.agents {
            agent.wait_converged(self.agents.len() - 1);
        }
        for (agent, before) in self.agents.iter().zip(&self.pictures) {
            wait_until(&format!("{} looks as before", agent.host.0), SOON, || {
                let now = unordered(&scene::picture(&agent.host));
                if now == *before { Ok(()) } else { Err(scene::differences(before, &now)) }
            });
        }
        let took = since.elapsed();
        for (agent, before) in self.agents.iter().zip(&self.pictures) {
            let plan = agent.command(&["plan"]);
            assert_eq!((plan.code, plan.stdout.as_str()), (0, ""), "host{}: {}", agent.number, plan.stderr);
            let now = unordered(&scene::picture(&agent.host));
            assert!(now == *before, "{} did not stay:\n{}", agent.host.0, scene::differences(before, &now));
        }
        took
    }

    /// Asserts that nobody was renumbered, the store has what it had, and containers reach each other.
    pub fn assert_nothing_else_changed(&self) {
        for (agent, before) in self.agents.iter().zip(&self.subnets) {
            assert_eq!(agent.subnet(), *before, "host{} was renumbered", agent.number);
        }
        // A node looks for its presence once in its time to live, 15 s.
        wait_until("one lease and one presence each", 2 * SOON, || {
            let counts = (self.lab.etcd.subnets().len(), self.lab.etcd.list("/flatnet/nodes/").len());
            if counts == (self.agents.len(), self.agents.len()) { Ok(()) } else { Err(format!("{counts:?}")) }
        });
        self.assert_ring();
    }

    /// Asserts that every container reaches the next one and the one on the other side, in both families.
    fn assert_ring(&self) {
        let count = self.agents.len();
        for (index, agent) in self.agents.iter().enumerate() {
            for other in [(index + 1) % count, (index + count / 2) % count].into_iter().filter(|other| *other != index)
            {
                for address in self.subnets[other].container_addresses() {
                    pinger::assert_reaches(&self.lab.container(agent.number), address);
                }
            }
        }
    }
}

/// Sorts the elements of nftables' sets in a picture: they are listed in the order in which peers came.
fn unordered(picture: &str) -> String {
    let is_element = |line: &&str| line.starts_with("nft") && line.contains(" . 0x");
    let (elements, rest): (Vec<&str>, Vec<&str>) = picture.lines().partition(is_element);
    // nft prints one or several a line: "SECTION: elements = { 192.168.33.11 . 0x0a644200, …".
    let of_line = |line: &str| {
        let list = line.split_once(": ").map_or(line, |(_, list)| list).replace("elements = {", "");
        let elements = list.split([',', '}']).map(|element| element.trim().to_owned());
        elements.filter(|element| !element.is_empty()).collect::<Vec<_>>()
    };
    let mut elements: Vec<String> = elements.into_iter().flat_map(of_line).collect();
    elements.sort();
    rest.into_iter().map(str::to_owned).chain(elements).map(|line| line + "\n").collect()
}
