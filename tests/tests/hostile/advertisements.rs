//! Router advertisements from a container, and from a guest of a host that is a router. Neither may become this host's
//! way out.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use flatnet_tests::Families;
use flatnet_tests::agent::BRIDGE;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::Namespace;
use flatnet_tests::pinger::assert_all_pairs;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket, sockopt,
};

use crate::sender::inside;

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("a_container_cannot_become_its_hosts_router", container).on_backend("vxlan"),
        Test::new("a_router_stays_deaf_to_its_guests_and_a_host_keeps_its_own_router", router).on_backend("vxlan"),
    ]
}

/// Sends "I am a router, of high preference, this is your prefix, your MTU is 1280" (RFC 4861 §4.2) into one device.
struct Advertiser {
    socket: OwnedFd,
    device: u32,
}

impl Advertiser {
    fn new(namespace: &Namespace, device: &str) -> Self {
        wait_until(&format!("{device} has its link-local address"), SOON, || {
            let shown = namespace.ok(&format!("ip -6 -o addr show dev {device} scope link -tentative"));
            if shown.trim().is_empty() { Err("tentative".to_owned()) } else { Ok(()) }
        });
        let open = || {
            let icmp = SockProtocol::IcmpV6;
            let socket = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, icmp).unwrap();
            (socket, if_nametoindex(device).unwrap())
        };
        let (socket, device) = inside(namespace, open);
        setsockopt(&socket, sockopt::Ipv6MulticastHops, &255).unwrap();
        Self { socket, device }
    }

    /// Sends advertisements until `host` has counted one more.
    fn advertise(&self, host: &Namespace) {
        // Type 134, code, checksum (the kernel's), hop limit, high preference, lifetime; two timers; a prefix; an MTU.
        let mut packet = [&[134, 0, 0, 0, 64, 0x08, 0x07, 0x08][..], &[0; 8]].concat();
        packet.extend([3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 1, 0x51, 0x80, 0, 0, 0, 0]);
        packet.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0).octets());
        packet.extend([5, 1, 0, 0, 0, 0, 0x05, 0x00]);
        let everybody = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, self.device);
        let heard = advertisements(host);
        wait_until("the advertisement arrives", SOON, || {
            sendto(self.socket.as_raw_fd(), &packet, &SockaddrIn6::from(everybody), MsgFlags::empty()).unwrap();
            if advertisements(host) > heard { Ok(()) } else { Err("not yet".to_owned()) }
        });
    }
}

/// Returns how many arrived at a host, by the kernel's own count.
fn advertisements(host: &Namespace) -> u64 {
    let statistics = host.ok("cat /proc/net/snmp6");
    let line = statistics.lines().find(|line| line.starts_with("Icmp6InRouterAdvertisements")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Returns what advertisements brought to a host: routes, and addresses in their prefix.
fn believed(host: &Namespace) -> String {
    host.ok("ip -6 route show proto ra") + &host.ok("ip -6 -o addr show to 2001:db8:bad::/64")
}

fn setting(host: &Namespace, path: &str) -> String {
    host.ok(&format!("cat /proc/sys/net/{path}")).trim().to_owned()
}

/// Lays a cable from a host to a guest's place, which is the underlay's namespace.
fn guest(lab: &Lab) -> Advertiser {
    let (host, place) = (lab.host(1), lab.underlay());
    host.ok(&format!("ip link add guest0 type veth peer name guest1 netns {}", place.0));
    host.ok("ip link set guest0 up");
    place.ok("ip link set guest1 up");
    Advertiser::new(&place, "guest1")
}

/// An advertisement from a container, also on a host whose new devices do not forward, as some are set up.
fn container() {
    let lab = Lab::new(&Shape::vxlan(2));
    let host = lab.host(1);
    let guest = guest(&lab);
    host.ok("sysctl -qw net.ipv4.conf.default.forwarding=0 net.ipv4.conf.default.accept_redirects=1");
    let agents = lab.join_all();
    lab.attach_all(&agents);
    assert_all_pairs(&lab, &agents);
    for device in ["flat.1", BRIDGE] {
        assert_eq!(setting(&host, &format!("ipv4/conf/{device}/forwarding")), "1", "{device}");
        assert_eq!(setting(&host, &format!("ipv4/conf/{device}/accept_redirects")), "0", "{device}");
        assert_eq!(setting(&host, &format!("ipv6/conf/{device}/accept_ra")), "0", "{device}");
    }
    Advertiser::new(&lab.container(1), "eth0").advertise(&host);
    assert_eq!(believed(&host), "", "a container's advertisement");
    // Elsewhere this host does believe them, which shows that the advertisement is a good one.
    wait_until("the host has a router", SOON, || {
        guest.advertise(&host);
        let believed = believed(&host);
        if believed.contains("dev guest0") { Ok(()) } else { Err(believed) }
    });
    assert!(!believed(&host).contains(BRIDGE), "{}", believed(&host));
}

fn router() {
    let lab = Lab::new(&Shape { hosts: 1, backend: "vxlan", overlay: Families::Dual, underlay: Families::Dual });
    let host = lab.host(1);
    let guest = guest(&lab);
    let accept_ra = |device: &str| setting(&host, &format!("ipv6/conf/{device}/accept_ra"));
    // A host that forwards by its owner's will hears no advertisements, and goes on not hearing them.
    host.ok("sysctl -qw net.ipv6.conf.all.forwarding=1");
    let mut agent = lab.join(1);
    agent.wait_converged(0);
    guest.advertise(&host);
    assert_eq!((believed(&host).as_str(), accept_ra("guest0").as_str()), ("", "1"));
    assert_eq!(agent.command(&["leave", "--purge"]).code, 0);
    agent.wait_for_end(SOON);
    // A host that had its default route from an advertisement, and forwards because of us, keeps the route. Other
    // interfaces are left as they are.
    host.ok("sysctl -qw net.ipv6.conf.all.forwarding=0");
    wait_until("the host has a router", SOON, || {
        guest.advertise(&host);
        let believed = believed(&host);
        if believed.contains("default") { Ok(()) } else { Err(believed) }
    });
    agent.start();
    agent.wait_converged(0);
    assert_eq!(setting(&host, "ipv6/conf/all/forwarding"), "1");
    assert_eq!((accept_ra("guest0").as_str(), accept_ra("eth0").as_str()), ("2", "1"));
    assert!(believed(&host).contains("default"), "{}", believed(&host));
    host.ok("sysctl -qw net.ipv6.conf.guest0.accept_ra=1");
    wait_until("advertisements are heard again", SOON, || match accept_ra("guest0").as_str() {
        "2" => Ok(()),
        other => Err(other.to_owned()),
    });
    assert_eq!(agent.command(&["leave", "--purge"]).code, 0);
    assert_eq!((accept_ra("guest0").as_str(), accept_ra("eth0").as_str()), ("1", "1"));
}
