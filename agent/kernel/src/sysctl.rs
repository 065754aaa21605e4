//! Kernel settings, as files below `/proc/sys`. Those of `net/` belong to the network namespace of the thread that
//! opens the file.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use flatnet_core::object::Sysctl;

/// Returns the file of a setting. A path that leads out of `/proc/sys` is refused.
fn file(sysctl: &Sysctl) -> io::Result<PathBuf> {
    let path = Path::new(sysctl.path());
    if path.components().all(|part| matches!(part, Component::Normal(_))) && path.components().next().is_some() {
        Ok(Path::new("/proc/sys").join(path))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path below /proc/sys"))
    }
}

/// Returns the setting's present value without the newline; `None`: there is no such setting.
pub(crate) fn read(sysctl: &Sysctl) -> io::Result<Option<String>> {
    match fs::read_to_string(file(sysctl)?) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Gives the setting a value.
pub(crate) fn write(sysctl: &Sysctl, value: &str) -> io::Result<()> {
    use std::io::Write as _;
    // Files are never created: a setting that does not exist is an error, not a new file.
    fs::OpenOptions::new().write(true).open(file(sysctl)?)?.write_all(value.as_bytes())
}

/// Returns true if this kernel has IPv6 and it was not disabled at boot.
pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}
