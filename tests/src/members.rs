//! A real etcd of three members, each on a host of its own, to be killed, hung, cut off and robbed of its disk.
//!
//! A cut is one of the network: packets from the other side are dropped without a word (nftables at the receiver's
//! input), or the member's cable is unplugged at the switch. Nothing is killed by it, nobody is told.

use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::Lab;
use crate::netns::{Namespace, Ran, run};
use crate::wait::wait_until;

/// The time for a cold start of three, and an election, under load.
const ANSWERS: Duration = Duration::from_secs(60);
/// The size of a disk for one member: two preallocated segments of its log, 64 MiB each, and room for a test's data.
const DISK_MIB: u32 = 192;
/// The number of members.
pub const COUNT: usize = 3;

/// One member.
#[derive(Debug)]
struct Member {
    namespace: Namespace,
    /// The switch's end of its cable.
    port: String,
    address: Ipv4Addr,
    child: Option<Child>,
}

/// Three members on three hosts of a lab; killed when dropped.
#[derive(Debug)]
pub struct Members {
    members: Vec<Member>,
    switch: Namespace,
    directory: PathBuf,
    /// The namespaces that drop packets from somewhere.
    cut: Vec<Namespace>,
    unplugged: Option<usize>,
    hung: Option<usize>,
    disk: Option<PathBuf>,
}

impl Members {
    /// Starts them on hosts `first`, `first + 1` and `first + 2` and waits until all of them answer.
    #[must_use]
    pub fn start(lab: &Lab, first: u8) -> Self {
        Self::on(lab, first, None)
    }

