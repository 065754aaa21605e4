//! The demo's tables.

use std::io::IsTerminal;

use comfy_table::{Cell, Color, Table, presets};

use super::host_state::HostState;
use super::measure::Figures;
use super::ping::Pair;
use super::tools;

/// Returns true if tables are coloured: only where somebody sees the colours, and not against their wish
/// (no-color.org).
#[must_use]
pub fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && !refused
}

/// Returns the table of who reaches whom.
#[must_use]
pub fn pairs(pairs: &[Pair], colours: bool) -> String {
    let mut table = table(&["PAIR", "ADDRESS", "REACHABLE", "RTT"], colours);
    for pair in pairs {
        let reachable = pair.rtt_millis.is_some();
        let colour = if reachable { Color::Green } else { Color::Red };
        table.add_row([
            Cell::new(format!("c{} → c{}", pair.from, pair.to)),
            Cell::new(pair.address),
            Cell::new(if reachable { "yes" } else { "NO" }).fg(colour),
            Cell::new(milliseconds(pair.rtt_millis)),
        ]);
    }
    table.to_string()
}

/// Returns the table of underlay against overlay.
#[must_use]
pub fn figures(figures: &[Figures], colours: bool) -> String {
    let mut table = table(&["PATH", "TCP, 1 STREAM", "RTT"], colours);
    for figure in figures {
        let throughput = figure.gigabits.map_or_else(|| "skipped".to_owned(), |value| format!("{value:.1} Gbit/s"));
        table.add_row([figure.path.clone(), throughput, milliseconds(figure.rtt_millis)]);
    }
    let mut text = table.to_string();
    if tools::find(tools::IPERF3).is_none() {
        text.push_str("\nthroughput skipped: iperf3 is not installed (Debian, Ubuntu: `sudo apt-get install iperf3`)");
    }
    text
}

/// Returns the table of hosts, each as its agent and its kernel describe it.
#[must_use]
pub fn hosts(hosts: &[HostState], colours: bool) -> String {
    let mut table = table(&["HOST", "STATE", "SUBNET", "DEVICE", "MTU", "PEERS", "ROUTES"], colours);
    for host in hosts {
        let colour = if host.state == "converged" { Color::Green } else { Color::Red };
        table.add_row([
            Cell::new(&host.name),
            Cell::new(&host.state).fg(colour),
            Cell::new(host.subnets.join("\n")),
            Cell::new(&host.device),
            Cell::new(&host.mtu),
            Cell::new(&host.peers),
            Cell::new(&host.routes),
        ]);
    }
    let mut text = table.to_string();
    for host in hosts {
        for problem in &host.problems {
            text.push_str(&format!("\n{}: {problem}", host.name));
        }
    }
    text
}

fn table(header: &[&str], colours: bool) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    if colours {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3} ms"))
}
