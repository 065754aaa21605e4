//! The UDP port of a device in this process.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpTransportFactory, UdpTransportFactoryParams};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::line::{Line, Receiver, Sender};

/// The time for which a port may still be held by tasks of this process that were told to end.
const PORT_RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause between two tries while it is held.
const PORT_RETRY_AFTER: Duration = Duration::from_millis(5);

/// Opens the device's port once and keeps it open. The library sets up its tasks anew whenever the device gets another
/// key, and opens the port anew for them while the old tasks may still hold it. On a busy host that fails, and a device
/// without a port is left. It also loses packets that came in meanwhile, above all the peers' handshakes. A device that
/// follows with another key has the same port.
pub(super) struct Port {
    open: Arc<Mutex<Option<Open>>>,
    line: Arc<Line>,
}

impl Port {
    /// Makes a port that is not open yet.
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self { open: Arc::default(), line }
    }

    /// Returns the same port, for the device of `line`.
    pub(super) fn taken_over(&self, line: Arc<Line>) -> Self {
        Self { open: Arc::clone(&self.open), line }
    }
}

struct Open {
    port: u16,
    fwmark: Option<u32>,
    socket: UdpSocket,
}

impl UdpTransportFactory for Port {
    type Send = Sender;
    type Recv = Receiver;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Sender, Receiver)> {
        let same = |open: &&Open| open.port == params.port && open.fwmark == params.fwmark;
        let mut open = self.open.lock().await;
        let socket = match open.as_ref().filter(same) {
            Some(open) => open.socket.clone(),
            None => {
                *open = None;
                let socket = bind(params).await?;
                let port = socket.local_addr()?.port();
                *open = Some(Open { port, fwmark: params.fwmark, socket: socket.clone() });
                socket
            }
        };
        let receiver = Receiver::new(socket.clone(), Arc::clone(&self.line));
        Ok((Sender::new(socket, Arc::clone(&self.line)), receiver))
    }
}

async fn bind(params: &UdpTransportFactoryParams) -> io::Result<UdpSocket> {
    let started = Instant::now();
    loop {
        match UdpSocketFactory::default().bind(params).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && started.elapsed() < PORT_RELEASE_TIMEOUT => {
                tokio::time::sleep(PORT_RETRY_AFTER).await;
            }
            done => return done.map(|(socket, _)| socket),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(port: u16) -> UdpTransportFactoryParams {
        UdpTransportFactoryParams { addr: None, port, fwmark: None }
    }

    #[tokio::test]
    async fn a_port_is_opened_once_and_what_came_in_between_is_kept() {
        let mut port = Port::new(Line::first());
        let (first, _) = port.bind(&params(0)).await.unwrap();
        let number = first.socket.local_addr().unwrap().port();
        let sender = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        sender.send_to(b"early", ("127.0.0.1", number)).await.unwrap();
        // The first one's holders have not let go of it.
        let (_, again) = port.bind(&params(number)).await.unwrap();
        let mut buffer = [0; 16];
        let (length, _) = again.socket.socket().recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"early");
        drop(first);
    }

    #[tokio::test]
    async fn another_port_is_another_socket_and_a_port_that_is_let_go_of_late_is_waited_for() {
        let mut port = Port::new(Line::first());
        let (first, _) = port.bind(&params(0)).await.unwrap();
        let number = first.socket.local_addr().unwrap().port();
        let (other, _) = port.bind(&params(0)).await.unwrap();
        assert_ne!(other.socket.local_addr().unwrap().port(), number);
        let late = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(first);
        });
        let (back, _) = port.bind(&params(number)).await.unwrap();
        assert_eq!(back.socket.local_addr().unwrap().port(), number);
        late.await.unwrap();
    }

    #[tokio::test]
    async fn a_port_of_another_program_is_refused() {
        let held = std::net::UdpSocket::bind("[::]:0").unwrap();
        let number = held.local_addr().unwrap().port();
        let refused = Port::new(Line::first()).bind(&params(number)).await;
        assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::AddrInUse);
    }
}
