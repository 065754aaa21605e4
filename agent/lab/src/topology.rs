//! The lab's wiring as data: its namespaces and addresses, and the `ip` commands that make them.
//!
//! ```text
//!  c1 ─veth─ flbr0 │ host1 eth0 ─┐
//!  c2 ─veth─ flbr0 │ host2 eth0 ─┼─ br0 (namespace `underlay`, 192.168.33.1, every host's default gateway)
//!             etcd │       eth0 ─┘
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Families;
use super::command_line::CommandLine;
use super::subnet_env::SubnetEnv;

/// The first octets of the underlay: 192.168.33.0/24 as in the documentation's examples, and fd33::/64.
pub const UNDERLAY_V4: [u8; 3] = [192, 168, 33];
/// The gateway's host part in both families.
const GATEWAY: u8 = 1;
/// The store's host part: `http://192.168.33.10:2379` in every example. Host i follows at this plus i.
const STORE: u8 = 10;
/// A control plane's port unless told otherwise.
const SERVER_PORT: u16 = 7443;
/// etcd's client port (IANA).
const STORE_PORT: u16 = 2379;

/// A lab's shape. The prefix keeps labs in one sandbox apart; it is empty for `agent lab`.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The prefix put before every namespace's name.
    pub prefix: String,
    /// The number of hosts.
    pub hosts: u8,
    /// The families of the underlay's addresses.
    pub underlay: Families,
    /// The first octets of the underlay's IPv4 addresses: [`UNDERLAY_V4`] unless a test is about those.
    pub underlay_v4: [u8; 3],
}

/// A namespace on the underlay: a host, or the store's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// The network namespace.
    pub namespace: String,
    /// The device's name at the bridge's side.
    pub port: String,
    /// The IPv4 address on `eth0`.
    pub v4: Ipv4Addr,
    /// The IPv6 address on `eth0`.
    pub v6: Ipv6Addr,
}

impl Topology {
    /// Returns the namespace that holds the underlay bridge.
    #[must_use]
    pub fn underlay_namespace(&self) -> String {
        format!("{}underlay", self.prefix)
    }

    /// Returns the station in which the store runs: an etcd or a control plane.
    #[must_use]
    pub fn store(&self) -> Station {
        self.station("etcd", STORE)
    }

    /// Returns the address at which a control plane in that namespace listens.
    #[must_use]
    pub fn server_address(&self) -> SocketAddr {
        let store = self.store();
        let address =
            if self.underlay.has(flatnet_model::IpFamily::V4) { IpAddr::V4(store.v4) } else { IpAddr::V6(store.v6) };
        SocketAddr::new(address, SERVER_PORT)
    }

    /// Returns host `number`, counted from 1.
    #[must_use]
    pub fn host(&self, number: u8) -> Station {
        self.station(&format!("host{number}"), STORE.saturating_add(number))
    }

    /// Returns the namespace of host `number`'s container.
    #[must_use]
    pub fn container(&self, number: u8) -> String {
        format!("{}c{number}", self.prefix)
    }