    /// Starts them as [`Self::start`] does. The first member has a small disk of its own, which [`Self::fill_disk`]
    /// fills.
    #[must_use]
    pub fn start_with_a_small_disk(lab: &Lab, first: u8) -> Self {
        let disk = lab.directory.join("m0");
        fs::create_dir_all(&disk).unwrap();
        let size = format!("size={DISK_MIB}m,mode=0700");
        let ran = run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&disk));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        Self::on(lab, first, Some(disk))
    }

    fn on(lab: &Lab, first: u8, disk: Option<PathBuf>) -> Self {
        let members = (first..).take(COUNT).map(|number| {
            let host = lab.topology.host(number);
            Member { namespace: Namespace(host.namespace), port: host.port, address: host.v4, child: None }
        });
        let mut members = Self {
            members: members.collect(),
            switch: lab.underlay(),
            directory: lab.directory.clone(),
            cut: Vec::new(),
            unplugged: None,
            hung: None,
            disk,
        };
        members.run_all();
        members.wait_until_all_answer();
        members
    }

    /// Returns the endpoints for clients.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("http://{}:2379", member.address)).collect()
    }

    /// Returns the namespace of one member.
    #[must_use]
    pub fn namespace(&self, index: usize) -> &Namespace {
        &self.members[index].namespace
    }

    /// Starts those that do not run, on the data they left.
    pub fn run_all(&mut self) {
        (0..COUNT).for_each(|index| self.run(index));
    }

    fn run(&mut self, index: usize) {
        if self.is_running(index) {
            return;
        }
        let all = self.members.iter().enumerate();
        let all: Vec<String> =
            all.map(|(number, member)| format!("m{number}=http://{}:2380", member.address)).collect();
        let member = &self.members[index];
        let ip = member.address;
        let log = File::options().create(true).append(true).open(self.log(index)).unwrap();
        let argv = [
            "etcd".to_owned(),
            format!("--name=m{index}"),
            format!("--data-dir={}", self.data_dir(index).display()),
            format!("--listen-client-urls=http://{ip}:2379"),
            format!("--advertise-client-urls=http://{ip}:2379"),
            format!("--listen-peer-urls=http://{ip}:2380"),
            format!("--initial-advertise-peer-urls=http://{ip}:2380"),
            format!("--initial-cluster={}", all.join(",")),
            "--unsafe-no-fsync".to_owned(),
        ];
        let mut command = member.namespace.command(&argv);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.members[index].child = Some(command.spawn().unwrap());
    }

    fn data_dir(&self, index: usize) -> PathBuf {
        self.directory.join(format!("m{index}")).join("data")
    }

    fn log(&self, index: usize) -> PathBuf {
        self.directory.join(format!("m{index}.log"))
    }

    /// Runs `etcdctl` at one member, from its own host.
    #[must_use]
    pub fn ctl(&self, index: usize, arguments: &[&str]) -> Ran {
        self.etcdctl(index, &self.endpoints()[index], arguments)
    }

    fn etcdctl(&self, from: usize, endpoints: &str, arguments: &[&str]) -> Ran {
        let prefix =
            ["env", "ETCDCTL_API=3", "etcdctl", "--dial-timeout=2s", "--command-timeout=5s", "--endpoints", endpoints];
        let argv: Vec<&str> = prefix.iter().chain(arguments).copied().collect();
        self.members[from].namespace.run(&argv)
    }

    /// Waits until each of them answers a read that needs a majority.
    pub fn wait_until_all_answer(&self) {
        wait_until("every member of etcd answers", ANSWERS, || {
            // Stops at the first that does not.
            (0..COUNT).try_for_each(|index| {
                let ran = self.ctl(index, &["endpoint", "health"]);
                if ran.code == 0 { Ok(()) } else { Err(format!("m{index}: {}", ran.stderr)) }
            })
        });
    }

    /// Returns the index of the member that leads, as the members themselves report it.
    #[must_use]
    pub fn leader(&self) -> usize {
        wait_until("etcd has a leader", ANSWERS, || {
            let leads = |index: &usize| {
                // endpoint, id, version, size, leader, …
                self.ctl(*index, &["endpoint", "status"]).stdout.split(", ").nth(4) == Some("true")
            };
            (0..COUNT).find(leads).ok_or_else(|| "nobody leads".to_owned())
        })
    }

    /// Makes `index` the leader.
    pub fn make_leader(&self, index: usize) {
        wait_until("the leadership is handed over", ANSWERS, || {
            let leader = self.leader();
            if leader == index {
                return Ok(());
            }
            let status = self.ctl(index, &["endpoint", "status"]).stdout;
            let id = status.split(", ").nth(1).unwrap_or_default();
            let ran = self.ctl(leader, &["move-leader", id]);
            Err(format!("{}{}", ran.stdout, ran.stderr))
        });
    }

    /// Compacts all history but the present.
    pub fn compact(&self, at: usize) {
        wait_until("etcd is compacted", ANSWERS, || {
            let status = self.ctl(at, &["endpoint", "status", "--write-out=json"]).stdout;
            let after = status.split("\"revision\":").nth(1).unwrap_or_default();
            let revision = after.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            let ran = self.ctl(at, &["compact", revision]);
            if ran.code == 0 { Ok(()) } else { Err(ran.stderr) }
        });
    }

    /// Returns true if the process of the member lives.
    pub fn is_running(&mut self, index: usize) -> bool {
        let child = &mut self.members[index].child;
        let runs = child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none());
        if !runs {
            *child = None;
        }
        runs
    }

    /// Kills the member at once.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.members[index].child.take() {
            // It may have ended by itself: then there is nothing to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops the member's clock: connections stay open, nothing answers.
    pub fn hang(&mut self, index: usize) {
        self.signal(index, Signal::SIGSTOP);
        self.hung = Some(index);
    }

    fn signal(&self, index: usize, signal: Signal) {
        let child = self.members[index].child.as_ref().expect("it runs");
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Pulls the member's cable.
    pub fn unplug(&mut self, index: usize) {
        self.switch.ok(&format!("ip link set {} down", self.members[index].port));
        self.unplugged = Some(index);
    }

    /// Cuts off `members` and the places `beside` them from all other members and from the places `others`.
    pub fn cut(&mut self, members: &[usize], beside: &[Side], others: &[Side]) {
        let side = |index: usize| Side {
            namespace: self.members[index].namespace.clone(),
            address: self.members[index].address,
        };
        let here: Vec<Side> = members.iter().map(|index| side(*index)).chain(beside.iter().cloned()).collect();
        let there = (0..COUNT).filter(|index| !members.contains(index)).map(side).chain(others.iter().cloned());
        let there: Vec<Side> = there.collect();
        for (hears, from) in [(&here, &there), (&there, &here)] {
            let from: Vec<String> = from.iter().map(|side| side.address.to_string()).collect();
            for side in hears {
                self.drop_from(&side.namespace, &from.join(", "));
            }
        }
    }

    /// Cuts one place off from all members.
    pub fn cut_off(&mut self, place: &Side) {
        self.cut(&[0, 1, 2], &[], std::slice::from_ref(place));
    }

    fn drop_from(&mut self, namespace: &Namespace, addresses: &str) {
        let rules = format!(
            "add table inet cut; add chain inet cut in {{ type filter hook input priority 0; }}; \
             add rule inet cut in ip saddr {{ {addresses} }} drop"
        );
        self.cut.push(namespace.clone());
        let ran = namespace.run(&["nft", &rules]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }

    /// Fills the first member's disk to the last byte, and keeps writing to etcd until that member has noticed: it
    /// ends.
    pub fn fill_disk(&mut self) {
        let disk = self.disk.clone().expect("the first member has a disk of its own");
        let mut filler = File::create(disk.join("filler")).unwrap();
        while filler.write_all(&[0; 64 * 1024]).is_ok() {}
        while filler.write_all(&[0; 512]).is_ok() {}
        // Longer than a page of its file has room for, and shorter than what a command line may be.
        let value = "x".repeat(100_000);
        wait_until("the member with the full disk ends", ANSWERS, || {
            if !self.is_running(0) {
                return Ok(());
            }
            let ran = self.ctl(1, &["put", "ballast", &value]);
            Err(format!("it still runs; {}{}", ran.stdout, ran.stderr))
        });
        let said = self.last_words(0);
        assert!(said.contains("no space left on device"), "it ended for another reason: {said}");
    }

    /// Returns the end of the member's log.
    fn last_words(&self, index: usize) -> String {
        let log = fs::read(self.log(index)).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(20_000)..]).into_owned()
    }

    /// Undoes every fault; does not wait.
    pub fn heal(&mut self) {
        if let Some(index) = self.hung.take() {
            self.signal(index, Signal::SIGCONT);
        }
        if let Some(index) = self.unplugged.take() {
            self.switch.ok(&format!("ip link set {} up", self.members[index].port));
        }
        for namespace in std::mem::take(&mut self.cut) {
            let _ = namespace.run(&["nft", "delete table inet cut"]);
        }
        if let Some(disk) = &self.disk {
            remove_if_there(&disk.join("filler"));
        }
        self.run_all();
    }
}

/// Something on the underlay besides the members.
#[derive(Clone, Debug)]
pub struct Side {
    /// The namespace it runs in.
    pub namespace: Namespace,
    /// Its address.
    pub address: Ipv4Addr,
}

fn remove_if_there(path: &Path) {
    if path.exists() {
        fs::remove_file(path).unwrap();
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        (0..COUNT).for_each(|index| self.kill(index));
        if let Some(disk) = &self.disk {
            let _ = run(Command::new("umount").arg("-l").arg(disk));
        }
    }
}
