//! The image that machines boot from.

use std::path::{Path, PathBuf};

use flatnet_plane::failure::{Exit, Failure};

/// The emulator, from Debian's `qemu-system-x86`.
pub const QEMU: &str = "qemu-system-x86_64";
/// The program that makes the second disk, from Debian's `squashfs-tools`.
pub const MKSQUASHFS: &str = "mksquashfs";
/// The directory into which `make vm-image` puts the image, seen from the project's directory.
const DEFAULT_DIRECTORY: &str = "target/vm";
/// The variable that names another directory.
const DIRECTORY: &str = "FLATNET_VM_DIR";

/// A kernel, an initial RAM disk and a root file system, made by `make vm-image`.
#[derive(Clone, Debug)]
pub struct Image {
    directory: PathBuf,
}

impl Image {
    /// Finds the image in `FLATNET_VM_DIR`, or in `target/vm` here or in a directory above. The exit code is 4 if the
    /// image or the emulator is missing.
    pub fn find() -> Result<Self, Failure> {
        for (program, package) in [(QEMU, "qemu-system-x86"), (MKSQUASHFS, "squashfs-tools")] {
            if crate::tools::find(program).is_none() {
                return Err(Failure::new(Exit::Unsupported, format!("not installed: {program}"))
                    .hint(format!("Debian, Ubuntu: `sudo apt-get install {package}`")));
            }
        }
        let found = match std::env::var_os(DIRECTORY) {
            Some(named) => Some(PathBuf::from(named)),
            None => std::env::current_dir().ok().and_then(|here| {
                here.ancestors().map(|above| above.join(DEFAULT_DIRECTORY)).find(|path| path.is_dir())
            }),
        };
        let image = Self { directory: found.unwrap_or_else(|| DEFAULT_DIRECTORY.into()) };
        let files = [image.kernel(), image.initrd(), image.root(), image.guest()];
        match files.iter().find(|file| !file.is_file()) {
            None => Ok(image),
            Some(file) => Err(Failure::new(Exit::Unsupported, format!("{} does not exist", file.display())).hint(
                "make it with `sudo make vm-image` in the project's sources, or name its directory in FLATNET_VM_DIR",
            )),
        }
    }

    /// Returns the path of Debian's kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.file("vmlinuz")
    }

    /// Returns the path of the initial RAM disk: modules, and [`Image::guest`] as its `init`.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.file("initrd")
    }

    /// Returns the path of a Debian, as a squashfs.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.file("root.squashfs")
    }

    /// Returns the path of the program that answers in the machine.
    #[must_use]
    pub fn guest(&self) -> PathBuf {
        self.file("guest")
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(&self.directory).join(name)
    }
}
