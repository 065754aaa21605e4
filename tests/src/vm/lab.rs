//! Machines on a private network.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use flatnet_lab::vm::{Boot, Machine};

use super::capture::Capture;
use super::host::Vm;
use super::template::{directory, ok, plan, saved};
use crate::netns::run;

/// The machines' switch, in the sandbox's own network namespace, which is their default gateway and forwards nothing.
pub const SWITCH: &str = "switch0";
/// The size of a disk for changes, for machines that keep them. It is sparse and takes what is written.
const CHANGES_DISK_BYTES: u64 = 2 << 30;

/// Numbers the labs of this program, for the names of files.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The make-up of a lab.
#[derive(Clone, Copy, Debug)]
pub struct VmShape {
    /// Number of machines.
    pub machines: u8,
    /// The kind of process 1 in them.
    pub boot: Boot,
    /// True if changes are kept on a disk, so that a machine can be rebooted. Such a machine is booted, never cloned.
    pub disks: bool,
    /// One more machine, number 0 at 192.168.33.10, called `master`: where an etcd of its own is.
    pub master: bool,
}

impl VmShape {
    /// Makes the shape of plain machines: clones, which are up in seconds.
    #[must_use]
    pub fn plain(machines: u8) -> Self {
        Self { machines, boot: Boot::Plain, disks: false, master: false }
    }

    /// Servers as people have them, with systemd. They are clones too.
    #[must_use]
    pub fn servers(machines: u8) -> Self {
        Self { machines, boot: Boot::Systemd, disks: false, master: false }
    }

    /// Gives the machines a disk for what is changed, so that they can be rebooted.
    #[must_use]
    pub fn with_disks(self) -> Self {
        Self { disks: true, ..self }
    }

    /// Adds one more machine for etcd.
    #[must_use]
    pub fn with_master(self) -> Self {
        Self { master: true, ..self }
    }
}

/// A running lab: gone when dropped. One at a time.
#[derive(Debug)]
pub struct VmLab {
    machines: Vec<Vm>,
    store: std::sync::OnceLock<u8>,
}

impl VmLab {
    /// Starts a lab of plain machines.
    #[must_use]
    pub fn up(machines: u8) -> Self {
        Self::new(VmShape::plain(machines))
    }

    /// Starts machines as described, configured, on a network of their own.
    #[must_use]
    pub fn new(shape: VmShape) -> Self {
        // Made first: all in this lab wait for it.
        let saved = (!shape.disks).then(|| saved(shape.boot));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        ok(&format!("ip link add {SWITCH} type bridge forward_delay 0 mcast_snooping 0"));
        // From here on what was made goes with this.
        let mut lab = Self { machines: Vec::new(), store: std::sync::OnceLock::new() };
        ok(&format!("ip addr add 192.168.33.1/24 dev {SWITCH}"));
        ok(&format!("ip addr add fd33::1/64 dev {SWITCH} nodad"));
        ok(&format!("ip link set {SWITCH} up"));
        for machine in u8::from(!shape.master)..=shape.machines {
            let name = format!("l{number}m{machine}");
            ok(&format!("ip tuntap add {name} mode tap"));
            ok(&format!("ip link set {name} master {SWITCH} up"));
            let mut plan = plan(&name, shape.boot);
            plan.saved = saved.map(Path::to_owned);
            if shape.disks {
                plan.changes = Some(make_disk(&directory().join(format!("{name}.disk"))));
            }
            lab.machines.push(Vm::new(machine, name, Machine::start(plan).unwrap()));
        }
        match shape.boot {
            Boot::Plain => lab.each(Vm::configure),
            Boot::Systemd => lab.each(Vm::configure_server),
        }
        lab
    }

    /// Returns machine `number`: from 1, and 0 is the master.
    #[must_use]
    pub fn vm(&self, number: u8) -> &Vm {
        self.machines.iter().find(|vm| vm.number == number).unwrap_or_else(|| panic!("there is no machine {number}"))
    }

    /// Returns all machines.
    #[must_use]
    pub fn machines(&self) -> &[Vm] {
        &self.machines
    }

    /// Does something on all machines at the same time.
    pub fn each(&self, work: impl Fn(&Vm) + Sync) {
        self.each_of(&self.numbers(), work);
    }

