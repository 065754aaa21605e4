//! The machines that others are clones of. Each is booted once for the whole test program. Its memory is kept in the
//! sandbox's private `/run`, so it is never older than what is tested and goes with the program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use flatnet_lab::vm::{Boot, Card, Image, Machine, MachinePlan, payload};

use crate::netns::run;

/// The memory of a plain machine: for the agent, etcd, a few containers, and the files it writes. It is part of what is
/// saved.
const MEMORY_MIB: u32 = 384;
/// The memory of a machine with systemd, and Docker on it.
const SYSTEMD_MEMORY_MIB: u32 = 768;
/// The directory with everything of this program's machines.
const DIRECTORY: &str = "/run/vm";
/// A script that loads the modules tests use and reads the programs once, so that each clone has them in memory.
const WARM_UP: &str = "modprobe -a vxlan ip_gre ip6_gre wireguard sch_netem sch_tbf bridge veth nf_tables nft_masq \
                       nft_ct nft_chain_nat ip6_tables ip_tables tun br_netfilter af_packet\n\
                       agent --version && etcd --version && etcdctl version && nft list ruleset && ip -j link && \
                       tc qdisc && ping -c1 127.0.0.1; ip link set lo up; wg --version; jq --version; iptables -S; true";

/// A script that succeeds once systemd has started all that it starts by itself, also if some of that failed.
pub const BOOTED: &str = "systemctl is-system-running --wait | grep -E 'running|degraded'";
/// The time for each of the two scripts: they read the disk for the first time.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(240);

/// Makes the disk that brings the agent.
pub fn payload_disk() -> &'static Path {
    static DISK: OnceLock<PathBuf> = OnceLock::new();
    DISK.get_or_init(|| {
        let disk = directory().join("payload");
        let agent = crate::agent::program();
        let package = package();
        let mut files = vec![("agent", agent.as_path())];
        files.extend(package.as_deref().map(|package| ("flatnet-agent.deb", package)));
        let package = control_plane_package();
        files.extend(package.as_deref().map(|package| ("flatnet-controlplane.deb", package)));
        payload(&image(), &files, &disk).unwrap();
        disk
    })
}

/// Returns the Debian package under test: `FLATNET_DEB`. Then machines have it as `/lab/flatnet-agent.deb`.
#[must_use]
pub fn package() -> Option<PathBuf> {
    named_in("FLATNET_DEB")
}

/// Returns the control plane's Debian package: `FLATNET_CONTROLPLANE_DEB`. Then machines have it as
/// `/lab/flatnet-controlplane.deb`.
#[must_use]
pub fn control_plane_package() -> Option<PathBuf> {
    named_in("FLATNET_CONTROLPLANE_DEB")
}

fn named_in(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|package| package.is_file())
}

/// Finds the image that machines boot from; its absence was noticed before any test ran.
pub fn image() -> Image {
    Image::find().unwrap()
}

/// Makes the directory with everything of this program's machines.
pub fn directory() -> &'static Path {
    let directory = Path::new(DIRECTORY);
    std::fs::create_dir_all(directory).unwrap();
    directory
}

/// Plans how machine `name` is made, with a tap device of that name.
pub fn plan(name: &str, boot: Boot) -> MachinePlan {
    MachinePlan {
        name: name.to_owned(),
        directory: directory().to_owned(),
        image: image(),
        payload: payload_disk().to_owned(),
        boot,
        changes: None,
        memory_mib: if boot == Boot::Plain { MEMORY_MIB } else { SYSTEMD_MEMORY_MIB },
        // Clones have their template's card, and are given another address when they run.
        card: Some(Card { tap: name.to_owned(), mac: "52:54:00:00:33:00".to_owned() }),
        saved: None,
    }
}

/// Returns the saved memory of a machine without a disk for changes.
pub fn saved(boot: Boot) -> &'static Path {
    static PLAIN: OnceLock<PathBuf> = OnceLock::new();
    static SYSTEMD: OnceLock<PathBuf> = OnceLock::new();
    let (place, name, settle) = match boot {
        Boot::Plain => (&PLAIN, "saved-plain", "true"),
        Boot::Systemd => (&SYSTEMD, "saved-systemd", BOOTED),
    };
    place.get_or_init(|| {
        let file = directory().join(name);
        ok("ip tuntap add template mode tap");
        let mut machine = Machine::start(plan("template", boot)).unwrap();
        machine.wait_booted().unwrap();
        for script in [settle, WARM_UP] {
            let ran = machine.sh(script, WARM_UP_TIMEOUT).unwrap();
            assert_eq!(ran.rc, 0, "{}", ran.output);
        }
        machine.save(&file).unwrap();
        ok("ip link del template");
        file
    })
}

/// Runs a line of words outside the machines, in the sandbox; it must succeed.
pub fn ok(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (program, arguments) = words.split_first().unwrap();
    let ran = run(Command::new(program).args(arguments));
    assert_eq!(ran.code, 0, "`{line}`: {}", ran.stderr);
}
