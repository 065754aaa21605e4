//! The conversion of flags to what they mean.

use std::collections::BTreeMap;
use std::path::Path;

use flatnet_core::underlay::Selection;
use flatnet_model::NetworkName;
use flatnet_plane::endpoint::{Endpoint, EndpointKind};
use flatnet_plane::etcd_args::read_file;
use ipnet::IpNet;

use super::JoinArgs;
use crate::cli::values::NamedCidr;
use crate::daemon::{JoinOptions, NetworkOptions};
use crate::report::{Exit, Failure};
use crate::store::store_endpoints::endpoints;

impl JoinArgs {
    /// Returns what the flags mean, or the first mistake in them.
    pub fn options(self) -> Result<JoinOptions, Failure> {
        let endpoints = endpoints(&self.endpoint)?;
        let networks = self.networks()?;
        let name = node_name(self.node_name.as_deref())?;
        self.check_control_plane(&endpoints)?;
        let token = self.token()?;
        Ok(JoinOptions {
            endpoints,
            etcd: self.store,
            token,
            ca_hash: self.ca_hash,
            name,
            state_dir: self.state_dir,
            run_dir: self.run_dir,
            networks,
            lease_ttl: self.lease_ttl,
            underlay: Selection {
                ifaces: self.iface,
                iface_regexes: self.iface_regex,
                can_reach: self.iface_can_reach,
                public_ip: self.public_ip,
                public_ipv6: self.public_ipv6,
                store: Vec::new(),
            },
            bridge: self.bridge,
            masquerade: self.ip_masq,
            take_over: self.take_over,
            expose: self.expose,
            containers_reach_store: self.containers_reach_store,
            userspace: !self.no_userspace,
            http_listen: self.http_listen,
        })
    }

    /// Returns the networks to join, each once, in the order given.
    fn networks(&self) -> Result<Vec<NetworkOptions>, Failure> {
        let mut names: Vec<&NetworkName> = Vec::new();
        for name in &self.network {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let (mut init, mut wanted) =
            (by_network("init", &self.init, &names)?, by_network("subnet", &self.subnet, &names)?);
        let network = |name: &NetworkName| NetworkOptions {
            name: name.clone(),
            init: init.remove(name).unwrap_or_default(),
            wanted: wanted.remove(name).unwrap_or_default(),
            env_file: self.subnet_file.clone().filter(|_| name.is_default()),
        };
        Ok(names.into_iter().map(network).collect())
    }

    /// Checks that flags which only one of the two kinds of control plane takes are not given for the other.
    fn check_control_plane(&self, endpoints: &[Endpoint]) -> Result<(), Failure> {
        let is_server = endpoints.iter().any(|endpoint| endpoint.kind == EndpointKind::ControlPlane);
        if is_server && !self.init.is_empty() {
            return Err(Failure::new(Exit::Usage, "--init: nodes create no networks at a control plane").hint(
                "controlplane serve --init, controlplane network create, or agent network create --credentials",
            ));
        }
        if !is_server && (self.token.is_some() || self.token_file.is_some() || self.ca_hash.is_some()) {
            return Err(Failure::new(Exit::Usage, "--token and --ca-hash are for a control plane, not for an etcd")
                .hint("its endpoint looks like grpcs://192.168.33.10:7443"));
        }
        Ok(())
    }

    /// Returns the token, from wherever it was given.
    fn token(&self) -> Result<Option<String>, Failure> {
        let of_file = |file: &Path| {
            let read = read_file("token-file", file)?;
            Ok(String::from_utf8_lossy(&read).trim().to_owned())
        };
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(Some(token.0.clone())),
            (None, Some(file)) => of_file(file).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// Returns the ranges that `flag` gave to each of `networks`, at most one of each family.
fn by_network(
    flag: &str,
    given: &[NamedCidr],
    networks: &[&NetworkName],
) -> Result<BTreeMap<NetworkName, Vec<IpNet>>, Failure> {
    let mut ranges: BTreeMap<NetworkName, Vec<IpNet>> = BTreeMap::new();
    for NamedCidr { network, cidr } in given {
        if !networks.contains(&network) {
            let message = format!("--{flag} names network {network}, which is not joined");
            return Err(Failure::new(Exit::Usage, message).hint(format!("add --network {network}")));
        }
        let ranges = ranges.entry(network.clone()).or_default();
        if ranges.iter().any(|other| other.addr().is_ipv4() == cidr.addr().is_ipv4()) {
            let message = format!("--{flag}: network {network} has one range of each family at most");
            return Err(Failure::new(Exit::Usage, message));
        }
        ranges.push(*cidr);
    }
    Ok(ranges)
}

/// Returns the node's name: the given one, or the host's.
fn node_name(given: Option<&str>) -> Result<String, Failure> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
    };
    // The name must fit in a DNS name (RFC 1035), as it becomes one.
    let valid = (1..=253).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if valid {
        return Ok(name);
    }
    let message = format!("{:?} cannot be a node's name", flatnet_model::text::excerpt(&name));
    Err(Failure::new(Exit::InvalidConfig, message)
        .hint("1 to 253 letters, digits, '-', '.' or '_': give one with --node-name"))
}
