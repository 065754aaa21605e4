//! The network between hosts and servers: bytes that take their time, are held up, or find nobody there.

use std::io::{Error, ErrorKind, Result};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flatnet_controlplane::simulation::{CertificateDer, Dial, Replica, Stranger};
use flatnet_plane::client::ServerAddress;
use flatnet_plane::store::memory::Link;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::sync::watch;

use crate::chance::Chance;

/// The most bytes under way on a connection: a TCP window.
const WINDOW: usize = 64 * 1024;
/// The time after which whoever connects gives up, as the real client does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The time that each piece takes to a host that is slow to read.
const SLOW: Duration = Duration::from_millis(900);

/// The network. All clones share it.
#[derive(Clone)]
pub struct Net(Arc<Mutex<Inner>>);

struct Inner {
    hosts: Vec<Host>,
    replicas: Vec<Option<Arc<Running>>>,
    chance: Chance,
}

struct Host {
    /// The links to each replica.
    links: Vec<watch::Sender<Link>>,
    /// The address at which the host is reached; connections from an earlier address carry nothing.
    address: watch::Sender<IpAddr>,
    slow: bool,
}

struct Running {
    replica: Replica,
    /// The sender that goes with the replica: the replica's connections then end.
    life: watch::Sender<()>,
}

impl Net {
    /// Creates the network between as many `hosts` and `replicas`; nobody is up yet.
    pub fn new(hosts: usize, replicas: usize, chance: Chance) -> Self {
        let host = |_| Host {
            links: (0..replicas).map(|_| watch::Sender::new(Link::Up)).collect(),
            address: watch::Sender::new(IpAddr::from([0, 0, 0, 0])),
            slow: false,
        };
        let hosts = (0..hosts).map(host).collect();
        Self(Arc::new(Mutex::new(Inner { hosts, replicas: (0..replicas).map(|_| None).collect(), chance })))
    }

    /// Lets a replica come, or crash.
    pub fn set_replica(&self, index: usize, replica: Option<Replica>) {
        let running = replica.map(|replica| Arc::new(Running { replica, life: watch::Sender::new(()) }));
        let before = std::mem::replace(&mut self.0.lock().unwrap().replicas[index], running);
        drop(before);
    }

    /// Returns true if the replica runs.
    pub fn is_up(&self, index: usize) -> bool {
        self.0.lock().unwrap().replicas[index].is_some()
    }

    /// Sets the link between a host and a replica.
    pub fn set_link(&self, host: usize, replica: usize, link: Link) {
        self.0.lock().unwrap().hosts[host].links[replica].send_replace(link);
    }

    /// Sets the links between a host and every replica.
    pub fn set_host(&self, host: usize, link: Link) {
        for sender in &self.0.lock().unwrap().hosts[host].links {
            sender.send_replace(link);
        }
    }

    /// Sets the address of a host from now on.
    pub fn set_address(&self, host: usize, address: IpAddr) {
        self.0.lock().unwrap().hosts[host].address.send_replace(address);
    }

    /// Makes a host slow to read, or fast again.
    pub fn set_slow(&self, host: usize, slow: bool) {
        self.0.lock().unwrap().hosts[host].slow = slow;
    }

    /// Opens a connection from a replica's own machine.
    pub fn local(&self, replica: usize) -> Option<DuplexStream> {
        let running = self.0.lock().unwrap().replicas[replica].clone()?;
        let (here, there) = duplex(WINDOW);
        running.replica.accept(there, Stranger::Local).then_some(here)
    }

    /// Returns what a host connects with.
    pub fn dialer(&self, host: usize) -> Arc<dyn Dial> {
        Arc::new(HostDial { net: self.clone(), host })
    }

    async fn travel(&self, host: usize, to_host: bool) {
        let took = {
            let mut inner = self.0.lock().unwrap();
            let slow = to_host && inner.hosts[host].slow;
            let chance = &mut inner.chance;
            let took = if chance.one_in(40) { chance.millis(50, 400) } else { chance.millis(1, 4) };
            if slow { SLOW } else { took }
        };
        tokio::time::sleep(took).await;
    }

    async fn connect(
        &self,
        host: usize,
        replica: usize,
        shown: Option<CertificateDer<'static>>,
    ) -> Result<DuplexStream> {
        self.travel(host, false).await;
        let refused = || Error::new(ErrorKind::ConnectionRefused, "connection refused");
        let (link, address) = {
            let inner = self.0.lock().unwrap();
            let host = &inner.hosts[host];
            (host.links[replica].subscribe(), host.address.subscribe())
        };
        let now = *link.borrow();
        match now {
            Link::Up => {}
            Link::Down => return Err(refused()),
            Link::Stalled => {
                tokio::time::sleep(CONNECT_TIMEOUT).await;
                return Err(Error::new(ErrorKind::TimedOut, "connecting took too long"));
            }
        }
        // The replica is not held while anything is waited for: that would keep a crashed server alive.
        let running = self.0.lock().unwrap().replicas[replica].clone().ok_or_else(refused)?;
        let ((here, near), (far, there)) = (duplex(WINDOW), duplex(WINDOW));
        let from = *address.borrow();
        if !running.replica.accept(there, Stranger::Host(from, shown)) {
            return Err(refused());
        }
        let wire = Wire { net: self.clone(), host, link, address };
        tokio::spawn(wire.run(near, far, running.life.subscribe()));
        Ok(here)
    }
}

struct HostDial {
    net: Net,
    host: usize,
}

impl Dial for HostDial {
    fn dial(
        &self,
        server: &ServerAddress,
        shown: Option<&CertificateDer<'static>>,
    ) -> BoxFuture<'static, Result<DuplexStream>> {
        let (net, host, replica, shown) = (self.net.clone(), self.host, usize::from(server.port), shown.cloned());
        async move { net.connect(host, replica, shown).await }.boxed()
    }
}

/// One connection.
#[derive(Clone)]
struct Wire {
    net: Net,
    host: usize,
    link: watch::Receiver<Link>,
    address: watch::Receiver<IpAddr>,
}

impl Wire {
    /// Carries bytes until either end is gone, the way is cut, or the server crashes.
    async fn run(self, near: DuplexStream, far: DuplexStream, mut life: watch::Receiver<()>) {
        let ((from_host, to_host), (from_server, to_server)) = (split(near), split(far));
        let mut link = self.link.clone();
        tokio::select! {
            () = self.clone().carry(from_host, to_server, false) => {}
            () = self.carry(from_server, to_host, true) => {}
            _ = link.wait_for(|link| *link == Link::Down) => {}
            // Nothing is ever sent here: an end means that the sender is gone.
            _ = life.changed() => {}
        }
    }

    async fn carry(mut self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, to_host: bool) {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
            self.net.travel(self.host, to_host).await;
            if self.link.wait_for(|link| *link != Link::Stalled).await.is_err() {
                return;
            }
            if self.address.has_changed().unwrap_or(true) {
                // Nobody has the address that this connection was made from.
                std::future::pending::<()>().await;
            }
            if to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
}
