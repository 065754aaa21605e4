//! Checks of which networks may be programmed on this host at all: none that contradicts another, and none that would
//! cut the host off.

use std::net::IpAddr;

use flatnet_model::{IpFamily, NetworkConfig, NetworkName};
use ipnet::IpNet;

use super::{HostInput, NetworkInput, first_address, range};
use crate::backend;
use crate::facts::Interface;
use crate::host_ranges;
use crate::problem::{Problem, ProblemCode};

/// The networks accepted so far.
#[derive(Debug, Default)]
pub(super) struct Accepted<'a> {
    networks: Vec<NetworkInput<'a>>,
}

impl<'a> Accepted<'a> {
    /// Accepts `network`, or returns why it cannot be programmed beside those accepted before it. Problems that do not
    /// stand in the way go to `problems`.
    ///
    /// Addresses that this host uses itself are no longer a reason to refuse. The network holds a lease, so it ran
    /// beside them or was there before them, and taking it down would harm its containers and nobody else.
    pub(super) fn admit(
        &mut self,
        host: &HostInput<'_>,
        network: NetworkInput<'a>,
        problems: &mut Vec<Problem>,
    ) -> Result<(), Problem> {
        for other in &self.networks {
            contradicts(&network, other)?;
        }
        own_inside(&network)?;
        for interface in host.facts.interfaces.iter().filter(|interface| !interface.ours) {
            inside(host, &network, interface, problems);
        }
        problems.extend(vital_inside(host, &network));
        self.networks.push(network);
        Ok(())
    }

    /// Returns true if `network` can have the tunnels of `config` too. It has those of the configurations `beside`, and
    /// other networks have theirs.
    pub(super) fn has_room(
        &self,
        network: &NetworkInput<'_>,
        config: &NetworkConfig,
        beside: &[NetworkConfig],
    ) -> bool {
        let candidate = NetworkInput { config, ..*network };
        let mut others = self.networks.iter().filter(|other| other.name != network.name);
        others.all(|other| same_tunnel(&candidate, other).is_ok())
            && beside.iter().all(|config| same_tunnel(&candidate, &NetworkInput { config, ..*network }).is_ok())
    }

    /// Checks that a network in which this host holds no lease yet could be programmed beside those accepted.
    pub(super) fn consider(&self, host: &HostInput<'_>, candidate: &NetworkInput<'_>) -> Result<(), Problem> {
        for other in &self.networks {
            contradicts(candidate, other)?;
        }
        swallows_vital(host, candidate.name, None, candidate.config)?;
        for interface in host.facts.interfaces.iter().filter(|interface| !interface.ours) {
            for prefix in &interface.addresses {
                let Some(pool) = candidate.config.pool(IpFamily::of(prefix.addr())) else { continue };
                let may_be_ours =
                    interface.name != host.underlay.device && may_be_of_a_subnet(interface, *prefix, pool);
                if hands_out(pool, *prefix) && !may_be_ours {
                    return Err(covers(candidate.name, pool.network(), interface, *prefix));
                }
            }
        }
        Ok(())
    }

    /// Returns the ranges of the accepted networks.
    pub(super) fn ranges(&self) -> Vec<IpNet> {
        self.networks.iter().flat_map(range::of).collect()
    }
}

/// Returns true if `prefix` may be there because of the subnet that this host is about to get. It may be the first
/// address of a range that fits into one subnet, as a container bridge has. Or it may be the subnet's own address
/// alone, as on the device of a flannel that ran here; that one is reported elsewhere and is replaced by `--take-over`.
fn may_be_of_a_subnet(interface: &Interface, prefix: IpNet, pool: &flatnet_model::Pool) -> bool {
    /// A bridge and one container take four addresses.
    const HOST_BITS: u8 = 2;
    let fits = prefix.prefix_len() >= pool.subnet_len() && prefix.max_prefix_len() - prefix.prefix_len() >= HOST_BITS;
    let is_bridges = fits && first_address(prefix.trunc()) == prefix.addr();
    let is_alone = prefix.prefix_len() == prefix.max_prefix_len();
    let subnet = IpNet::new(prefix.addr(), pool.subnet_len()).map(|subnet| subnet.trunc().addr());
    !interface.loopback && (is_bridges || is_alone && subnet == Ok(prefix.addr()))
}

