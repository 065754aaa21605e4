//! A host run by flannel, made by hand with `ip` and `bridge` as flannel's VXLAN backend makes it. It has `flannel.1`
//! with the subnet's address, learning off, and per peer a permanent neighbour, a forwarding entry and an onlink route.

use serde_json::{Value, json};

use crate::lab::{Lab, wire};
use crate::netns::Namespace;
use flatnet_lab::command_line::CommandLine;

/// The hand-made host's VTEP.
pub const MAC: &str = "4e:f4:0c:52:b7:8d";

/// A flannel host; `octet` is the third byte of its subnet 10.100.N.0/24.
#[derive(Debug)]
pub struct FlannelHost {
    host: Namespace,
    number: u8,
    octet: u8,
    public_ip: String,
}

impl FlannelHost {
    /// Makes the device, and a bridge of containers with the first address of the subnet (10.100.N.1).
    #[must_use]
    pub fn new(lab: &Lab, number: u8, octet: u8) -> Self {
        let host = lab.host(number);
        let public_ip = lab.topology.host(number).v4.to_string();
        let name = &host.0;
        wire(&lines(&[
            format!(
                "ip -n {name} link add flannel.1 type vxlan id 1 local {public_ip} dev eth0 dstport 8472 nolearning"
            ),
            format!("ip -n {name} link set flannel.1 address {MAC} mtu 1450 up"),
            format!("ip -n {name} addr add 10.100.{octet}.0/32 dev flannel.1"),
            format!("ip -n {name} link add cni0 type bridge"),
            format!("ip -n {name} link set cni0 up"),
            format!("ip -n {name} addr add 10.100.{octet}.1/24 dev cni0"),
        ]));
        Self { host, number, octet, public_ip }
    }

    /// Returns the key under `subnets/`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("/coreos.com/network/subnets/10.100.{}.0-24", self.octet)
    }

    /// Returns the lease exactly as flannel writes it.
    #[must_use]
    pub fn lease(&self) -> Value {
        json!({
            "PublicIP": self.public_ip, "PublicIPv6": null, "BackendType": "vxlan",
            "BackendData": { "VNI": 1, "VtepMAC": MAC }
        })
    }

    /// Programs a peer from its lease as flannel does.
    pub fn program(&self, key: &str, lease: &Value) {
        let subnet = key.replace('-', "/");
        let gateway = subnet.split('/').next().unwrap();
        let mac = lease["BackendData"]["VtepMAC"].as_str().expect("a lease with flannel's VtepMAC");
        let public_ip = lease["PublicIP"].as_str().expect("a lease with a PublicIP");
        let name = &self.host.0;
        wire(&lines(&[
            format!("ip -n {name} neigh replace {gateway} lladdr {mac} dev flannel.1 nud permanent"),
            format!("bridge -n {name} fdb replace {mac} dev flannel.1 dst {public_ip}"),
            format!(
                "ip -n {name} route replace {subnet} via {gateway} dev flannel.1 onlink src 10.100.{}.1",
                self.octet
            ),
        ]));
    }

    /// Returns the address of its containers' bridge, which answers as they would.
    #[must_use]
    pub fn container_address(&self) -> std::net::IpAddr {
        std::net::Ipv4Addr::new(10, 100, self.octet, 1).into()
    }

    /// Returns the host's number in the lab.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }
}

fn lines(commands: &[String]) -> Vec<CommandLine> {
    commands.iter().map(|command| CommandLine::words(command)).collect()
}
