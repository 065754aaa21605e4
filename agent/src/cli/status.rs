//! The command `agent status`.

use std::process::ExitCode;

use clap::Args;
use flatnet_model::text::{line, set_in};
use flatnet_proto::agent::v1::{GetStatusRequest, Network, Status};

use super::RunDir;
use crate::report::{Exit, Failure, print};
use crate::serve::local_api;

/// Say what this host's agent is, has and lacks
#[derive(Args, Clone, Debug)]
#[command(after_help = "Exit code: 0 converged, 8 starting or degraded, 5 no agent.")]
pub struct StatusArgs {
    #[command(flatten)]
    run_dir: RunDir,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Asks the agent and prints the status. The exit code is 8 unless converged.
pub async fn run(args: StatusArgs) -> Result<ExitCode, Failure> {
    let status = fetch(&args.run_dir).await?;
    print(&if args.json { json(&status)? } else { text(&status) })?;
    Ok(if status.state == "converged" { ExitCode::SUCCESS } else { ExitCode::from(Exit::Degraded as u8) })
}

/// Returns the running agent's status.
pub async fn fetch(run_dir: &RunDir) -> Result<Status, Failure> {
    let mut client = local_api::connect(&run_dir.run_dir).await?;
    let status = client.get_status(GetStatusRequest {}).await.map_err(|status| local_api::refused(&status))?;
    Ok(status.into_inner())
}

/// Returns `value` as indented JSON with a final newline.
pub fn json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Exit::Internal, "cannot write JSON").caused_by(error))?;
    text.push('\n');
    Ok(flatnet_model::text::json(&text))
}

fn text(status: &Status) -> String {
    let mut out = line(&status.state);
    if let Some(node) = &status.node {
        out.push_str(&format!("  node {} ({})", line(&node.name), line(&node.id)));
    }
    out.push_str(&format!("  revision {}\n", status.revision));
    for problem in &status.problems {
        out.push_str(&format!("\nproblem: {} [{}]\n", set_in(&problem.message), line(&problem.code)));
        if !problem.object.is_empty() {
            out.push_str(&format!("  at: {}\n", line(&problem.object)));
        }
        out.push_str(&format!("  hint: {}\n", set_in(&problem.hint)));
    }
    for network in &status.networks {
        out.push('\n');
        out.push_str(&network_text(network));
    }
    out
}

fn network_text(network: &Network) -> String {
    let both = |a: &Option<String>, b: &Option<String>| {
        let both: Vec<&str> = a.iter().chain(b).map(String::as_str).collect();
        if both.is_empty() { "-".to_owned() } else { both.join(", ") }
    };
    let mut out = format!("network {}  {}\n", line(&network.name), line(&both(&network.cidr, &network.cidr6)));
    let row = |name: &str, value: &str| format!("  {name:<9} {}\n", line(value));
    out.push_str(&row("subnet", &both(&network.subnet, &network.subnet6)));
    out.push_str(&row("backend", &format!("{} ({})", network.backend, network.datapath)));
    if network.mtu != 0 {
        out.push_str(&row("mtu", &network.mtu.to_string()));
    }
    if let Some(device) = &network.device {
        out.push_str(&row("device", device));
    }
    if let Some(expires) = &network.lease_expires {
        out.push_str(&row("lease", &format!("until {expires}")));
    }
    let count = |state: &str| network.peers.iter().filter(|peer| peer.state == state).count();
    let states = ["programmed", "pending", "failed", "ignored", "unreachable"];
    let counts: Vec<String> = states
        .iter()
        .map(|state| (state, count(state)))
        .filter(|(_, n)| *n > 0)
        .map(|(s, n)| format!("{n} {s}"))
        .collect();
    out.push_str(&row("peers", &if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }));
    out
}

#[cfg(test)]
mod tests {
    use flatnet_model::text::{HOSTILE, is_shown};
    use flatnet_proto::agent::v1::{Node, Problem};

    use super::*;

    #[test]
    fn no_text_of_the_store_or_a_server_begins_a_line_or_speaks_to_the_terminal() {
        for hostile in HOSTILE {
            let text_of = || hostile.to_owned();
            let problem = Problem { message: text_of(), code: text_of(), object: text_of(), hint: text_of() };
            let network = Network {
                name: text_of(),
                backend: text_of(),
                datapath: text_of(),
                device: Some(text_of()),
                cidr: Some(text_of()),
                ..Default::default()
            };
            let status = Status {
                state: text_of(),
                node: Some(Node { name: text_of(), id: text_of() }),
                problems: vec![problem],
                networks: vec![network],
                ..Default::default()
            };
            let shown = text(&status);
            assert!(shown.chars().all(|c| is_shown(c) || c == '\n'), "{shown:?}");
            assert!(!shown.lines().any(|line| line.starts_with("error: ") || line.starts_with("forged")), "{shown}");
            assert!(json(&status).unwrap().chars().all(|c| is_shown(c) || c == '\n'));
        }
    }
}
