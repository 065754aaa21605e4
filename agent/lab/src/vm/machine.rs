//! One machine: a QEMU process and the line to the program in it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::guest::{Guest, Ran, pause};
use super::image::{Image, QEMU};
use super::monitor::Monitor;
use flatnet_plane::failure::{Exit, Failure};

/// The time that a machine has to boot. One alone boots in 6 s, with systemd in 20 s; this is for six of them on two
/// busy cores.
const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
/// The time that an orderly end may take. With systemd it takes seconds; a service that does not end is killed by
/// systemd after 90 s.
const END_TIMEOUT: Duration = Duration::from_secs(150);
/// The pause between two looks at the process.
const POLL_EVERY: Duration = Duration::from_millis(10);
/// The number of lines of a console that are quoted in an error.
const QUOTED_LINES: usize = 25;
/// The size in MiB of the cache of translated code. Without a limit it grows to half a gigabyte per machine.
const TRANSLATION_CACHE_MIB: u32 = 128;

/// The program that is process 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The program that answers, and nothing else: it boots in seconds.
    Plain,
    /// The program systemd, as on a server.
    Systemd,
}

/// A network card on a tap device that exists.
#[derive(Clone, Debug)]
pub struct Card {
    /// The tap device.
    pub tap: String,
    /// The Ethernet address.
    pub mac: String,
}

/// The plan by which a machine is made.
#[derive(Clone, Debug)]
pub struct MachinePlan {
    /// A part of the names of the machine's files.
    pub name: String,
    /// The directory for its sockets and console. Sockets have short names: at most 107 bytes with the file name.
    pub directory: PathBuf,
    /// The image it boots from.
    pub image: Image,
    /// The disk made by [`super::payload`].
    pub payload: PathBuf,
    /// The program that is process 1.
    pub boot: Boot,
    /// An ext4 file system for what is changed; without one, changes are kept in the machine's memory.
    pub changes: Option<PathBuf>,
    /// The memory in MiB.
    pub memory_mib: u32,
    /// The network card of the machine.
    pub card: Option<Card>,
    /// A saved machine to go on from, instead of booting. It must have been made with the same devices.
    pub saved: Option<PathBuf>,
}

impl MachinePlan {
    fn socket(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("{}.{kind}", self.name))
    }

    fn console(&self) -> PathBuf {
        self.directory.join(format!("{}.console", self.name))
    }

    fn arguments(&self) -> Vec<String> {
        let boot = match self.boot {
            Boot::Plain => "plain",
            Boot::Systemd => "systemd",
        };
        let changes = if self.changes.is_some() { " lab.changes=disk" } else { "" };
        // `nokaslr`, `mitigations=off`, `apparmor=0`: nobody attacks the machine, and emulation pays for each.
        // `tsc=reliable`: no calibration.
        let line = format!(
            "console=ttyS0 quiet panic=-1 apparmor=0 mitigations=off nokaslr tsc=reliable no_timer_check net.ifnames=0 \
             systemd.show_status=0 lab.boot={boot}{changes}"
        );
        let mut arguments: Vec<String> =
            words("-nodefaults -display none -no-reboot -machine q35 -cpu max,la57=off -smp 1");
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("-accel", format!("tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"));
        add("-m", self.memory_mib.to_string());
        add("-kernel", self.image.kernel().display().to_string());
        add("-initrd", self.image.initrd().display().to_string());
        add("-append", line);
        add("-chardev", format!("file,id=console,path={},append=on", self.console().display()));
        add("-serial", "chardev:console".to_owned());
        add("-device", "virtio-rng-pci".to_owned());
        for (id, path) in [("root", &self.image.root()), ("payload", &self.payload)] {
            let path = path.display();
            add("-drive", format!("if=none,id={id},file={path},format=raw,readonly=on,file.locking=off"));
            add("-device", format!("virtio-blk-pci,drive={id}"));
        }
        if let Some(changes) = &self.changes {
            add("-drive", format!("if=none,id=changes,file={},format=raw", changes.display()));
            add("-device", "virtio-blk-pci,drive=changes".to_owned());
        }
        if let Some(Card { tap, mac }) = &self.card {
            add("-netdev", format!("tap,id=net,ifname={tap},script=no,downscript=no"));
            add("-device", format!("virtio-net-pci,netdev=net,mac={mac}"));
        }
        add("-chardev", format!("socket,id=guest,path={},server=on,wait=off", self.socket("guest").display()));
        add("-device", "virtio-serial-pci".to_owned());
        add("-device", "virtserialport,chardev=guest,name=flatnet.lab".to_owned());
        add("-qmp", format!("unix:{},server=on,wait=off", self.socket("monitor").display()));
        if let Some(saved) = &self.saved {
            add("-incoming", format!("exec:cat {}", saved.display()));
        }
        arguments
    }
}

