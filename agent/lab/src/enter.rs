//! The command `agent lab exec`: runs a command inside a host or container of the running lab.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use nix::sched::{CloneFlags, setns};

use super::command_line::CommandLine;
use super::directory::{LabDirectory, Record};
use super::sandbox::search_path;
use super::supervisor::{host_directory, run_directory};
use flatnet_plane::failure::{Exit, Failure};

/// Becomes `command` inside `name`. Returns only if that fails. Needs a process with a single thread.
pub fn enter(path: &Path, name: &str, command: &[OsString]) -> Result<ExitCode, Failure> {
    let record = LabDirectory::new(path).running()?;
    let names: Vec<&str> = record.namespaces.iter().map(|namespace| namespace.name.as_str()).collect();
    if !names.contains(&name) {
        return Err(Failure::new(Exit::NotFound, format!("the lab has no {name:?}"))
            .hint(format!("it has {}", names.join(", "))));
    }
    let search_path = with_own_directory(search_path());
    // The mount namespace has its own root and current directory.
    let directory = std::env::current_dir();
    enter_namespaces(&record)?;
    if let Ok(directory) = directory {
        // A directory under /run does not exist there: then the current directory stays the root.
        let _ = std::env::set_current_dir(directory);
    }
    // The words may be no text, so they are passed on as they are.
    let inside = match name.starts_with("host") {
        true => CommandLine::argv::<String>([]).on_host(name, &host_directory(name)),
        false => CommandLine::argv::<String>([]).inside(name),
    };
    let error = inside
        .to_command()
        .stdin(Stdio::inherit())
        .args(command)
        .env("PATH", search_path)
        .env("FLATNET_RUN_DIR", run_directory(name))
        .env("ETCDCTL_API", "3")
        .env("ETCDCTL_ENDPOINTS", &record.endpoint)
        .exec();
    Err(Failure::new(Exit::Unsupported, "cannot start `ip`").caused_by(error))
}

fn enter_namespaces(record: &Record) -> Result<(), Failure> {
    let failed = |what: &str, error: std::io::Error| {
        Failure::new(Exit::Unsupported, format!("cannot enter the lab's {what} namespace"))
            .hint("run this as the user who started the lab")
            .caused_by(error)
    };
    // The user namespace comes first: it is what gives the right to enter the other.
    for (what, kind) in [("user", CloneFlags::CLONE_NEWUSER), ("mnt", CloneFlags::CLONE_NEWNS)] {
        let path = format!("/proc/{}/ns/{what}", record.supervisor);
        let file = File::open(&path).map_err(|error| failed(what, error))?;
        let theirs = file.metadata().map_err(|error| failed(what, error))?.ino();
        let ours = std::fs::metadata(format!("/proc/self/ns/{what}")).map_err(|error| failed(what, error))?.ino();
        // A lab of root's has no user namespace of its own, and the kernel refuses to enter the one we are in.
        if theirs != ours {
            setns(&file, kind).map_err(|errno| failed(what, errno.into()))?;
        }
    }
    Ok(())
}

/// Puts this program's directory first in the path, so that `lab exec host1 -- agent status` finds the agent that runs
/// the lab.
fn with_own_directory(search_path: OsString) -> OsString {
    let own = std::env::current_exe().ok().and_then(|file| file.parent().map(Path::to_owned));
    let Some(own) = own else { return search_path };
    let mut path = own.into_os_string();
    path.push(":");
    path.push(search_path);
    path
}
