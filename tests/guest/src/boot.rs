//! Process 1, from the initial RAM disk to a running machine.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::wait;

use crate::doing;

/// The time to wait for a disk. Disks appear within milliseconds of their driver; this is for a machine that shares two
/// cores with five others.
const DISK_DEADLINE: Duration = Duration::from_secs(60);
/// The disk with Debian.
const ROOT_DISK: &str = "/dev/vda";
/// The disk with what this run brings: the program under test, this program.
const PAYLOAD_DISK: &str = "/dev/vdb";
/// The disk for changes, of machines that keep them.
const CHANGES_DISK: &str = "/dev/vdc";
/// The service that answers the port in a machine with systemd: as early as there are files, and to the very end.
const UNIT: &str = "[Unit]\nDefaultDependencies=no\nAfter=local-fs.target\n[Service]\nExecStart=/lab/guest serve\n\
                    Restart=always\nRestartSec=0\nKillMode=process\nTasksMax=infinity\n[Install]\nWantedBy=sysinit.target\n";

/// Boots; returns only if it cannot.
pub fn boot() -> Result<(), String> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_new(kind, target, "")?;
    }
    load_modules(Path::new("/modules"))?;
    let line = fs::read_to_string("/proc/cmdline").map_err(doing("/proc/cmdline"))?;
    let has = |word: &str| line.split_whitespace().any(|given| given == word);
    assemble_root(has("lab.changes=disk"))?;
    if has("lab.boot=systemd") {
        prepare_systemd()?;
        switch_root()?;
        let error = Command::new("/sbin/init").exec();
        return Err(format!("/sbin/init: {error}"));
    }
    switch_root()?;
    serve_as_first()
}

fn load_modules(directory: &Path) -> Result<(), String> {
    let mut files: Vec<_> =
        fs::read_dir(directory).map_err(doing("modules"))?.flatten().map(|entry| entry.path()).collect();
    // Their names begin with their place in the order.
    files.sort();
    for path in files {
        let file = File::open(&path).map_err(doing(path.display()))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(format!("{}: {errno}", path.display())),
        }
    }
    Ok(())
}

fn assemble_root(changes_on_disk: bool) -> Result<(), String> {
    for directory in ["/below", "/above", "/new"] {
        fs::create_dir_all(directory).map_err(doing(directory))?;
    }
    wait_for(ROOT_DISK)?;
    mount_from(Some(ROOT_DISK), "/below", "squashfs", MsFlags::MS_RDONLY, "")?;
    if changes_on_disk {
        wait_for(CHANGES_DISK)?;
        mount_from(Some(CHANGES_DISK), "/above", "ext4", MsFlags::empty(), "")?;
    } else {
        mount_new("tmpfs", "/above", "mode=0755,size=80%")?;
    }
    for directory in ["/above/upper", "/above/work"] {
        fs::create_dir_all(directory).map_err(doing(directory))?;
    }
    mount_from(
        Some("overlay"),
        "/new",
        "overlay",
        MsFlags::empty(),
        "lowerdir=/below,upperdir=/above/upper,workdir=/above/work",
    )?;
    wait_for(PAYLOAD_DISK)?;
    mount_from(Some(PAYLOAD_DISK), "/new/lab", "squashfs", MsFlags::MS_RDONLY, "")
}

fn prepare_systemd() -> Result<(), String> {
    let wants = "/new/etc/systemd/system/sysinit.target.wants";
    fs::create_dir_all(wants).map_err(doing(wants))?;
    fs::write("/new/etc/systemd/system/lab-guest.service", UNIT).map_err(doing("the unit"))?;
    let link = format!("{wants}/lab-guest.service");
    match std::os::unix::fs::symlink("../lab-guest.service", &link) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(format!("{link}: {error}")),
        // Made at this machine's last boot.
        _ => Ok(()),
    }
}

/// Switches the root as switch_root(8) does: the mounts move along, and `/new` becomes `/`.
fn switch_root() -> Result<(), String> {
    let none = None::<&str>;
    for directory in ["/proc", "/sys", "/dev"] {
        mount(Some(directory), format!("/new{directory}").as_str(), none, MsFlags::MS_MOVE, none)
            .map_err(doing(directory))?;
    }
    std::env::set_current_dir("/new").map_err(doing("/new"))?;
    mount(Some("/new"), "/", none, MsFlags::MS_MOVE, none).map_err(doing("/new to /"))?;
    nix::unistd::chroot(".").map_err(doing("chroot"))?;
    std::env::set_current_dir("/").map_err(doing("/"))
}

/// Serves as process 1 of a plain machine: starts the server and buries orphans.
fn serve_as_first() -> Result<(), String> {
    for directory in ["/dev/pts", "/dev/shm"] {
        fs::create_dir_all(directory).map_err(doing(directory))?;
    }
    mount_new("devpts", "/dev/pts", "ptmxmode=0666")?;
    mount_new("tmpfs", "/dev/shm", "")?;
    mount_new("tmpfs", "/run", "mode=0755")?;
    mount_new("tmpfs", "/tmp", "mode=1777")?;
    mount_new("cgroup2", "/sys/fs/cgroup", "")?;
    for (link, target) in [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "/proc/self/fd/0")] {
        let _ = std::os::unix::fs::symlink(target, link);
    }
    let server = Command::new("/lab/guest").arg("serve").spawn().map_err(doing("/lab/guest"))?;
    loop {
        match wait() {
            Ok(status) if status.pid().is_some_and(|pid| u32::try_from(pid.as_raw()).ok() == Some(server.id())) => {
                return Err(format!("the server ended: {status:?}"));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(format!("wait: {errno}")),
        }
    }
}

fn wait_for(device: &str) -> Result<(), String> {
    let began = Instant::now();
    while !Path::new(device).exists() {
        if began.elapsed() > DISK_DEADLINE {
            return Err(format!("{device} does not appear"));
        }
        crate::script::pause();
    }
    Ok(())
}

fn mount_new(kind: &str, target: &str, options: &str) -> Result<(), String> {
    mount_from(Some(kind), target, kind, MsFlags::empty(), options)
}

fn mount_from(source: Option<&str>, target: &str, kind: &str, flags: MsFlags, options: &str) -> Result<(), String> {
    let options = CString::new(options).map_err(doing(options))?;
    mount(source, target, Some(kind), flags, Some(options.as_c_str())).map_err(doing(format!("mount {target}")))
}
