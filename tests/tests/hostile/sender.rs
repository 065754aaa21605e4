//! Raw sockets: whole IP packets with any source, out of any namespace.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use flatnet_kernel::netns::Netns;
use flatnet_tests::netns::Namespace;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket};

/// Sends IP packets as they are; the kernel fills in an IPv4 packet's length and checksum.
pub struct Sender {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Sender {
    pub fn new(namespace: &Namespace) -> Self {
        let open = |family| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap();
        let (v4, v6) = inside(namespace, || (open(AddressFamily::Inet), open(AddressFamily::Inet6)));
        Self { v4, v6 }
    }

    /// Sends `packet` towards `to`; returns `false` if this kernel would not.
    pub fn send(&self, to: IpAddr, packet: &[u8]) -> bool {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let address = SockaddrStorage::from(SocketAddr::new(to, 0));
        match sendto(socket.as_raw_fd(), packet, &address, MsgFlags::empty()) {
            Ok(_) => true,
            // An unlikely source or header that the kernel does not let out.
            Err(Errno::EINVAL | Errno::EMSGSIZE | Errno::EPERM | Errno::EACCES | Errno::ENETUNREACH) => false,
            Err(Errno::ENOBUFS | Errno::EAGAIN) => false,
            Err(errno) => panic!("cannot send to {to}: {errno}"),
        }
    }
}

/// Runs `work` in `namespace`: sockets opened there stay there.
pub fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    Netns::open(&Path::new("/run/netns").join(&namespace.0)).unwrap().run(work).unwrap()
}