/// A running machine. It is killed when dropped.
#[derive(Debug)]
pub struct Machine {
    plan: MachinePlan,
    child: Child,
    guest: Guest,
}

impl Machine {
    /// Starts the machine, without waiting for its boot: a script that is sent waits for that.
    pub fn start(plan: MachinePlan) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::new(Exit::Internal, format!("cannot start {QEMU}")).caused_by(error);
        fs::create_dir_all(&plan.directory).map_err(failed)?;
        for kind in ["guest", "monitor"] {
            // The socket was left by this machine before it was switched off.
            let _ = fs::remove_file(plan.socket(kind));
        }
        let console = File::options().create(true).append(true).open(plan.console()).map_err(failed)?;
        let mut command = Command::new(QEMU);
        command.args(plan.arguments()).stdin(Stdio::null());
        command.stdout(console.try_clone().map_err(failed)?).stderr(console);
        let mut child = command.spawn().map_err(failed)?;
        let guest = match Guest::connect(&plan.socket("guest")) {
            Ok(guest) => guest,
            Err(failure) => {
                end(&mut child);
                return Err(failure.hint(tail(&plan.console())));
            }
        };
        let machine = Self { plan, child, guest };
        if machine.plan.saved.is_some() {
            machine.monitor()?.resume()?;
        }
        Ok(machine)
    }

    /// Waits until the machine answers.
    pub fn wait_booted(&mut self) -> Result<(), Failure> {
        self.sh("true", BOOT_TIMEOUT).map(drop)
    }

    /// Runs a script in the machine with bash, for at most `timeout` (whole seconds). It may be called while the
    /// machine boots.
    pub fn sh(&mut self, script: &str, timeout: Duration) -> Result<Ran, Failure> {
        let ran = self.guest.sh(script, timeout);
        ran.map_err(|failure| {
            failure.hint(format!("{}'s console ends:\n{}", self.plan.name, tail(&self.plan.console())))
        })
    }

    /// Writes a file in the machine.
    pub fn put(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), Failure> {
        self.guest.put(path, mode, content, BOOT_TIMEOUT)
    }

    /// Stops the machine for good and writes its memory to `file`, for machines to go on from.
    pub fn save(self, file: &Path) -> Result<(), Failure> {
        self.monitor()?.save(file)
    }

    /// Waits for the end of a machine that was told to end, and starts it again.
    pub fn wait_rebooted(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(_)) => break,
                Ok(None) if began.elapsed() < END_TIMEOUT => pause(POLL_EVERY),
                _ => return Err(Failure::new(Exit::Unavailable, format!("{} does not end", self.plan.name))),
            }
        }
        self.start_again()
    }

    /// Pulls the plug and starts the machine again: what was not written to its disk is gone.
    pub fn power_cycle(&mut self) -> Result<(), Failure> {
        end(&mut self.child);
        self.start_again()
    }

    /// Stops or continues the whole machine, its clock too, as a host that hangs.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let pid = i32::try_from(self.child.id());
        let pid = pid.map_err(|error| Failure::new(Exit::Internal, "a pid").caused_by(error))?;
        kill(Pid::from_raw(pid), signal)
            .map_err(|errno| Failure::new(Exit::Internal, format!("cannot signal {}", self.plan.name)).caused_by(errno))
    }

    /// Connects to the monitor, which takes one connection at a time.
    pub fn monitor(&self) -> Result<Monitor, Failure> {
        Monitor::connect(&self.plan.socket("monitor"))
    }

    fn start_again(&mut self) -> Result<(), Failure> {
        *self = Self::start(self.plan.clone())?;
        self.wait_booted()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // An error means that it has ended by itself: then there is nothing to do.
    let _ = child.kill();
    let _ = child.wait();
}

fn tail(console: &Path) -> String {
    let text = fs::read(console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(QUOTED_LINES)).map(|line| format!("    {line}\n")).collect()
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
