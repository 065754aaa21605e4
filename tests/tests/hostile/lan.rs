//! Machines of the LAN beside an IPv6 network over an IPv6 underlay: they open connections into it only if they are
//! named, and containers reach the store only if they may.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use flatnet_tests::Families;
use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::Namespace;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, pause, wait_until};
use nix::sys::signal::Signal;

use crate::sender::inside;

pub fn tests() -> Vec<Test> {
    let name = "over_ipv6_too_only_who_is_named_gets_in_and_containers_do_not_reach_the_store";
    vec![Test::new(name, lan).on_backend("vxlan")]
}

/// The port at which the service listens.
const SERVICE: u16 = 7;
/// The time for which the last packet sent may be under way.
const UNDER_WAY: Duration = Duration::from_millis(200);

/// Sends a datagram that says whom it is from; returns true if it got to the service.
fn gets_in(service: &UdpSocket, by: &Namespace, from: IpAddr, to: IpAddr) -> bool {
    let said = from.to_string();
    inside(by, || {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        // What the sender's own kernel refuses does not get in either.
        let _ = socket.send_to(said.as_bytes(), (to, SERVICE));
    });
    pause(UNDER_WAY);
    let mut buffer = [0; 64];
    let mut got = false;
    while let Ok(length) = service.recv(&mut buffer) {
        got |= &buffer[..length] == said.as_bytes();
    }
    got
}

fn lan() {
    let lab = Lab::new(&Shape { hosts: 3, backend: "vxlan", overlay: Families::V6, underlay: Families::V6 });
    let mut agents = vec![lab.join(1), lab.join(2)];
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    let address = |index: usize| agents[index].subnet().container_addresses().next().unwrap();
    let (target, member) = (address(0), address(1));
    let service = inside(&lab.container(1), || {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, SERVICE)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    });
    let stranger = lab.host(3);
    let (one, other): (IpAddr, IpAddr) = ("fd33::13".parse().unwrap(), "fd33::99".parse().unwrap());
    stranger.ok("ip -6 addr add fd33::99/64 dev eth0 nodad");
    stranger.ok("ip -6 route add fd00:100::/56 via fd33::11");
    let arrives = |what: &str, by: &Namespace, from: IpAddr| {
        wait_until(what, SOON, || if gets_in(&service, by, from, target) { Ok(()) } else { Err(from.to_string()) });
    };
    let stays_out = |from: IpAddr| {
        let got = (0..3).any(|_| gets_in(&service, &stranger, from, target));
        assert!(!got, "{from} got in, and nobody named it");
    };
    arrives("a member is heard", &lab.container(2), member);
    stays_out(one);
    stays_out(other);

    let ran = agents[1].command(&["network", "update", "default", "--reachable-from", "fd33::13/128"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    arrives("who the network is reachable from is heard", &stranger, one);
    stays_out(other);

    let store: SocketAddr = "[fd33::10]:2379".parse().unwrap();
    let reaches_store =
        |by: &Namespace| inside(by, || TcpStream::connect_timeout(&store, Duration::from_millis(500))).is_ok();
    for number in [1, 2] {
        assert!(reaches_store(&lab.host(number)), "host{number} itself");
        assert!(!reaches_store(&lab.container(number)), "the container of host{number} reaches the store");
    }
    agents[0].end(Signal::SIGTERM);
    agents[0].arguments.extend(["--expose=fd33::99/128", "--containers-reach-store"].map(str::to_owned));
    agents[0].start();
    agents[0].wait_converged(1);
    arrives("who this host exposes it to is heard", &stranger, other);
    arrives("who the network is reachable from is still heard", &stranger, one);
    wait_until("its container reaches the store now", SOON, || {
        if reaches_store(&lab.container(1)) { Ok(()) } else { Err("no connection".to_owned()) }
    });
    assert!(!reaches_store(&lab.container(2)), "the other host has not said so");
    at_its_own_address(&lab, &mut agents[1]);
}

/// A store at an address of the host's own is kept from its containers too: what they send there is not forwarded, it
/// is let in. What else listens there is open to them.
fn at_its_own_address(lab: &Lab, agent: &mut Agent) {
    let [store, beside]: [SocketAddr; 2] = ["[fd33::12]:2379", "[fd33::12]:2390"].map(|at| at.parse().unwrap());
    let _listening = inside(&agent.host, || [store, beside].map(|at| TcpListener::bind(at).unwrap()));
    agent.end(Signal::SIGTERM);
    agent.arguments.insert(2, format!("http://{store}"));
    agent.start();
    agent.wait_converged(1);
    let connects = |by: &Namespace, to: SocketAddr| {
        inside(by, || TcpStream::connect_timeout(&to, Duration::from_millis(500))).is_ok()
    };
    assert!(connects(&agent.host, store), "the host itself");
    assert!(connects(&lab.container(agent.number), beside), "the container reaches what listens beside it");
    assert!(!connects(&lab.container(agent.number), store), "the container reaches a store at its host's own address");
}
