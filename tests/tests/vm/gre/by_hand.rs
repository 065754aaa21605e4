//! A host without an agent, as the cookbook has it, and the harm it can do.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use flatnet_tests::vm::Vm;
use flatnet_tests::wait::{SOON, pause, wait_until};
use ipnet::{IpNet, Ipv4Net};

/// The time after which a forger's packets have arrived, or will not.
const ARRIVED: Duration = Duration::from_secs(1);

/// A host with a tunnel to each agent, all made by hand, and a container.
pub struct HandMade {
    subnet: Ipv4Net,
}

impl HandMade {
    /// Makes it with `ip tunnel add` and a route for each peer, a bridge, and the container `c1`.
    pub fn up(vm: &Vm, peers: &[&Vm]) -> Self {
        // Agents choose theirs by chance.
        let taken: Vec<IpNet> = peers.iter().filter_map(|peer| peer.subnet().v4).map(|net| net.trunc()).collect();
        let number = (200..=255).find(|number| !taken.contains(&IpNet::V4(subnet(*number)))).unwrap();
        let mut script = format!(
            "set -e\nsysctl -qw net.ipv4.ip_forward=1\n\
             ip link add docker0 type bridge\nip addr add 10.100.{number}.1/24 dev docker0\nip link set docker0 up\n\
             ip netns add c1\nip -n c1 link set lo up\n\
             ip link add c1 mtu 1476 type veth peer name eth0 mtu 1476 netns c1\nip link set c1 master docker0 up\n\
             ip -n c1 link set eth0 up\nip -n c1 addr add 10.100.{number}.2/24 dev eth0\n\
             ip -n c1 route add default via 10.100.{number}.1\n",
        );
        for peer in peers {
            let (name, theirs) = (format!("foo{}", peer.number), peer.subnet().v4.unwrap().trunc());
            script += &format!(
                "ip tunnel add {name} mode gre local {} remote {}\nip link set {name} up\nip route add {theirs} dev {name}\n",
                vm.address(),
                peer.address()
            );
        }
        vm.ok(&script);
        Self { subnet: subnet(number) }
    }

    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// Returns the address of its container.
    pub fn address(&self) -> IpAddr {
        self.subnet.hosts().nth(1).unwrap().into()
    }
}

/// Returns one of the network's subnets, by its number.
fn subnet(number: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 100, number, 0), 24).unwrap()
}

/// A host that sends into the tunnel what it has no right to send.
pub struct Forger<'a> {
    from: &'a Vm,
    to: &'a Vm,
}

impl<'a> Forger<'a> {
    pub fn new(from: &'a Vm, to: &'a Vm) -> Self {
        Self { from, to }
    }

    /// Asserts that packets it sends with the inner source `source` are dropped before decapsulation, and counted
    /// there.
    pub fn assert_refused(&self, source: IpAddr, victim: IpAddr) {
        self.assert_refused_while(source, victim, || pause(ARRIVED));
    }

    /// Asserts the same during `meanwhile`.
    pub fn assert_refused_while(&self, source: IpAddr, victim: IpAddr, meanwhile: impl FnOnce()) {
        let (arrived, refused) = (self.arrived(), self.refused());
        self.from.ok(&format!("ip addr replace {source}/32 dev lo"));
        self.from.start("forger", &format!("ping -n -i 0.1 -I {source} {victim}"));
        wait_until("what is forged is refused and counted", SOON, || {
            if self.refused() > refused { Ok(()) } else { Err(self.to.ok("nft list table inet flatnet")) }
        });
        meanwhile();
        pause(ARRIVED);
        self.from.end("forger", "INT");
        self.from.ok(&format!("ip addr del {source}/32 dev lo; rm -f /run/forger.log"));
        assert_eq!(self.arrived(), arrived, "forged packets came out of the tunnel");
    }

    /// Returns the number of requests that the victim's container has seen.
    fn arrived(&self) -> u64 {
        let script = "ip netns exec c1 awk '/^IcmpMsg:/ && !n { split($0, names); n = 1; next } \
                      /^IcmpMsg:/ { for (i in names) if (names[i] == \"InType8\") print $i }' /proc/net/snmp";
        self.to.ok(script).trim().parse().unwrap_or(0)
    }

    /// Returns the number of packets that the guard has dropped.
    fn refused(&self) -> u64 {
        let rules = self.to.ok("nft list table inet flatnet | grep 'not a peer sending from its own subnet'");
        let counts = rules.split("counter packets ").skip(1);
        counts.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
    }
}
