//! Logs: to stderr as text or JSON, or to the journal with fields; warnings without repetition.

mod repeats;

use std::io::IsTerminal;

use flatnet_plane::log_writer::Lines;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::report::{Exit, Failure};
use repeats::Repeats;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line an event, for people.
    Text,
    /// A JSON object an event.
    Json,
    /// To systemd's journal, with fields.
    Journald,
}

/// Starts logging for the life of the process.
pub fn start(level: Level, format: LogFormat) -> Result<(), Failure> {
    // Libraries speak only when something is wrong with them: their debug output is theirs, not an operator's.
    let filter = Targets::new().with_default(Level::ERROR).with_targets([
        ("flatnet_agent", level),
        ("flatnet_kernel", level),
        ("flatnet_plane", level),
        ("flatnet_core", level),
        ("flatnet_lab", level),
    ]);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let layer = tracing_subscriber::fmt::layer().with_writer(Lines::Text { colours });
            let layer = layer.with_ansi(colours).with_target(false);
            registry.with(layer.with_filter(Repeats::default())).try_init()
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().with_writer(Lines::Json).json().flatten_event(true);
            registry.with(layer.with_filter(Repeats::default())).try_init()
        }
        LogFormat::Journald => {
            let layer = tracing_journald::layer().map_err(|error| {
                Failure::new(Exit::Unsupported, "cannot reach systemd's journal")
                    .hint("use --log-format text or json")
                    .caused_by(error)
            })?;
            registry.with(layer.with_filter(Repeats::default())).try_init()
        }
    };
    started.map_err(|error| Failure::new(Exit::Internal, "cannot start logging").caused_by(error))
}
