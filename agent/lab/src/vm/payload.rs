//! The disk with what this run brings into its machines.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::image::{Image, MKSQUASHFS};
use flatnet_plane::failure::{Exit, Failure};

/// Writes a squashfs with `files` (name there, file here) to `disk`. Machines see it as `/lab`, which is first on their
/// `PATH`.
pub fn payload(image: &Image, files: &[(&str, &Path)], disk: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Internal, format!("cannot make {}", disk.display())).caused_by(error)
    };
    let directory = disk.with_extension("files");
    fs::create_dir_all(&directory).map_err(failed)?;
    let guest = image.guest();
    for (name, file) in files.iter().copied().chain([("guest", guest.as_path())]) {
        // A link is followed: it leads to the file as it was when the disk was made.
        fs::copy(file, directory.join(name)).map_err(|error| {
            Failure::new(Exit::Internal, format!("cannot copy {}", file.display())).caused_by(error)
        })?;
    }
    let mut command = Command::new(MKSQUASHFS);
    command.arg(&directory).arg(disk).args(["-comp", "lz4", "-noappend", "-no-progress", "-quiet", "-all-root"]);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().map_err(failed)?;
    fs::remove_dir_all(&directory).map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(Exit::Internal, format!("{MKSQUASHFS} ended with {status}")))
}
