//! The file in which an agent says what its host was given, as flannel writes it. Here it is only read, as Docker's and
//! the CNI plugin's scripts do.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// The values that a container's wiring needs from `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The value of `FLANNEL_SUBNET`: the gateway's address with the subnet's length.
    pub v4: Option<IpNet>,
    /// The value of `FLANNEL_IPV6_SUBNET`, of the same form.
    pub v6: Option<IpNet>,
    /// The value of `FLANNEL_MTU`, in bytes.
    pub mtu: u32,
}

impl SubnetEnv {
    /// Reads `KEY=value` lines. Returns `None` without an MTU or without any subnet.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let values: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.trim().split_once('=')).collect();
        let subnet = |key: &str| values.get(key).and_then(|value| value.parse::<IpNet>().ok());
        let found = Self {
            v4: subnet("FLANNEL_SUBNET"),
            v6: subnet("FLANNEL_IPV6_SUBNET"),
            mtu: values.get("FLANNEL_MTU")?.parse().ok()?,
        };
        (found.v4.is_some() || found.v6.is_some()).then_some(found)
    }

    /// Returns the gateways, one of each family.
    pub fn gateways(&self) -> impl Iterator<Item = IpNet> {
        self.v4.into_iter().chain(self.v6)
    }

    /// Returns the container's addresses, one of each family.
    pub fn container_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.gateways().filter_map(|gateway| super::topology::second(gateway.addr()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_file_is_not_taken() {
        assert_eq!(SubnetEnv::parse("FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_MTU=1450\n"), None);
        assert_eq!(SubnetEnv::parse("FLANNEL_SUBNET=10.100.7.1/24\n"), None);
        let env = SubnetEnv::parse("FLANNEL_SUBNET=10.100.7.1/24\nFLANNEL_MTU=1450\n").unwrap();
        assert_eq!(env.container_addresses().map(|a| a.to_string()).collect::<Vec<_>>(), ["10.100.7.2"]);
    }
}
