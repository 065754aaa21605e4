//! Runs tests inside the sandbox. A test that cannot run here is shown as ignored, with the reason on stderr.

use std::cell::Cell;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flatnet_lab::sandbox;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// The number of labs at a time: each has an etcd and several agents, and machines have as few as two cores.
const AT_ONCE: usize = 2;
/// The number of labs of virtual machines at a time: one lab fills two cores.
const VM_LABS_AT_ONCE: usize = 1;

/// Variables of the caller that pass into the sandbox, which otherwise drops what begins with `FLATNET_`.
const PASSED_ON: [&str; 7] = [
    "FLATNET_AGENT",
    "FLATNET_CONTROLPLANE",
    "FLATNET_DEB",
    "FLATNET_CONTROLPLANE_DEB",
    "FLATNET_VM_DIR",
    TIME_BUDGET,
    AGAIN,
];

/// The variable with the number of seconds for which tests are begun. Those that are left after that are shown as
/// ignored, and are counted.
const TIME_BUDGET: &str = "FLATNET_TEST_SECS";

/// The variable with the number of tests of a program that may fail once and are run a second time; 0 unless it is set.
/// Tests have real time and real packets on a machine that others use too, so one failure in hundreds says nothing
/// about the change at hand. It must not be lost either, so each is shown as FLAKY with its message, and is counted.
const AGAIN: &str = "FLATNET_TEST_AGAIN";

/// A test: its name, a sentence in snake case, and its body.
pub struct Test {
    /// Shown and matched by filters.
    pub name: String,
    /// The things it needs of the machine beyond the sandbox.
    pub needs: Vec<Need>,
    /// Panics if it fails.
    pub body: Box<dyn Fn() + Send>,
}

impl Test {
    /// Makes a test that needs nothing special.
    pub fn new(name: impl Into<String>, body: impl Fn() + Send + 'static) -> Self {
        Self { name: name.into(), needs: Vec::new(), body: Box::new(body) }
    }

    /// Adds the needs of `backend`.
    #[must_use]
    pub fn on_backend(mut self, backend: &str) -> Self {
        if backend == "vxlan" {
            self.needs.push(Need::Vxlan);
        }
        if backend == "gre" {
            self.needs.push(Need::Gre);
        }
        if backend == "wireguard" {
            self.needs.push(Need::Wireguard);
        }
        self
    }

    /// Adds a need.
    #[must_use]
    pub fn needing(mut self, need: Need) -> Self {
        self.needs.push(need);
        self
    }

    /// Makes the test one that runs in virtual machines.
    #[must_use]
    pub fn in_vms(mut self) -> Self {
        self.needs.push(Need::Vms);
        self
    }

    /// Makes the test one that installs the Debian package, in virtual machines.
    #[must_use]
    pub fn of_package(mut self) -> Self {
        self.needs.extend([Need::Vms, Need::Package]);
        self
    }

    /// Makes the test one that installs the agent's package and the control plane's.
    #[must_use]
    pub fn of_both_packages(mut self) -> Self {
        self.needs.extend([Need::Vms, Need::Package, Need::ControlPlanePackage]);
        self
    }
}

/// Something a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The kernel can make VXLAN devices.
    Vxlan,
    /// The kernel or the agent can carry GRE.
    Gre,
    /// The kernel or the agent can carry WireGuard, and its tools are there to look at it.
    Wireguard,
    /// An emulator and an image for virtual machines, and the right to connect them.
    Vms,
    /// The agent's Debian package.
    Package,
    /// The control plane's Debian package.
    ControlPlanePackage,
    /// openssl(1), to make certificates.
    Openssl,
}

