//! The programs and kernel features that the lab needs of this machine, and what to install where one is missing.

use std::path::PathBuf;
use std::time::Duration;

use super::command_line::CommandLine;
use super::sandbox::search_path;
use super::{LabBackend, LabStore};
use flatnet_plane::failure::{Exit, Failure};

/// A program and Debian's package that has it.
struct Tool {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
}

const ETCD: [Tool; 2] = [
    Tool { program: "etcd", package: "etcd-server", purpose: "the store" },
    Tool { program: "etcdctl", package: "etcd-client", purpose: "writes the network's configuration" },
];

const REQUIRED: [Tool; 3] = [
    Tool { program: "ip", package: "iproute2", purpose: "wires the hosts" },
    Tool { program: "nft", package: "nftables", purpose: "the agents' firewall rules" },
    Tool { program: "ping", package: "iputils-ping", purpose: "shows who reaches whom" },
];

/// The optional tool that measures throughput.
pub const IPERF3: &str = "iperf3";

/// The time that a probe may take. A kernel without vxlan answers at once; this only bounds a machine that hangs.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the path of `program`, if it is installed.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = search_path();
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0))
}

/// Returns an error that names all missing programs of Debian's at once, else one if the control plane's is missing.
pub fn require_programs(store: LabStore) -> Result<(), Failure> {
    let etcd = ETCD.iter().filter(|_| store == LabStore::Etcd);
    let missing: Vec<&Tool> = REQUIRED.iter().chain(etcd).filter(|tool| find(tool.program).is_none()).collect();
    if missing.is_empty() {
        return match store {
            LabStore::Embedded => super::store::program().map(drop),
            LabStore::Etcd => Ok(()),
        };
    }
    let what: Vec<String> = missing.iter().map(|tool| format!("{} ({})", tool.program, tool.purpose)).collect();
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    Err(Failure::new(Exit::Unsupported, format!("not installed: {}", what.join(", ")))
        .hint(format!("Debian, Ubuntu: `sudo apt-get install {}`", packages.join(" "))))
}

/// Tries the kernel features inside the sandbox, where nothing else is.
pub async fn require_kernel(backend: LabBackend) -> Result<(), Failure> {
    probe("bridge", "link add probe type bridge", "the kernel has no bridges", "sudo modprobe bridge").await?;
    probe("veth", "link add probe type veth peer name probe2", "the kernel has no veth pairs", "sudo modprobe veth")
        .await?;
    if backend == LabBackend::Vxlan {
        let add = "link add probe type vxlan id 1 dstport 8472 nolearning local 127.0.0.1";
        probe("vxlan", add, "the kernel has no VXLAN", "sudo modprobe vxlan").await?;
    }
    if backend == LabBackend::Wireguard && !has_wireguard().await {
        return Err(Failure::new(Exit::Unsupported, "the kernel has no WireGuard, and /dev/net/tun cannot be opened")
            .hint("`sudo modprobe wireguard`, or run this as root where /dev/net/tun is root's"));
    }
    let nft = CommandLine::words("nft list ruleset");
    bounded(&nft).await.map(|_| ()).map_err(|failure| {
        Failure::new(Exit::Unsupported, "nftables does not work here")
            .hint("the kernel needs nf_tables: `sudo modprobe nf_tables`")
            .caused_by(failure)
    })
}

/// Returns true if WireGuard is in the kernel, or can be carried by the agents over TUN devices.
async fn has_wireguard() -> bool {
    if bounded(&CommandLine::words("ip link add probe type wireguard")).await.is_ok() {
        return bounded(&CommandLine::words("ip link del probe")).await.is_ok();
    }
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok()
}

async fn probe(name: &str, add: &str, missing: &str, load: &str) -> Result<(), Failure> {
    let failed = |failure: Failure| {
        Failure::new(Exit::Unsupported, missing)
            .hint(format!("load the module with `{load}`; a kernel without {name} cannot run this lab"))
            .caused_by(failure)
    };
    bounded(&CommandLine::words(&format!("ip {add}"))).await.map_err(failed)?;
    bounded(&CommandLine::words("ip link del probe")).await.map_err(failed)?;
    Ok(())
}

async fn bounded(command: &CommandLine) -> Result<String, Failure> {
    tokio::time::timeout(PROBE_TIMEOUT, command.run())
        .await
        .map_err(|_| Failure::new(Exit::Kernel, format!("`{command}` does not end")))?
}
