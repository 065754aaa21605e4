//! The store through which a lab's agents meet: a control plane with its embedded store, or an etcd.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flatnet_model::IpFamily;

use super::command_line::CommandLine;
use super::tools;
use super::topology::Topology;
use super::{LabPlan, LabStore};
use flatnet_plane::failure::{Exit, Failure};

/// The directory of the control plane's files, in the sandbox's private `/run`.
const DATA_DIR: &str = "/run/lab/controlplane";
/// The file with the token with which the lab's hosts join.
const TOKEN_FILE: &str = "/run/lab/token";

/// The flags with which agents join a control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinFlags(pub Vec<String>);

/// Returns the control plane's program: beside this one, or in `PATH`.
pub fn program() -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("controlplane"));
    beside.filter(|program| program.is_file()).or_else(|| tools::find("controlplane")).ok_or_else(|| {
        Failure::new(Exit::Unsupported, "the program `controlplane` is neither beside this one nor in PATH")
            .hint("install it (from the sources: cargo build -p flatnet-controlplane), or use --store etcd")
    })
}

/// Returns the command of a control plane for the plan's network.
pub fn command(plan: &LabPlan, topology: &Topology) -> Result<CommandLine, Failure> {
    let mut words = vec![
        program()?.display().to_string(),
        "serve".to_owned(),
        format!("--listen={}", topology.server_address()),
        format!("--data-dir={DATA_DIR}"),
        format!("--init-backend={}", plan.backend.as_str()),
        "--token-uses=1000".to_owned(),
    ];
    let networks = [(IpFamily::V4, LabPlan::NETWORK), (IpFamily::V6, LabPlan::NETWORK_V6)];
    let networks = networks.into_iter().filter(|(family, _)| plan.overlay.has(*family));
    words.extend(networks.map(|(_, network)| format!("--init={network}")));
    Ok(CommandLine::argv(words).inside(&topology.store().namespace))
}

/// Returns what the server printed for hosts that join, once it is in `log`. The token goes into a file, out of sight
/// of `ps`.
pub fn join_flags(log: &Path) -> Result<Option<JoinFlags>, Failure> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let Some((token, ca_hash)) = text.lines().find_map(parse) else { return Ok(None) };
    let failed = |error| Failure::new(Exit::Internal, format!("cannot write {TOKEN_FILE}")).caused_by(error);
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(TOKEN_FILE);
    let file = file.as_mut().map_err(|error| failed(std::io::Error::from(error.kind())))?;
    std::io::Write::write_all(file, token.as_bytes()).map_err(failed)?;
    Ok(Some(JoinFlags(vec![format!("--token-file={TOKEN_FILE}"), format!("--ca-hash={ca_hash}")])))
}

/// Parses `agent join grpcs://… --token T --ca-hash H` into T and H.
fn parse(line: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["agent", "join", _, "--token", token, "--ca-hash", hash] => Some((token, hash)),
        _ => None,
    }
}

impl LabStore {
    /// Returns the name of the store's process.
    #[must_use]
    pub fn process(self) -> &'static str {
        match self {
            Self::Embedded => "controlplane",
            Self::Etcd => "etcd",
        }
    }

    /// Returns the endpoint that agents join.
    #[must_use]
    pub fn endpoint(self, topology: &Topology) -> String {
        match self {
            Self::Embedded => format!("grpcs://{}", topology.server_address()),
            Self::Etcd => topology.endpoint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_the_server_prints_is_understood_among_its_logs() {
        let line = "agent join grpcs://192.168.33.10:7443 --token a.b --ca-hash sha256:00";
        assert_eq!(parse(line), Some(("a.b", "sha256:00")));
        assert_eq!(parse("2026-01-01T00:00:00Z  INFO serving address=192.168.33.10:7443"), None);
    }
}