impl Need {
    /// Returns the reason why it is not there, if it is not.
    fn missing(self) -> Option<String> {
        let can_make = |kind: &[&str]| {
            let add = ["link", "add", "probe", "type"].iter().chain(kind);
            let made = Command::new("ip").args(add).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
            let _ = Command::new("ip").args(["link", "del", "probe"]).stderr(Stdio::null()).status();
            made
        };
        let tun = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok();
        match self {
            Self::Gre => (!can_make(&["gre", "local", "127.0.0.1"]) && !tun())
                .then(|| "this kernel has no GRE, and /dev/net/tun cannot be opened".to_owned()),
            Self::Vxlan => (!can_make(&["vxlan", "id", "1", "dstport", "8472"]))
                .then(|| "this kernel cannot make VXLAN devices: `modprobe vxlan`".to_owned()),
            Self::Wireguard => {
                let tools = ["wg", "wireguard-go", "tcpdump"];
                let missing = tools.iter().find(|tool| flatnet_lab::tools::find(tool).is_none());
                if let Some(tool) = missing {
                    return Some(format!("{tool} is not installed: `make setup`"));
                }
                (!can_make(&["wireguard"]) && !tun())
                    .then(|| "this kernel has no WireGuard, and /dev/net/tun cannot be opened".to_owned())
            }
            Self::Vms => no_vms(),
            Self::Openssl => flatnet_lab::tools::find("openssl")
                .is_none()
                .then(|| "openssl is not installed: `make setup`".to_owned()),
            Self::Package => crate::vm::package()
                .is_none()
                .then(|| "no Debian package is named in FLATNET_DEB: `make test-vm` makes one".to_owned()),
            Self::ControlPlanePackage => crate::vm::control_plane_package()
                .is_none()
                .then(|| "no Debian package is named in FLATNET_CONTROLPLANE_DEB: `make test-vm` makes one".to_owned()),
        }
    }
}

/// Returns the reason why there can be no virtual machines here, if there cannot.
fn no_vms() -> Option<String> {
    if let Err(failure) = crate::vm::Image::find() {
        return Some(format!("no virtual machines: {failure} (`make setup-vm vm-image`)"));
    }
    let add = ["tuntap", "add", "probe", "mode", "tap"];
    let ran = crate::netns::run(Command::new("ip").args(add));
    let _ = Command::new("ip").args(["link", "del", "probe"]).stderr(Stdio::null()).status();
    (ran.code != 0)
        .then(|| format!("no network for virtual machines: `ip tuntap add`: {}: run as root", ran.stderr.trim()))
}

/// The programs every lab needs, with their Debian packages.
const PROGRAMS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("nft", "nftables"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("ping", "iputils-ping"),
    ("setpriv", "util-linux"),
];

/// The programs that labs of virtual machines need outside them: all else is in their image.
const VM_PROGRAMS: [(&str, &str); 3] = [("ip", "iproute2"), ("tcpdump", "tcpdump"), ("mkfs.ext4", "e2fsprogs")];

/// The way a test program runs its tests.
#[derive(Clone, Copy)]
struct Plan {
    programs: &'static [(&'static str, &'static str)],
    at_once: usize,
}

/// Runs the tests: the whole of a test program's `main`.
pub fn main(tests: Vec<Test>) -> ExitCode {
    launch(tests, Plan { programs: &PROGRAMS, at_once: AT_ONCE })
}

/// Runs tests in virtual machines: the whole of such a program's `main`.
pub fn main_of_vms(tests: Vec<Test>) -> ExitCode {
    launch(tests, Plan { programs: &VM_PROGRAMS, at_once: VM_LABS_AT_ONCE })
}

fn launch(tests: Vec<Test>, plan: Plan) -> ExitCode {
    if sandbox::is_inside() {
        return inside(tests, plan);
    }
    let launched = sandbox::launch(|command| {
        for name in PASSED_ON {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
    });
    match launched.and_then(|mut launched| launched.wait()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // Not ignored: a machine on which nothing of this can run proves nothing.
            eprintln!("none of the {} tests ran", tests.len());
            failure.report()
        }
    }
}

fn inside(tests: Vec<Test>, plan: Plan) -> ExitCode {
    if let Err(failure) = sandbox::settle() {
        return failure.report();
    }
    end_with_the_launcher();
    let mut arguments = Arguments::from_args();
    remember_places_of_panics();
    let threads = arguments.test_threads.unwrap_or(plan.at_once).min(plan.at_once);
    arguments.test_threads = Some(threads);
    if !arguments.list {
        if let Some(missing) = missing_programs(plan.programs) {
            eprintln!("none of the {} tests ran: {missing}", tests.len());
            return ExitCode::from(4);
        }
        if let Err(message) = crate::agent::find_program() {
            eprintln!("none of the {} tests ran: {message}", tests.len());
            return ExitCode::FAILURE;
        }
    }
    let budgets = number(TIME_BUDGET).and_then(|time| Ok((TimeBudget::new(time), SecondTries::new(number(AGAIN)?))));
    let (budget, second_tries) = match budgets {
        Ok(budgets) => budgets,
        Err(message) => {
            eprintln!("none of the {} tests ran: {message}", tests.len());
            return ExitCode::from(2);
        }
    };
    let second_tries = Arc::new(second_tries);
    let ignored = Arc::new(AtomicUsize::new(0));
    let trials = tests.into_iter().map(|test| {
        let missing: Vec<String> =
            if arguments.list { Vec::new() } else { test.needs.iter().filter_map(|need| need.missing()).collect() };
        if !missing.is_empty() {
            ignored.fetch_add(1, Ordering::Relaxed);
            eprintln!("IGNORED {}: {}", test.name, missing.join("; "));
        }
        let (name, body, ignored) = (test.name.clone(), test.body, Arc::clone(&ignored));
        let second_tries = Arc::clone(&second_tries);
        let runner = move || match budget.used_up() {
            None => second_tries.run(&name, &*body).map(|()| Completion::Completed),
            Some(reason) => {
                ignored.fetch_add(1, Ordering::Relaxed);
                eprintln!("IGNORED {name}: {reason}");
                Ok(Completion::ignored_with(reason))
            }
        };
        Trial::ignorable_test(test.name, runner).with_ignored_flag(!missing.is_empty())
    });
    let trials: Vec<Trial> = trials.collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let ignored = ignored.load(Ordering::Relaxed);
    if ignored > 0 {
        eprintln!("{ignored} tests could NOT run on this machine (see IGNORED above)");
    }
    second_tries.sum_up();
    conclusion.exit_code()
}

