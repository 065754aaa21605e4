//! Three hosts with agents and containers, and a fourth machine on the same wire that is nobody's peer.

use std::net::IpAddr;

use flatnet_model::IpFamily;
use flatnet_tests::Families;
use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::Namespace;
use flatnet_tests::oracle;
use ipnet::IpNet;

/// flannel's port and first VNI.
pub const PORT: u16 = 8472;
pub const VNI: u32 = 1;
/// The host that is attacked, the peer whose traffic must not suffer, the peer that lies, the stranger.
pub const VICTIM: u8 = 1;
pub const FRIEND: u8 = 2;
pub const LIAR: u8 = 3;
pub const STRANGER: u8 = 4;

pub struct Field {
    // Agents end before the lab does: fields are dropped in this order.
    pub agents: Vec<Agent>,
    pub lab: Lab,
}

impl Field {
    /// Makes a field over VXLAN.
    pub fn new(families: Families) -> Self {
        Self::with("vxlan", families)
    }

    pub fn with(backend: &'static str, families: Families) -> Self {
        let lab = Lab::new(&Shape { hosts: STRANGER, backend, overlay: families, underlay: families });
        let agents: Vec<Agent> = [VICTIM, FRIEND, LIAR].map(|number| lab.join(number)).into_iter().collect();
        for agent in &agents {
            agent.wait_converged(2);
        }
        lab.attach_all(&agents);
        Self { agents, lab }
    }

    pub fn outer(&self, number: u8, family: IpFamily) -> IpAddr {
        let host = self.lab.topology.host(number);
        match family {
            IpFamily::V4 => host.v4.into(),
            IpFamily::V6 => host.v6.into(),
        }
    }

    /// Returns the subnet of a host; its address is the gateway's.
    pub fn subnet(&self, number: u8, family: IpFamily) -> IpNet {
        let env = self.agents[usize::from(number - 1)].subnet();
        env.gateways().find(|gateway| IpFamily::of(gateway.addr()) == family).expect("a subnet of the family")
    }

    pub fn container(&self, number: u8, family: IpFamily) -> IpAddr {
        let env = self.agents[usize::from(number - 1)].subnet();
        env.container_addresses().find(|address| IpFamily::of(*address) == family).expect("an address of the family")
    }

    pub fn host(&self, number: u8) -> Namespace {
        self.lab.host(number)
    }
}

pub fn tunnel(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "flat.1",
        IpFamily::V6 => "flat6.1",
    }
}

/// Returns the Ethernet address of a device.
pub fn mac(host: &Namespace, device: &str) -> [u8; 6] {
    let link = oracle::link(host, device).unwrap_or_else(|| panic!("{} has no {device}", host.0));
    let bytes = link["address"].as_str().unwrap().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap());
    bytes.collect::<Vec<_>>().try_into().unwrap()
}

/// Packets that came in by a device since it was made, by the kernel's own count.
pub fn received(host: &Namespace, device: &str) -> u64 {
    let listed = host.json(&format!("ip -j -s link show dev {device}"));
    listed[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}
