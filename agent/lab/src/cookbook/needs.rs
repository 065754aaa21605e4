//! The needs of a way that a machine may not meet, by the name that they have on the page.

use crate::LabBackend;
use crate::command_line::CommandLine;
use crate::tools;

/// Returns what is missing, as a reason; `None` if nothing is.
pub async fn missing(need: Option<&str>) -> Option<String> {
    let need = need?;
    if let Some(backend) = need.strip_prefix("backend ") {
        let known = <LabBackend as clap::ValueEnum>::from_str(backend, false).is_ok();
        return (!known).then(|| format!("this agent has no backend {backend}"));
    }
    if need == "ip_gre" {
        // The probe runs in the sandbox's own namespace, where nothing else is.
        let add = "ip tunnel add probe mode gre local 127.0.0.1 remote 127.0.0.2";
        let made = CommandLine::words(add).run().await.is_ok();
        // Without the device there is nothing to remove.
        let _ = CommandLine::words("ip tunnel del probe").run().await;
        return (!made).then(|| "kernel lacks ip_gre: `sudo modprobe ip_gre`, or run the recipe with --vm".to_owned());
    }
    tools::find(need).is_none().then(|| format!("not installed: {need}"))
}
