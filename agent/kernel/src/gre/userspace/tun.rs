//! TUN devices (linux/if_tun.h): network devices whose packets this program reads and writes.
//!
//! A device is persistent. When this program ends, it stays, without a carrier, and so do the routes on it. So the next
//! run serves it again as it was.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use flatnet_model::IfName;

/// The path at which TUN devices are made.
pub(super) const PATH: &str = "/dev/net/tun";

/// `struct ifreq` as `TUNSETIFF` reads it: the name, then the flags, in 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    unused: [u8; 22],
}

/// An open TUN device. Reads and writes do not block, and each is one IP packet.
#[derive(Debug)]
pub(super) struct Tun {
    file: File,
}

impl Tun {
    /// Makes a device `name` with the interface index `index`, down. Until [`Self::persist`] is called, it goes when
    /// this is dropped.
    pub(super) fn create(name: IfName, index: u32) -> io::Result<Self> {
        let tun = Self::open()?;
        let index = libc::c_uint::from(index);
        #[expect(unsafe_code, reason = "ioctl(2) has no safe form")]
        // SAFETY: TUNSETIFINDEX reads one unsigned int, which lives through the call; the descriptor is open.
        let result = unsafe { libc::ioctl(tun.file.as_raw_fd(), libc::TUNSETIFINDEX, &raw const index) };
        checked(result)?;
        tun.bind(name)?;
        Ok(tun)
    }

    /// Opens a device that exists. `EBUSY` means that another program serves it.
    pub(super) fn attach(name: IfName) -> io::Result<Self> {
        let tun = Self::open()?;
        tun.bind(name)?;
        Ok(tun)
    }

    /// Returns true if this process may open TUN devices at all.
    pub(super) fn is_available() -> bool {
        Self::open().is_ok()
    }

    /// Opens no device at all, for tests that only tell devices apart.
    #[cfg(test)]
    pub(super) fn placeholder() -> io::Result<Self> {
        File::open("/dev/null").map(|file| Self { file })
    }

    fn open() -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(PATH)?;
        Ok(Self { file })
    }

    fn bind(&self, name: IfName) -> io::Result<()> {
        let flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).map_err(io::Error::other)?;
        let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, unused: [0; 22] };
        // The last byte stays the terminator, since names have at most 15.
        for (to, from) in request.name.iter_mut().zip(name.as_str().bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from;
        }
        #[expect(unsafe_code, reason = "ioctl(2) has no safe form")]
        // SAFETY: TUNSETIFF reads and writes one struct ifreq, 40 bytes; `request` is that long (`repr(C)`, checked
        // below) and lives through the call; the descriptor is open.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        checked(result)
    }

    /// Lets the device stay when this program ends.
    pub(super) fn persist(&self) -> io::Result<()> {
        let on: libc::c_int = 1;
        #[expect(unsafe_code, reason = "ioctl(2) has no safe form")]
        // SAFETY: TUNSETPERSIST takes its argument by value; the descriptor is open.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETPERSIST, on) };
        checked(result)
    }

    /// Reads one packet that the host sends through the device.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Hands the host one packet as received by the device.
    pub(super) fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40, "struct ifreq has 40 bytes on 64-bit Linux");

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
