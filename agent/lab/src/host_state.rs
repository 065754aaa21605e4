//! A host as its agent and its kernel describe it.

use serde::Deserialize;

use super::command_line::CommandLine;
use super::supervisor::run_directory;
use super::topology::Topology;
use flatnet_plane::failure::{Exit, Failure};

/// A line of the hosts' table.
#[derive(Clone, Debug, Default)]
pub struct HostState {
    /// The host's name, such as `host1`.
    pub name: String,
    /// The state that `agent status` prints, or why there is none.
    pub state: String,
    /// The subnets, one of each family.
    pub subnets: Vec<String>,
    /// The tunnel device, if the backend has one.
    pub device: String,
    /// The overlay's MTU in bytes.
    pub mtu: String,
    /// The number of peers programmed, of the number of all.
    pub peers: String,
    /// The number of routes that carry the agent's mark, as `ip` counts them.
    pub routes: String,
    /// The problems that the agent reports.
    pub problems: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Status {
    state: String,
    #[serde(default)]
    problems: Vec<Problem>,
    #[serde(default)]
    networks: Vec<Network>,
}

#[derive(Debug, Deserialize)]
struct Problem {
    message: String,
    hint: String,
}

#[derive(Debug, Deserialize)]
struct Network {
    subnet: Option<String>,
    subnet6: Option<String>,
    device: Option<String>,
    mtu: Option<u32>,
    #[serde(default)]
    peers: Vec<Peer>,
}

#[derive(Debug, Deserialize)]
struct Peer {
    state: String,
}

impl HostState {
    /// Asks the agent of host `number`, and the kernel.
    pub async fn read(topology: &Topology, number: u8) -> Self {
        let host = topology.host(number).namespace;
        let mut state = match status(&host).await {
            Ok(status) => Self::from_status(&status),
            Err(failure) => {
                Self { state: "unknown".to_owned(), problems: vec![failure.to_string()], ..Self::default() }
            }
        };
        state.routes = match routes(&host).await {
            Ok(routes) => routes.to_string(),
            Err(_) => "?".to_owned(),
        };
        state.name = host;
        state
    }

    fn from_status(status: &Status) -> Self {
        let mut state = Self { state: status.state.clone(), ..Self::default() };
        state.problems =
            status.problems.iter().map(|problem| format!("{} (hint: {})", problem.message, problem.hint)).collect();
        if let Some(network) = status.networks.first() {
            state.subnets = network.subnet.iter().chain(&network.subnet6).cloned().collect();
            state.device = network.device.clone().unwrap_or_else(|| "-".to_owned());
            state.mtu = network.mtu.map(|mtu| mtu.to_string()).unwrap_or_default();
            let programmed = network.peers.iter().filter(|peer| peer.state == "programmed").count();
            state.peers = format!("{programmed} of {}", network.peers.len());
        }
        state
    }
}

async fn status(host: &str) -> Result<Status, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Internal, "cannot find this program's own file").caused_by(error))?;
    let program = program.display().to_string();
    let run_directory = run_directory(host).display().to_string();
    let command = CommandLine::argv([&program, "status", "--json", "--run-dir", &run_directory]).inside(host);
    let output = tokio::process::Command::from(command.to_command())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot start `{command}`")).caused_by(error))?;
    // `status` exits 8 when it is not converged, and prints all the same.
    serde_json::from_slice(&output.stdout).map_err(|error| {
        let said = String::from_utf8_lossy(&output.stderr);
        Failure::new(Exit::Unavailable, format!("agent status said: {}", said.trim())).caused_by(error)
    })
}

async fn routes(host: &str) -> Result<usize, Failure> {
    let mut count = 0;
    for family in ["-4", "-6"] {
        let protocol = flatnet_core::object::PROTOCOL;
        let command = CommandLine::words(&format!("ip -n {host} {family} route show proto {protocol}"));
        count += command.run().await?.lines().count();
    }
    Ok(count)
}