/// Returns true if a container may have the address of `prefix`.
fn hands_out(pool: &flatnet_model::Pool, prefix: IpNet) -> bool {
    pool.hands_out(IpNet::from(prefix.addr()))
}

/// Checks that `network` could have the configuration `new` without taking an address of this host that it does not
/// take already.
pub(super) fn swallows(host: &HostInput<'_>, network: &NetworkInput<'_>, new: &NetworkConfig) -> Result<(), Problem> {
    swallows_vital(host, network.name, Some(network.config), new)?;
    for interface in host.facts.interfaces.iter().filter(|interface| !interface.ours) {
        for prefix in &interface.addresses {
            let family = IpFamily::of(prefix.addr());
            let Some(pool) = new.pool(family).filter(|pool| hands_out(pool, *prefix)) else { continue };
            let had = network.config.pool(family).is_some_and(|pool| hands_out(pool, *prefix));
            let may_be_ours = interface.name != host.underlay.device
                && (may_be_of_a_subnet(interface, *prefix, pool)
                    || network.own.of(family).is_some_and(|own| own.contains(prefix)));
            if !had && !may_be_ours {
                return Err(covers(network.name, pool.network(), interface, *prefix));
            }
        }
    }
    Ok(())
}

/// Checks that the network could have the configuration `new` while this host still reaches the store, its default
/// gateways and its resolvers. `now` is the configuration it has.
fn swallows_vital(
    host: &HostInput<'_>,
    name: &NetworkName,
    now: Option<&NetworkConfig>,
    new: &NetworkConfig,
) -> Result<(), Problem> {
    let covers = |config: &NetworkConfig, address| config.pools().any(|pool| pool.hands_out(IpNet::from(address)));
    let had = |address| now.is_some_and(|now| covers(now, address));
    let vital = host_ranges::vital(host.facts, host.store);
    let Some((address, what)) = vital.into_iter().find(|(address, _)| covers(new, *address) && !had(*address)) else {
        return Ok(());
    };
    let range = new.pool(IpFamily::of(address)).map(|pool| pool.network().to_string()).unwrap_or_default();
    Err(Problem::new(
        ProblemCode::NetworkCoversHost,
        format!("network {name} ({range}) covers {address}, {what}: programming it would cut this host off"),
        format!("give the network a range that no host uses: agent network update {name} --cidr …"),
        name,
    ))
}

/// Checks that the two networks can be on one host.
pub(super) fn contradicts(network: &NetworkInput<'_>, other: &NetworkInput<'_>) -> Result<(), Problem> {
    overlap(network, other)?;
    same_tunnel(network, other)
}

fn overlap(network: &NetworkInput<'_>, other: &NetworkInput<'_>) -> Result<(), Problem> {
    for (a, b) in network.config.pools().flat_map(|a| other.config.pools().map(move |b| (a.network(), b.network()))) {
        if a.contains(&b) || b.contains(&a) {
            return Err(Problem::new(
                ProblemCode::NetworkOverlap,
                format!("network {} ({a}) overlaps network {} ({b}), which was joined first", network.name, other.name),
                "give one of them another range, or do not join both on one host",
                network.name,
            ));
        }
    }
    Ok(())
}

/// Checks the tunnels. Two devices whose packets have one identifier (a VNI, a key) cannot be on one host over one
/// underlay family. Nor can anything share a port with a device that takes all that comes to it.
fn same_tunnel(network: &NetworkInput<'_>, other: &NetworkInput<'_>) -> Result<(), Problem> {
    let (one, two) = (&network.config.backend, &other.config.backend);
    let others = backend::udp_ports(other.config);
    if (backend::encrypts(one) || backend::encrypts(two))
        && let Some(port) = backend::udp_ports(network.config).into_iter().find(|port| others.contains(port))
    {
        return Err(Problem::new(
            ProblemCode::PortConflict,
            format!("networks {} and {} both listen on UDP port {port}", other.name, network.name),
            format!("agent network update {} --port N, with an N no other network has", network.name),
            network.name,
        ));
    }
    let both = |family| network.config.pool(family).is_some() && other.config.pool(family).is_some();
    let clash = backend::clash(one, two).filter(|_| IpFamily::BOTH.into_iter().any(both));
    clash.map_or(Ok(()), |clash| {
        Err(Problem::new(
            clash.code,
            format!("networks {} and {} both have {}", other.name, network.name, clash.id),
            format!("agent network update {} {} N, with an N no other network has", network.name, clash.option),
            network.name,
        ))
    })
}

