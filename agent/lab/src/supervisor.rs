//! The process inside the sandbox that builds the lab and owns it until it ends.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::command_line::CommandLine;
use super::directory::{LabDirectory, NamedNamespace, Record};
use super::ping::{self, Pair};
use super::processes::Processes;
use super::progress::Progress;
use super::subnet_env::SubnetEnv;
use super::topology::{Station, Topology, UNDERLAY_V4};
use super::{Families, LabPlan, LabStore, store, tools};
use flatnet_plane::failure::{Exit, Failure};

/// The time that etcd has to answer. On an idle machine it takes less than a second; this leaves room for a loaded one.
const STORE_READY_TIMEOUT: Duration = Duration::from_secs(20);
/// The time that an agent has to get its lease. It has it within 0.1 s; this leaves room for load and retries.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// The time from the last agent's lease to the last pair.
const PAIRS_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between two looks at something that is expected any moment.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// The space quota of etcd in bytes: a lab stores kilobytes.
const STORE_QUOTA_BYTES: u32 = 64 << 20;

/// A lab under construction or running.
#[derive(Debug)]
pub struct Supervisor {
    /// The plan that is built.
    pub plan: LabPlan,
    /// The lab's wiring.
    pub topology: Topology,
    /// The subnets and MTU that every host was given, by host number less one.
    pub subnets: Vec<SubnetEnv>,
    /// The progress of the build.
    pub progress: Progress,
    directory: LabDirectory,
    processes: Processes,
    /// The flags that agents need to join besides the endpoint.
    join: Vec<String>,
}

/// Returns the directory of a host's agent, in the sandbox's private `/run`.
#[must_use]
pub fn host_directory(host: &str) -> PathBuf {
    PathBuf::from("/run/lab").join(host)
}

/// Returns the host's `--run-dir`.
#[must_use]
pub fn run_directory(host: &str) -> PathBuf {
    host_directory(host).join("run")
}

impl Supervisor {
    /// Creates a supervisor that has built nothing yet.
    #[must_use]
    pub fn new(plan: LabPlan, directory: LabDirectory) -> Self {
        let topology =
            Topology { prefix: String::new(), hosts: plan.hosts, underlay: Families::Dual, underlay_v4: UNDERLAY_V4 };
        let progress = Progress::new(plan.verbose);
        Self {
            plan,
            topology,
            subnets: Vec::new(),
            progress,
            directory,
            processes: Processes::default(),
            join: Vec::new(),
        }
    }

    /// Builds everything, up to a lab in which every agent has its subnet and every container its address.
    pub async fn build(&mut self) -> Result<(), Failure> {
        self.progress.step("checking this machine");
        tools::require_kernel(self.plan.backend).await?;
        self.progress.step(format!("wiring {} hosts to the underlay", self.plan.hosts));
        self.wire_underlay().await?;
        match self.plan.store {
            LabStore::Embedded => {
                self.progress.step("starting the control plane");
                self.start_server().await?;
            }
            LabStore::Etcd => {
                self.progress.step("starting etcd");
                self.start_etcd().await?;
            }
        }
        self.progress.step(format!("starting {} agents", self.plan.hosts));
        self.start_agents()?;
        self.wait_for_subnets().await?;
        self.progress.step("attaching containers");
        self.attach_containers().await?;
        Ok(())
    }

