//! `subnet.env`: the file that container engines are configured from, exactly as flannel writes it (flannel
//! `pkg/subnet/subnet.go`: `WriteSubnetFile`).

use std::fmt;

use flatnet_model::{Mtu, NetworkConfig, SubnetKey};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::desired::first_address;

/// The contents of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvFile {
    /// The IPv4 half, if the network has one.
    pub v4: Option<EnvSubnet<Ipv4Net>>,
    /// The IPv6 half, if the network has one.
    pub v6: Option<EnvSubnet<Ipv6Net>>,
    /// `FLANNEL_MTU`: the bytes that a container's packet may have.
    pub mtu: Mtu,
    /// `FLANNEL_IPMASQ`: true if the agent masquerades, so that the engine need not.
    pub ip_masq: bool,
}

/// One family's half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvSubnet<N> {
    /// The whole network.
    pub network: N,
    /// The first address of this host's subnet, with the subnet's length: the bridge's address.
    pub gateway: N,
}

impl EnvFile {
    /// Makes the file of the network `config` for a host that leases `own`. A family that either of them lacks is left
    /// out.
    #[must_use]
    pub fn new(config: &NetworkConfig, own: SubnetKey, mtu: Mtu, ip_masq: bool) -> Self {
        let gateway = |subnet: IpNet| IpNet::new(first_address(subnet), subnet.prefix_len()).ok();
        let v4 = config.v4.and_then(|pool| match (pool.network(), gateway(IpNet::V4(own.v4()?))?) {
            (IpNet::V4(network), IpNet::V4(gateway)) => Some(EnvSubnet { network, gateway }),
            (IpNet::V4(_) | IpNet::V6(_), _) => None,
        });
        let v6 = config.v6.and_then(|pool| match (pool.network(), gateway(IpNet::V6(own.v6()?))?) {
            (IpNet::V6(network), IpNet::V6(gateway)) => Some(EnvSubnet { network, gateway }),
            (IpNet::V4(_) | IpNet::V6(_), _) => None,
        });
        Self { v4, v6, mtu, ip_masq }
    }

    /// Returns the subnets this host had when the file was written; flannel asks for the same ones again after a
    /// restart.
    #[must_use]
    pub fn subnets(&self) -> Option<SubnetKey> {
        SubnetKey::new(self.v4.map(|half| half.gateway.trunc()), self.v6.map(|half| half.gateway.trunc())).ok()
    }

    /// Reads a file of flannel's or ours. This is strict: what is not understood is an error, not a guess. Comments,
    /// empty lines and variables that are not flannel's are ignored.
    pub fn parse(text: &str) -> Result<Self, InvalidEnvFile> {
        let mut vars = Vars::default();
        for (index, line) in text.lines().enumerate() {
            vars.line(line).map_err(|reason| InvalidEnvFile { line: index + 1, reason })?;
        }
        vars.finish().map_err(|reason| InvalidEnvFile { line: 0, reason })
    }
}

/// Writes the file's text.
impl fmt::Display for EnvFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(EnvSubnet { network, gateway }) = self.v4 {
            write!(f, "FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={gateway}\n")?;
        }
        if let Some(EnvSubnet { network, gateway }) = self.v6 {
            write!(f, "FLANNEL_IPV6_NETWORK={network}\nFLANNEL_IPV6_SUBNET={gateway}\n")?;
        }
        write!(f, "FLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n", self.mtu, self.ip_masq)
    }
}

/// Text that is not a `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a subnet.env: {}{reason}", if *.line > 0 { format!("line {line}: ") } else { String::new() })]
pub struct InvalidEnvFile {
    /// The line, counted from 1; 0 stands for the file as a whole.
    pub line: usize,
    /// The error, in words.
    pub reason: String,
}

/// The variables as they are read.
#[derive(Default)]
struct Vars {
    network: Option<Ipv4Net>,
    subnet: Option<Ipv4Net>,
    network6: Option<Ipv6Net>,
    subnet6: Option<Ipv6Net>,
    mtu: Option<Mtu>,
    ip_masq: Option<bool>,
}

impl Vars {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let line = line.trim_end_matches('\r');
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (name, value) = line.split_once('=').ok_or_else(|| "no '=' in it".to_owned())?;
        match name {
            "FLANNEL_NETWORK" => set(&mut self.network, name, value, |value| value.parse().ok()),
            "FLANNEL_SUBNET" => set(&mut self.subnet, name, value, |value| value.parse().ok()),
            "FLANNEL_IPV6_NETWORK" => set(&mut self.network6, name, value, |value| value.parse().ok()),
            "FLANNEL_IPV6_SUBNET" => set(&mut self.subnet6, name, value, |value| value.parse().ok()),
            "FLANNEL_MTU" => set(&mut self.mtu, name, value, |value| Mtu::new(value.parse().ok()?).ok()),
            "FLANNEL_IPMASQ" => set(&mut self.ip_masq, name, value, |value| value.parse().ok()),
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<EnvFile, String> {
        let missing = |name: &str| format!("{name} is missing");
        let half4 = match (self.network, self.subnet) {
            (None, None) => None,
            (Some(network), Some(gateway)) if network.contains(&gateway) => Some(EnvSubnet { network, gateway }),
            (Some(network), Some(gateway)) => return Err(format!("{gateway} is not inside {network}")),
            (None, Some(_)) => return Err(missing("FLANNEL_NETWORK")),
            (Some(_), None) => return Err(missing("FLANNEL_SUBNET")),
        };
        let half6 = match (self.network6, self.subnet6) {
            (None, None) => None,
            (Some(network), Some(gateway)) if network.contains(&gateway) => Some(EnvSubnet { network, gateway }),
            (Some(network), Some(gateway)) => return Err(format!("{gateway} is not inside {network}")),
            (None, Some(_)) => return Err(missing("FLANNEL_IPV6_NETWORK")),
            (Some(_), None) => return Err(missing("FLANNEL_IPV6_SUBNET")),
        };
        if half4.is_none() && half6.is_none() {
            return Err(missing("FLANNEL_SUBNET"));
        }
        Ok(EnvFile {
            v4: half4,
            v6: half6,
            mtu: self.mtu.ok_or_else(|| missing("FLANNEL_MTU"))?,
            ip_masq: self.ip_masq.ok_or_else(|| missing("FLANNEL_IPMASQ"))?,
        })
    }
}

fn set<T>(to: &mut Option<T>, name: &str, value: &str, parse: impl Fn(&str) -> Option<T>) -> Result<(), String> {
    if to.is_some() {
        return Err(format!("{name} is there twice"));
    }
    let parsed = parse(value).ok_or_else(|| format!("{name} cannot be {:?}", flatnet_model::text::excerpt(value)))?;
    *to = Some(parsed);
    Ok(())
}

#[cfg(test)]
mod tests;
