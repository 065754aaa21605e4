//! A world to measure in: hosts on an underlay, etcd with a network and leases, agents.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flatnet_kernel::netns::Netns;
use flatnet_lab::subnet_env::SubnetEnv;
use flatnet_plane::store::{Txn, Write};
use flatnet_tests::agent::{BRIDGE, program};
use flatnet_tests::lab::{Lab, Shape, wire};
use flatnet_tests::netns::{Namespace, run};
use flatnet_tests::wait::pause;

use crate::leases;
use crate::writer::Writer;

/// The time after which anything measured counts as broken.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Returns the namespace that `ip netns` knows by a name.
pub fn netns(namespace: &Namespace) -> Netns {
    Netns::open(&Path::new("/run/netns").join(&namespace.0)).unwrap()
}

/// Hosts, a store, a network.
pub struct World {
    /// Hosts and etcd.
    pub lab: Lab,
    /// Writes to etcd.
    pub writer: Writer,
}

impl World {
    /// Makes hosts without agents, and a network with `leases` synthetic leases.
    pub fn new(hosts: u8, backend: &str, leases: u32) -> Self {
        let lab = Lab::without_network(&Shape::vxlan(hosts));
        let writer = Writer::new(&Namespace(lab.topology.store().namespace));
        let config = leases::config(backend).into_bytes();
        writer.write_one(Write::Put { key: format!("{}/config", leases::PREFIX), value: config, lease: None });
        writer.write(leases::puts_under(backend, leases));
        Self { lab, writer }
    }

    /// Makes the namespace of host `number` anew, as if it had never had an agent.
    pub fn renew_host(&self, number: u8) {
        let host = self.lab.host(number);
        let _ = run(Command::new("ip").args(["netns", "del", &host.0]));
        // The namespace goes in its own time, and with it the other end of its cable.
        let station = self.lab.topology.host(number);
        let _ = run(Command::new("ip").args(["-n", &self.lab.underlay().0, "link", "del", &station.port]));
        wire(&self.lab.topology.station_commands(&station));
        // Its address is at another Ethernet address now, which others would find out by themselves within a minute.
        for other in (1..=self.lab.topology.hosts).filter(|other| *other != number) {
            let _ = run(Command::new("ip").args(["-n", &self.lab.host(other).0, "neigh", "flush", "dev", "eth0"]));
        }
        let _ = std::fs::remove_dir_all(self.directory(number));
    }

    /// Starts an agent on host `number` with a bridge and the further `flags`.
    pub fn start(&self, number: u8, flags: &[&str]) -> Daemon {
        Daemon::start(&self.lab.host(number), &self.lab.topology.endpoint(), &self.directory(number), number, flags)
    }

    /// Makes room for the next agent: ends this one, and removes the lease that it cannot claim again any more.
    pub fn forget(&self, mut daemon: Daemon) {
        let key = leases::key(network(daemon.subnet()));
        daemon.kill();
        self.writer.write(vec![Txn { when: Vec::new(), then: vec![Write::Delete(key)] }]);
    }

    fn directory(&self, number: u8) -> PathBuf {
        self.lab.directory.join(format!("host{number}"))
    }
}

/// Returns the first address of the /24 in which `address` is.
pub fn network(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() & 0xffff_ff00)
}

/// A running agent, started without anything in between, killed when dropped.
pub struct Daemon {
    child: Child,
    run_dir: PathBuf,
    /// The time at which it was started.
    pub began: Instant,
}

impl Daemon {
    fn start(host: &Namespace, endpoint: &str, directory: &Path, number: u8, flags: &[&str]) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let run_dir = directory.join("run");
        let _ = std::fs::remove_file(run_dir.join("subnet.env"));
        let log = std::fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
        let mut command = Command::new(program());
        command
            .args(["join", endpoint, "--bridge", BRIDGE])
            .arg(format!("--node-name=host{number}"))
            .arg(format!("--state-dir={}", directory.join("state").display()))
            .arg(format!("--run-dir={}", run_dir.display()))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let namespace = netns(host);
        namespace.command(&mut command).unwrap();
        let began = Instant::now();
        Self { child: command.spawn().unwrap(), run_dir, began }
    }

    /// Returns the id of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `subnet.env`; returns when it was seen.
    pub fn env_written(&self) -> Instant {
        let path = self.run_dir.join("subnet.env");
        while !path.exists() {
            if self.began.elapsed() > DEADLINE {
                let log = self.run_dir.with_file_name("log");
                panic!("no subnet.env; log:\n{}", std::fs::read_to_string(log).unwrap_or_default());
            }
            pause(Duration::from_micros(500));
        }
        Instant::now()
    }

    /// Returns the first address of its subnet, which is its bridge's.
    pub fn subnet(&self) -> Ipv4Addr {
        self.env_written();
        let text = std::fs::read_to_string(self.run_dir.join("subnet.env")).unwrap();
        match SubnetEnv::parse(&text).and_then(|env| env.v4) {
            Some(ipnet::IpNet::V4(net)) => net.addr(),
            _ => panic!("no IPv4 subnet in {text}"),
        }
    }

    /// Ends it with the only signal that gives it no chance to do anything.
    pub fn kill(&mut self) {
        // It may have ended by itself: then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