    /// Waits until all pairs ping. Returns the last attempt's results, even if some pairs do not.
    pub async fn wait_for_pairs(&mut self) -> Result<Vec<Pair>, Failure> {
        self.progress.step("pinging all pairs");
        let deadline = Instant::now() + PAIRS_TIMEOUT;
        loop {
            let pairs = ping::all_pairs(&self.topology, &self.subnets).await?;
            let reached = pairs.iter().filter(|pair| pair.rtt_millis.is_some()).count();
            self.progress.detail(&format!("{reached} of {}", pairs.len()));
            if reached == pairs.len() {
                // The first packets waited for neighbour discovery, but round trips are to be shown: all pairs are
                // pinged again.
                return ping::all_pairs(&self.topology, &self.subnets).await;
            }
            if Instant::now() >= deadline {
                return Ok(pairs);
            }
            self.processes.all_running()?;
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// Writes what `lab exec` and `lab down` need.
    pub fn write_record(&self) -> Result<(), Failure> {
        let failed = |error| Failure::new(Exit::Internal, "cannot read the sandbox's own state").caused_by(error);
        // The mount of /proc is the host's: there this process has its outer number.
        let supervisor = fs::read_link("/proc/self").map_err(failed)?;
        let supervisor = supervisor.to_str().and_then(|pid| pid.parse().ok());
        let inode = |path: String| fs::metadata(path).map(|metadata| metadata.ino()).map_err(failed);
        let mut namespaces = Vec::new();
        for name in self.topology.namespaces() {
            let inode = inode(format!("/run/netns/{name}"))?;
            namespaces.push(NamedNamespace { name, inode });
        }
        self.directory.write_record(&Record {
            supervisor: supervisor.ok_or_else(|| Failure::new(Exit::Internal, "/proc/self is not a number"))?,
            pid_namespace: inode("/proc/self/ns/pid".to_owned())?,
            namespaces,
            endpoint: self.topology.endpoint(),
            backend: self.plan.backend.as_str().to_owned(),
        })
    }

    /// Returns the processes that ended by themselves since the last call.
    pub fn reap(&mut self) -> Vec<String> {
        self.processes.reap()
    }

    /// Returns the end of the named process's log.
    #[must_use]
    pub fn log_tail(&self, name: &str) -> String {
        self.processes.log_tail(name)
    }

    /// Ends every process and removes the directory. Returns what was done, in one sentence. The namespaces, with
    /// devices, rules and the private `/run`, go with this process.
    pub async fn tear_down(&mut self) -> Result<String, Failure> {
        self.progress.step("taking everything down");
        let (stopped, killed) = self.processes.stop().await;
        let removed = self.directory.remove();
        self.progress.clear();
        removed?;
        let how =
            if killed > 0 { format!(" ({killed} of them killed: they did not end in time)") } else { String::new() };
        Ok(format!(
            "cleaned up: {stopped} processes{how}, {} network namespaces with their devices, routes and rules, the private \
             /run, {}",
            self.topology.namespaces().len(),
            self.directory.path().display()
        ))
    }

    async fn wire_underlay(&mut self) -> Result<(), Failure> {
        self.run_all(&self.topology.underlay_commands()).await?;
        self.run_all(&self.topology.station_commands(&self.topology.store())).await?;
        for number in 1..=self.plan.hosts {
            self.progress.detail(&format!("host{number}"));
            self.run_all(&self.topology.station_commands(&self.topology.host(number))).await?;
        }
        Ok(())
    }

    async fn start_server(&mut self) -> Result<(), Failure> {
        let command = store::command(&self.plan, &self.topology)?;
        self.progress.command(&command);
        fs::create_dir_all("/run/lab")
            .map_err(|error| Failure::new(Exit::Internal, "cannot create /run/lab").caused_by(error))?;
        let name = self.plan.store.process();
        let log = self.directory.log(name);
        self.processes.start(name, &command, &log)?;
        let deadline = Instant::now() + STORE_READY_TIMEOUT;
        loop {
            self.processes.all_running()?;
            if let Some(flags) = store::join_flags(&log)? {
                self.join = flags.0;
                return Ok(());
            }
            if Instant::now() >= deadline {
                let log = self.log_tail(name);
                return Err(Failure::new(
                    Exit::Unavailable,
                    format!("the control plane does not answer; its log ends:\n{log}"),
                ));
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    async fn start_etcd(&mut self) -> Result<(), Failure> {
        let store = self.topology.store();
        let endpoint = self.topology.endpoint();
        let command = etcd_command(&store, &endpoint);
        self.progress.command(&command);
        self.processes.start("etcd", &command, &self.directory.log("etcd"))?;
        let deadline = Instant::now() + STORE_READY_TIMEOUT;
        let config = network_config(&self.plan);
        let put = etcdctl(&store.namespace, &endpoint, &["put", "/coreos.com/network/config", &config]);
        self.progress.command(&put);
        loop {
            self.processes.all_running()?;
            match put.run().await {
                Ok(_) => return Ok(()),
                Err(failure) if Instant::now() >= deadline => {
                    return Err(Failure::new(Exit::Unavailable, "etcd does not answer").caused_by(failure));
                }
                Err(_) => tokio::time::sleep(POLL_EVERY).await,
            }
        }
    }

    fn start_agents(&mut self) -> Result<(), Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::new(Exit::Internal, "cannot find this program's own file").caused_by(error))?;
        for number in 1..=self.plan.hosts {
            let host = self.topology.host(number).namespace;
            let directory = host_directory(&host);
            fs::create_dir_all(&directory).map_err(|error| {
                Failure::new(Exit::Internal, format!("cannot create {}", directory.display())).caused_by(error)
            })?;
            let words = [
                program.display().to_string(),
                "join".to_owned(),
                self.plan.store.endpoint(&self.topology),
                format!("--node-name={host}"),
                format!("--state-dir={}", directory.join("state").display()),
                format!("--run-dir={}", run_directory(&host).display()),
                format!("--bridge={}", LabPlan::BRIDGE),
            ];
            let words = words.into_iter().chain(self.join.iter().cloned());
            let command = CommandLine::argv(words).on_host(&host, &directory);
            self.progress.command(&command);
            self.processes.start(&host, &command, &self.directory.log(&host))?;
        }
        Ok(())
    }

    async fn wait_for_subnets(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + JOIN_TIMEOUT;
        for number in 1..=self.plan.hosts {
            let host = self.topology.host(number).namespace;
            let file = run_directory(&host).join("subnet.env");
            let subnet = loop {
                if let Some(subnet) = fs::read_to_string(&file).ok().and_then(|text| SubnetEnv::parse(&text)) {
                    break subnet;
                }
                self.processes.all_running()?;
                if Instant::now() >= deadline {
                    let log = self.log_tail(&host);
                    let message =
                        format!("{host} did not get a subnet in {} s; its log ends:\n{log}", JOIN_TIMEOUT.as_secs());
                    return Err(Failure::new(Exit::Unavailable, message));
                }
                tokio::time::sleep(POLL_EVERY).await;
            };
            self.progress.detail(&format!("{host} has its subnet"));
            self.subnets.push(subnet);
        }
        Ok(())
    }

    async fn attach_containers(&mut self) -> Result<(), Failure> {
        for (number, subnet) in (1..=self.plan.hosts).zip(&self.subnets) {
            self.run_all(&self.topology.container_commands(number, LabPlan::BRIDGE, subnet)).await?;
        }
        Ok(())
    }

    async fn run_all(&self, commands: &[CommandLine]) -> Result<(), Failure> {
        for command in commands {
            self.progress.command(command);
            command.run().await?;
        }
        Ok(())
    }
}

/// Returns the command of an etcd of one member, reachable from the underlay, with its data in memory.
fn etcd_command(store: &Station, endpoint: &str) -> CommandLine {
    // Peers never connect, but etcd insists on a URL.
    let peer = "http://127.0.0.1:2380";
    let words = [
        "etcd",
        "--name=lab",
        "--data-dir=/run/lab/etcd",
        &format!("--listen-client-urls={endpoint},http://127.0.0.1:2379"),
        &format!("--advertise-client-urls={endpoint}"),
        &format!("--listen-peer-urls={peer}"),
        &format!("--initial-advertise-peer-urls={peer}"),
        &format!("--initial-cluster=lab={peer}"),
        &format!("--quota-backend-bytes={STORE_QUOTA_BYTES}"),
        // The data is in memory and dies with the lab.
        "--unsafe-no-fsync",
    ];
    CommandLine::argv(words).inside(&store.namespace)
}

fn etcdctl(namespace: &str, endpoint: &str, arguments: &[&str]) -> CommandLine {
    // etcdctl before 3.4 speaks the version 2 protocol unless told.
    let prefix = ["env", "ETCDCTL_API=3", "etcdctl", "--dial-timeout=1s", "--command-timeout=1s", "--endpoints"];
    CommandLine::argv(prefix.iter().chain(&[endpoint]).chain(arguments).copied()).inside(namespace)
}

fn network_config(plan: &LabPlan) -> String {
    let mut config = serde_json::json!({ "Backend": { "Type": plan.backend.as_str() } });
    match plan.overlay {
        Families::V4 => {}
        Families::V6 => {
            config["EnableIPv4"] = false.into();
            config["EnableIPv6"] = true.into();
        }
        Families::Dual => config["EnableIPv6"] = true.into(),
    }
    if plan.overlay.has(flatnet_model::IpFamily::V4) {
        config["Network"] = LabPlan::NETWORK.into();
    }
    if plan.overlay.has(flatnet_model::IpFamily::V6) {
        config["IPv6Network"] = LabPlan::NETWORK_V6.into();
    }
    config.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LabBackend;

    #[test]
    fn the_networks_configuration_is_flannels() {
        let mut plan = LabPlan {
            hosts: 2,
            backend: LabBackend::Vxlan,
            store: LabStore::Etcd,
            overlay: Families::V4,
            verbose: false,
        };
        assert_eq!(network_config(&plan), r#"{"Backend":{"Type":"vxlan"},"Network":"10.100.0.0/16"}"#);
        plan.overlay = Families::V6;
        assert_eq!(
            network_config(&plan),
            r#"{"Backend":{"Type":"vxlan"},"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:100::/56"}"#
        );
    }
}