thread_local! {
    /// The place where this thread panicked last: the panic itself does not tell it.
    static PANICKED_AT: Cell<Option<String>> = const { Cell::new(None) };
}

/// Reads a number from the environment.
fn number(name: &str) -> Result<Option<u64>, String> {
    let text = std::env::var(name).ok();
    text.map(|text| text.parse().map_err(|_| format!("{name}={text} is not a whole number"))).transpose()
}

/// The time for which tests may be begun.
#[derive(Clone, Copy)]
struct TimeBudget {
    began: Instant,
    length: Option<Duration>,
}

impl TimeBudget {
    fn new(secs: Option<u64>) -> Self {
        Self { began: Instant::now(), length: secs.map(Duration::from_secs) }
    }

    /// Returns the reason why no more tests are begun, if the time is used up.
    fn used_up(&self) -> Option<String> {
        let length = self.length.filter(|length| self.began.elapsed() >= *length)?;
        Some(format!("the time for these tests is used up ({TIME_BUDGET}={})", length.as_secs()))
    }
}

/// The second tries that are left, and the tests that passed only by one.
struct SecondTries {
    left: AtomicU64,
    flaky: AtomicUsize,
}

impl SecondTries {
    fn new(number: Option<u64>) -> Self {
        Self { left: AtomicU64::new(number.unwrap_or(0)), flaky: AtomicUsize::new(0) }
    }

    /// Runs a test, and once more if it fails and a second try is left.
    fn run(&self, name: &str, body: &dyn Fn()) -> Result<(), Failed> {
        let Err(first) = run(body) else { return Ok(()) };
        let take = |left: u64| left.checked_sub(1);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return Err(first);
        }
        let said = first.message().unwrap_or_default();
        eprintln!("{name} failed and is run again: {said}");
        run(body)?;
        self.flaky.fetch_add(1, Ordering::Relaxed);
        eprintln!("FLAKY {name}: passed only when it was run again; before: {}", said.replace('\n', "; "));
        Ok(())
    }

    fn sum_up(&self) {
        let flaky = self.flaky.load(Ordering::Relaxed);
        if flaky > 0 {
            eprintln!("{flaky} tests passed only when they were run again (see FLAKY above)");
        }
    }
}

/// Runs a test. A panic becomes its message, with the place, and is shown once: with the other failures at the end.
fn run(body: &dyn Fn()) -> Result<(), Failed> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let place = PANICKED_AT.take().unwrap_or_default();
        Failed::from(format!("{place}: {}", message.unwrap_or_else(|| "panicked".to_owned())))
    })
}

fn remember_places_of_panics() {
    std::panic::set_hook(Box::new(|info| PANICKED_AT.set(info.location().map(ToString::to_string))));
}

fn missing_programs(needed: &[(&str, &str)]) -> Option<String> {
    let missing: Vec<&(&str, &str)> =
        needed.iter().filter(|(program, _)| flatnet_lab::tools::find(program).is_none()).collect();
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    (!missing.is_empty())
        .then(|| format!("not installed: {}; run `make setup` (Debian: {})", programs.join(", "), packages.join(" ")))
}

/// Ends this process when the launcher is gone or interrupted: standard input ends then. This is process 1, and when it
/// ends the kernel ends all others.
pub fn end_with_the_launcher() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        #[expect(
            clippy::exit,
            clippy::disallowed_methods,
            reason = "the caller is gone, the sandbox dies with this process"
        )]
        std::process::exit(130);
    });
}
