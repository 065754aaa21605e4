//! The run of a recipe in a virtual machine: this program goes there and runs it as it would here, with Debian's
//! kernel.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::vm::{Boot, Image, Machine, MachinePlan, payload};
use crate::{launch, sandbox};
use flatnet_plane::failure::{Exit, Failure, note, print};

/// The time that a recipe may take. It takes seconds; emulated, on a busy machine, a few minutes.
const RECIPE_TIMEOUT: Duration = Duration::from_secs(600);
/// The machine's memory in MiB: a recipe has two agents and an etcd.
const MEMORY_MIB: u32 = 512;
/// The directory of the machine, in the sandbox's private `/run`.
const DIRECTORY: &str = "/run/vm";
/// The variable that names the image's place inside the sandbox, which drops variables meant for agents.
const IMAGE: &str = "FLATNET_VM_DIR";

/// Boots a machine and runs the recipe `name` there. Returns its exit code.
pub fn run(name: &str) -> Result<ExitCode, Failure> {
    if sandbox::is_inside() {
        let name = name.to_owned();
        return launch::inside(async move {
            let cooked = tokio::task::spawn_blocking(move || cook(&name));
            tokio::select! {
                ended = cooked => ended.map_err(|error| Failure::new(Exit::Internal, "the machine's thread").caused_by(error))?,
                reason = launch::ended() => Err(Failure::new(Exit::Unavailable, format!("{}: the machine is gone", reason?))),
            }
        });
    }
    let _ = Image::find()?;
    let named = std::env::var_os(IMAGE);
    let code = sandbox::launch(|command| {
        command.envs(named.map(|directory| (IMAGE, directory)));
    });
    code.and_then(|mut launched| launched.wait()).map(ExitCode::from)
}

fn cook(name: &str) -> Result<ExitCode, Failure> {
    let image = Image::find()?;
    let agent = std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Internal, "cannot find this program's own file").caused_by(error))?;
    let directory = PathBuf::from(DIRECTORY);
    std::fs::create_dir_all(&directory)
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot create {DIRECTORY}")).caused_by(error))?;
    let disk = directory.join("payload");
    payload(&image, &[("agent", agent.as_path())], &disk)?;
    note("booting a virtual machine with Debian's kernel; emulated, it takes its time");
    let mut machine = Machine::start(MachinePlan {
        name: "cookbook".to_owned(),
        directory,
        image,
        payload: disk,
        boot: Boot::Plain,
        changes: None,
        memory_mib: MEMORY_MIB,
        card: None,
        saved: None,
    })?;
    machine.wait_booted()?;
    let ran = machine.sh(&format!("agent lab cookbook {name}"), RECIPE_TIMEOUT)?;
    print(&ran.output)?;
    Ok(ExitCode::from(u8::try_from(ran.rc).unwrap_or(Exit::Internal as u8)))
}
