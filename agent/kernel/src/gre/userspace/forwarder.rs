//! The threads that move packets: one per TUN device, outwards, and one per underlay family, inwards.
//!
//! They are threads rather than tasks because a device under load is read without pause. Each ends when its [`Worker`]
//! is dropped, or by itself when its device is deleted.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use flatnet_model::{IfName, IpFamily};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::packet::{HEADER_MAX, addresses, behind_ipv4, header, receive};
use super::socket::{BATCH, GreSocket, Outgoing};
use super::table::{Entry, Table};
use super::tun::Tun;

/// Bytes of the longest IP packet, with room for a GRE header before it. Pages of a buffer that no packet reaches are
/// never used.
const BUFFER_LEN: usize = HEADER_MAX + 65_535;

/// The table as the reconciler last changed it. Readers copy the inner pointer for a batch of packets.
#[derive(Debug, Default)]
pub(super) struct Tables(RwLock<Arc<Table>>);

impl Tables {
    /// Returns the table as it is now.
    fn now(&self) -> Arc<Table> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets the table, which counts from the next batch on.
    pub(super) fn set(&self, table: Table) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }
}

/// A running thread.
#[derive(Debug)]
pub(super) struct Worker {
    /// Closed to end the thread, which waits for that as well as for packets.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(name: String, work: impl FnOnce(UnixStream) + Send + 'static) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        // A thread's name has at most 15 bytes; a longer one is cut.
        let thread = std::thread::Builder::new().name(name).spawn(move || work(stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// Returns true while it still moves packets.
    pub(super) fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended too.
            let _ = thread.join();
        }
    }
}

/// Waits until `source` has something to read. Returns `false` if the thread is to end, or `source` is gone.
fn wait(source: BorrowedFd<'_>, stopped: &UnixStream) -> bool {
    loop {
        let mut fds = [PollFd::new(source, PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return false,
        }
        let [source, stopped] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        return stopped.is_empty() && !source.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL);
    }
}

/// Starts the thread that sends the host's packets to `device` on to the peers whose subnets they are for.
pub(super) fn outwards(
    name: IfName,
    device: Arc<Tun>,
    socket: Arc<GreSocket>,
    tables: Arc<Tables>,
) -> io::Result<Worker> {
    Worker::start(format!("out {name}"), move |stopped| {
        let mut buffers = vec![vec![0; BUFFER_LEN]; BATCH];
        while wait(device.as_fd(), &stopped) {
            let (lengths, gone) = read_batch(&device, &mut buffers);
            let table = tables.now();
            let packets = buffers.iter_mut().zip(lengths);
            let packets: Vec<Outgoing<'_>> =
                packets.filter_map(|(buffer, length)| wrap(&table, &device, socket.family(), buffer, length)).collect();
            socket.send(&packets);
            if gone {
                break;
            }
        }
        tracing::debug!(device = %name, "no longer serving this device");
    })
}

/// Reads packets. Returns their lengths, behind [`HEADER_MAX`] bytes in the buffers, and whether the device is gone.
fn read_batch(device: &Tun, buffers: &mut [Vec<u8>]) -> (Vec<usize>, bool) {
    let mut lengths = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let Some(room) = buffer.get_mut(HEADER_MAX..) else { break };
        match device.read(room) {
            Ok(length) => lengths.push(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // EBADFD: the device was deleted.
            Err(_) => return (lengths, true),
        }
    }
    (lengths, false)
}

/// Puts the GRE header before the packet in `buffer`. `None`: the packet is for no peer of this device.
fn wrap<'a>(
    table: &Table,
    device: &Arc<Tun>,
    family: IpFamily,
    buffer: &'a mut [u8],
    length: usize,
) -> Option<Outgoing<'a>> {
    let (_, destination) = addresses(buffer.get(HEADER_MAX..HEADER_MAX.checked_add(length)?)?, family)?;
    let entry = table.of(destination).find(|entry| Arc::ptr_eq(&entry.device, device))?;
    let (bytes, used) = header(family, entry.key);
    buffer.get_mut(..HEADER_MAX)?.copy_from_slice(&bytes);
    let packet = buffer.get(HEADER_MAX.checked_sub(used)?..HEADER_MAX.checked_add(length)?)?;
    Some(Outgoing { source: entry.source, remote: entry.remote, packet })
}

/// Starts the thread that hands the host packets that peers send, each from its own subnet, under its key and to our
/// address, and nothing else.
pub(super) fn inwards(socket: Arc<GreSocket>, tables: Arc<Tables>) -> io::Result<Worker> {
    Worker::start(format!("in gre {}", socket.family()), move |stopped| {
        let mut buffers = vec![vec![0; BUFFER_LEN]; BATCH];
        while wait(socket.as_fd(), &stopped) {
            let received = match socket.receive(&mut buffers) {
                Ok(received) => received,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    continue;
                }
                // An error that is queued (a host unreachable) concerns one packet.
                Err(_) => continue,
            };
            let table = tables.now();
            for (buffer, (outer, length)) in buffers.iter().zip(received) {
                if let Some((device, inner)) = unwrap(&table, socket.family(), buffer.get(..length), outer) {
                    // A device that is down or full loses the packet, as a kernel's device would.
                    let _ = device.write(inner);
                }
            }
        }
        tracing::debug!(family = %socket.family(), "no longer receiving GRE");
    })
}

/// Returns the device and the inner packet, if a current peer sent it from its subnet.
fn unwrap<'a>(
    table: &'a Table,
    family: IpFamily,
    packet: Option<&'a [u8]>,
    outer: IpAddr,
) -> Option<(&'a Tun, &'a [u8])> {
    let (packet, to) = match family {
        IpFamily::V4 => behind_ipv4(packet?).map(|(packet, to)| (packet, Some(to)))?,
        IpFamily::V6 => (packet?, None),
    };
    let received = receive(packet, family)?;
    let is_peers =
        |entry: &&Entry| entry.remote == outer && entry.key == received.key && to.is_none_or(|to| to == entry.source);
    let entry = table.of(received.source).find(is_peers)?;
    Some((&*entry.device, received.inner))
}

#[cfg(test)]
mod tests;