    /// Does something on the machines of these numbers at the same time.
    pub fn each_of(&self, numbers: &[u8], work: impl Fn(&Vm) + Sync) {
        std::thread::scope(|scope| {
            let work = &work;
            let machines = numbers.iter().map(|number| self.vm(*number));
            let threads: Vec<_> = machines.map(|vm| scope.spawn(move || work(vm))).collect();
            for thread in threads {
                if let Err(panic) = thread.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        });
    }

    /// Starts an etcd of one member on machine `number`, as [`Vm::start`] does, and waits until it answers.
    pub fn start_etcd(&self, number: u8) {
        let vm = self.vm(number);
        let address = vm.address();
        let _ = self.store.set(number);
        vm.start(
            "etcd",
            &format!(
                "etcd --name=lab --data-dir=/var/lib/etcd-lab --listen-client-urls=http://{address}:2379,http://127.0.0.1:2379 \
                 --advertise-client-urls=http://{address}:2379 --unsafe-no-fsync"
            ),
        );
        vm.wait_for("etcd answers", "ETCDCTL_API=3 etcdctl --dial-timeout=5s endpoint health");
    }

    /// Starts an etcd of one member on each machine. They find each other also over a bad line; then they have a
    /// leader.
    pub fn start_etcd_cluster(&self) {
        let peer = |vm: &Vm| format!("{}=http://{}:2380", vm.name, vm.address());
        let members: Vec<String> = self.machines.iter().map(peer).collect();
        let members = members.join(",");
        let _ = self.store.set(self.machines[0].number);
        self.each(|vm| {
            let (name, address) = (&vm.name, vm.address());
            // etcd's tuning guide: heartbeat about the round trip, election ten times that, at least.
            vm.start(
                "etcd",
                &format!(
                    "etcd --name={name} --data-dir=/var/lib/etcd-lab --listen-client-urls=http://{address}:2379,http://127.0.0.1:2379 \
                     --advertise-client-urls=http://{address}:2379 --listen-peer-urls=http://{address}:2380 \
                     --initial-advertise-peer-urls=http://{address}:2380 --initial-cluster={members} --unsafe-no-fsync \
                     --heartbeat-interval=300 --election-timeout=3000"
                ),
            );
        });
        self.each(|vm| {
            vm.wait_for(
                "etcd answers",
                "ETCDCTL_API=3 etcdctl --dial-timeout=10s --command-timeout=20s endpoint health",
            );
        });
    }

    /// Returns the endpoint of the etcd of [`VmLab::start_etcd`].
    #[must_use]
    pub fn endpoint(&self) -> String {
        let store = self.store.get().expect("no etcd was started");
        format!("http://{}:2379", self.vm(*store).address())
    }

    /// Runs etcdctl against it; returns what it printed.
    pub fn etcdctl(&self, arguments: &str) -> String {
        let store = self.store.get().expect("no etcd was started");
        self.vm(*store).ok(&format!("ETCDCTL_API=3 etcdctl --dial-timeout=10s --command-timeout=20s {arguments}"))
    }

    /// Writes the configuration of the network `default`, in flannel's JSON.
    pub fn configure(&self, config: &str) {
        self.etcdctl(&format!("put /coreos.com/network/config '{config}'"));
    }

    /// Starts an agent with a bridge on every machine, and waits until all know each other.
    pub fn join_all(&self, flags: &[&str]) {
        self.join_some(&self.numbers(), flags);
    }

    /// Starts an agent as [`Self::join_all`] does, on the machines of these numbers only.
    pub fn join_some(&self, numbers: &[u8], flags: &[&str]) {
        let endpoint = self.endpoint();
        self.each_of(numbers, |vm| vm.join(&endpoint, flags));
        self.each_of(numbers, |vm| drop(vm.wait_converged(numbers.len() - 1)));
    }

    /// Gives every machine its container.
    pub fn attach_all(&self) {
        self.each(Vm::attach);
    }

    /// Asserts that every container pings every other, at each of its addresses, until all answer.
    pub fn assert_all_pairs(&self) {
        self.assert_pairs_of(&self.numbers());
    }

    /// Asserts the same of the containers of these machines.
    pub fn assert_pairs_of(&self, numbers: &[u8]) {
        let machines = numbers.iter().map(|number| self.vm(*number));
        let addresses: Vec<_> =
            machines.map(|vm| (vm.number, vm.subnet().container_addresses().collect::<Vec<_>>())).collect();
        self.each_of(numbers, |vm| {
            for (_, others) in addresses.iter().filter(|(number, _)| *number != vm.number) {
                others.iter().for_each(|address| vm.assert_container_reaches(*address));
            }
        });
    }

    /// Captures what passes the machines' network and matches tcpdump's `filter`.
    #[must_use]
    pub fn capture(&self, filter: &str) -> Capture {
        static CAPTURES: AtomicU32 = AtomicU32::new(1);
        let number = CAPTURES.fetch_add(1, Ordering::Relaxed);
        Capture::start(SWITCH, filter, directory().join(format!("capture{number}")))
    }

    fn numbers(&self) -> Vec<u8> {
        self.machines.iter().map(|vm| vm.number).collect()
    }
}

impl Drop for VmLab {
    fn drop(&mut self) {
        // The machines first: a tap device in use does not go.
        let taps: Vec<String> = self.machines.drain(..).map(|vm| vm.tap.clone()).collect();
        for device in taps.iter().map(String::as_str).chain([SWITCH]) {
            let _ = run(Command::new("ip").args(["link", "del", device]));
            let _ = std::fs::remove_file(directory().join(format!("{device}.disk")));
        }
    }
}

fn make_disk(path: &Path) -> std::path::PathBuf {
    std::fs::File::create(path).unwrap().set_len(CHANGES_DISK_BYTES).unwrap();
    ok(&format!("mkfs.ext4 -q -F {}", path.display()));
    path.to_owned()
}