/// Checks that our own subnets are inside the network: the configuration may have moved since the lease was taken.
fn own_inside(network: &NetworkInput<'_>) -> Result<(), Problem> {
    for pool in network.config.pools() {
        let inside = network.own.of(pool.family()).is_some_and(|own| pool.network().contains(&own));
        if !inside {
            return Err(Problem::new(
                ProblemCode::OwnSubnetOutside,
                format!(
                    "network {}: this host's lease {} has no subnet of {}",
                    network.name,
                    network.own,
                    pool.network()
                ),
                "agent leave --renumber takes a subnet of the network as it is now",
                network.name,
            ));
        }
    }
    Ok(())
}

/// Reports the addresses of `interface` that are in the network's range, and leaves them alone.
fn inside(host: &HostInput<'_>, network: &NetworkInput<'_>, interface: &Interface, problems: &mut Vec<Problem>) {
    for prefix in &interface.addresses {
        let family = IpFamily::of(prefix.addr());
        let Some(pool) = network.config.pool(family) else { continue };
        let range = pool.network();
        if !hands_out(pool, *prefix) {
            continue;
        }
        if interface.name != host.underlay.device {
            // A container engine's bridge is meant to be on the subnet we leased.
            if network.own.of(family).is_some_and(|own| own.contains(prefix)) {
                continue;
            }
            if pool.holds(prefix.trunc()) && first_address(prefix.trunc()) == prefix.addr() {
                problems.push(left_over(network.name, interface, *prefix));
                continue;
            }
        }
        problems.push(Problem::new(
            ProblemCode::NetworkCoversHost,
            format!(
                "network {} ({range}) covers {prefix}, the address of {}: the network goes on, but its containers and that \
                 address do not reach each other",
                network.name, interface.name
            ),
            format!("take the address away (ip address del {prefix} dev {}), or give the network another range", interface.name),
            network.name,
        ));
    }
}

/// Reports the addresses vital to this host that the network hands out. They are left out of what the network takes.
fn vital_inside(host: &HostInput<'_>, network: &NetworkInput<'_>) -> Vec<Problem> {
    let inside = range::vital_inside(host, network);
    let say = |(address, what): (IpAddr, &str)| {
        Problem::new(
            ProblemCode::NetworkCoversHost,
            format!("network {} covers {address}, {what}: that address is left out of it here", network.name),
            format!("give the network a range that no host uses: agent network update {} --cidr …", network.name),
            network.name,
        )
    };
    inside.into_iter().map(say).collect()
}

/// Makes the problem for a lease in `range` that must not be taken because an address of this host is in it.
fn covers(name: &NetworkName, range: IpNet, interface: &Interface, prefix: IpNet) -> Problem {
    Problem::new(
        ProblemCode::NetworkCoversHost,
        format!(
            "network {name} ({range}) covers {prefix}, the address of {}: programming it would cut this host off",
            interface.name
        ),
        "give the network a range no host uses: agent network create NAME --cidr …",
        name,
    )
}

/// Reports a container bridge that still has a subnet this host held before. It is harmless to other hosts (the
/// bridge's own route wins on this host), but its containers are not reachable.
fn left_over(name: &NetworkName, interface: &Interface, prefix: IpNet) -> Problem {
    Problem::new(
        ProblemCode::StaleBridge,
        format!("network {name}: {} has {prefix}, which is not this host's subnet", interface.name),
        "restart the container engine so that it reads subnet.env again",
        interface.name,
    )
}
