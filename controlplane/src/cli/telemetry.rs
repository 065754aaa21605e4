//! Logs: to stderr, as text or JSON.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::LogFormat;
use super::report::{Exit, Failure};
use flatnet_plane::log_writer::Lines;

/// Starts logging for the life of the process.
pub fn start(level: Level, format: LogFormat) -> Result<(), Failure> {
    // Libraries speak only when something is wrong with them: their debug output is theirs, not an operator's.
    let filter = Targets::new()
        .with_default(Level::ERROR)
        .with_targets([("flatnet_controlplane", level), ("flatnet_plane", level)]);
    let layer = match format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let layer = tracing_subscriber::fmt::layer().with_writer(Lines::Text { colours });
            layer.with_ansi(colours).with_target(false).boxed()
        }
        LogFormat::Json => tracing_subscriber::fmt::layer().with_writer(Lines::Json).json().flatten_event(true).boxed(),
    };
    let started = tracing_subscriber::registry().with(filter).with(layer).try_init();
    started.map_err(|error| Failure::new(Exit::Internal, "cannot start logging").caused_by(error))
}