    /// Returns every namespace of the lab.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        let mut all = vec![self.underlay_namespace(), self.store().namespace];
        for number in 1..=self.hosts {
            all.extend([self.host(number).namespace, self.container(number)]);
        }
        all
    }

    /// Returns the endpoint that `agent join` is given.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let store = self.store();
        match self.underlay {
            Families::V4 | Families::Dual => format!("http://{}:{STORE_PORT}", store.v4),
            Families::V6 => format!("http://[{}]:{STORE_PORT}", store.v6),
        }
    }

    /// Returns the commands that make the underlay bridge, in a namespace of its own.
    #[must_use]
    pub fn underlay_commands(&self) -> Vec<CommandLine> {
        let namespace = self.underlay_namespace();
        let gateway = self.station("underlay", GATEWAY);
        let mut commands = vec![
            format!("ip netns add {namespace}"),
            format!("ip -n {namespace} link set lo up"),
            format!("ip -n {namespace} link add br0 type bridge forward_delay 0 mcast_snooping 0"),
            format!("ip -n {namespace} link set br0 up"),
        ];
        commands.extend(self.address_commands(&gateway, "br0"));
        lines(&commands)
    }

    /// Returns the commands that make a station: its namespace, a cable to the bridge, addresses, the default route.
    #[must_use]
    pub fn station_commands(&self, station: &Station) -> Vec<CommandLine> {
        let Station { namespace, port, .. } = station;
        let underlay = self.underlay_namespace();
        let gateway = self.station("underlay", GATEWAY);
        let mut commands = vec![
            format!("ip netns add {namespace}"),
            format!("ip -n {namespace} link set lo up"),
            format!("ip -n {underlay} link add {port} type veth peer name eth0 netns {namespace}"),
            format!("ip -n {underlay} link set {port} master br0 up"),
            format!("ip -n {namespace} link set eth0 up"),
        ];
        commands.extend(self.address_commands(station, "eth0"));
        if self.has_v4() {
            commands.push(format!("ip -n {namespace} route add default via {}", gateway.v4));
        }
        if self.has_v6() {
            commands.push(format!("ip -n {namespace} -6 route add default via {}", gateway.v6));
        }
        lines(&commands)
    }

    /// Returns the commands that make a container: its namespace, a cable to its host's bridge, the second address of
    /// the host's subnet, the default route through the first.
    #[must_use]
    pub fn container_commands(&self, number: u8, bridge: &str, subnet: &SubnetEnv) -> Vec<CommandLine> {
        let (host, container) = (self.host(number).namespace, self.container(number));
        let mtu = subnet.mtu;
        let mut commands = vec![
            format!("ip netns add {container}"),
            format!("ip -n {container} link set lo up"),
            format!("ip -n {host} link add c{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {container}"),
            format!("ip -n {host} link set c{number} master {bridge} up"),
            format!("ip -n {container} link set eth0 up"),
        ];
        for gateway in subnet.gateways() {
            let Some(address) = second(gateway.addr()) else { continue };
            let (length, nodad) = (gateway.prefix_len(), if address.is_ipv6() { " nodad" } else { "" });
            commands.push(format!("ip -n {container} addr add {address}/{length} dev eth0{nodad}"));
            let family = if address.is_ipv6() { "-6 " } else { "" };
            commands.push(format!("ip -n {container} {family}route add default via {}", gateway.addr()));
        }
        lines(&commands)
    }

    fn has_v4(&self) -> bool {
        self.underlay.has(flatnet_model::IpFamily::V4)
    }

    fn has_v6(&self) -> bool {
        self.underlay.has(flatnet_model::IpFamily::V6)
    }

    fn address_commands(&self, station: &Station, device: &str) -> Vec<String> {
        let Station { namespace, v4, v6, .. } = station;
        let mut commands = Vec::new();
        if self.has_v4() {
            commands.push(format!("ip -n {namespace} addr add {v4}/24 dev {device}"));
        }
        if self.has_v6() {
            // Duplicate address detection would make the address unusable for its first second.
            commands.push(format!("ip -n {namespace} addr add {v6}/64 dev {device} nodad"));
        }
        commands
    }

    fn station(&self, name: &str, host_part: u8) -> Station {
        let [a, b, c] = self.underlay_v4;
        Station {
            namespace: format!("{}{name}", self.prefix),
            port: name.to_owned(),
            v4: Ipv4Addr::new(a, b, c, host_part),
            v6: Ipv6Addr::new(0xfd33, 0, 0, 0, 0, 0, 0, read_as_hex(host_part)),
        }
    }
}

/// Returns the container's address: the one after its gateway.
#[must_use]
pub fn second(gateway: IpAddr) -> Option<IpAddr> {
    match gateway {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    }
}

/// Reads decimal digits as hexadecimal ones: 11 becomes 0x11, so that the IPv6 address reads like the IPv4 one,
/// fd33::11 beside 192.168.33.11.
fn read_as_hex(decimal: u8) -> u16 {
    let (hundreds, tens, ones) = (decimal / 100, decimal / 10 % 10, decimal % 10);
    u16::from(hundreds) << 8 | u16::from(tens) << 4 | u16::from(ones)
}

fn lines(commands: &[String]) -> Vec<CommandLine> {
    commands.iter().map(|command| CommandLine::words(command)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(underlay: Families) -> Topology {
        Topology { prefix: String::new(), hosts: 2, underlay, underlay_v4: UNDERLAY_V4 }
    }

    #[test]
    fn addresses_read_alike_in_both_families() {
        let host = topology(Families::Dual).host(3);
        assert_eq!((host.v4.to_string(), host.v6.to_string()), ("192.168.33.13".into(), "fd33::13".into()));
        assert_eq!(topology(Families::V4).endpoint(), "http://192.168.33.10:2379");
        assert_eq!(topology(Families::V6).endpoint(), "http://[fd33::10]:2379");
    }

    #[test]
    fn a_container_gets_the_second_address_of_its_hosts_subnet() {
        let subnet = SubnetEnv::parse(
            "FLANNEL_SUBNET=10.100.7.1/24\nFLANNEL_IPV6_SUBNET=fd00:100:0:7::1/64\nFLANNEL_MTU=1450\n",
        )
        .unwrap();
        let commands: Vec<_> =
            topology(Families::V4).container_commands(2, "flbr0", &subnet).iter().map(ToString::to_string).collect();
        for wanted in [
            "ip -n host2 link add c2 mtu 1450 type veth peer name eth0 mtu 1450 netns c2",
            "ip -n c2 addr add 10.100.7.2/24 dev eth0",
            "ip -n c2 route add default via 10.100.7.1",
            "ip -n c2 addr add fd00:100:0:7::2/64 dev eth0 nodad",
            "ip -n c2 -6 route add default via fd00:100:0:7::1",
        ] {
            assert!(commands.iter().any(|command| command == wanted), "{wanted} is not in {commands:#?}");
        }
    }
}
