//! A configuration as asked for: drafted as flannel's JSON, read by the same strict decoder as any other, then written.

use flatnet_model::text::excerpt;
use flatnet_model::{
    BackendConfig, BackendKind, IpFamily, Lease, NetworkConfig, NetworkName, WireguardConfig, earlier_backends,
};
use serde_json::{Map, Value};

use super::{NetworkError, NetworkInfo, NetworkSpec};
use crate::flannel::{InvalidConfig, decode_config, encode_config};

/// The first VNI of networks other than `default`: where Docker's swarm begins too, clear of the small numbers that
/// people choose by hand.
const FIRST_VNI: u32 = 4097;
/// The distance from one WireGuard network's ports to the next one's: each may need one for either family.
const PORT_STEP: usize = 2;

/// The first GRE key of networks other than `default`, clear of the keys people give tunnels of their own.
const FIRST_KEY: u32 = 4097;

/// Returns the value and meaning of a new network's configuration.
pub(super) fn create(
    name: &NetworkName,
    spec: &NetworkSpec,
    others: &[&NetworkInfo],
) -> Result<(Vec<u8>, NetworkConfig), InvalidConfig> {
    if spec.cidr.is_none() && spec.cidr6.is_none() {
        return Err(InvalidConfig("a network needs an IPv4 or an IPv6 range".to_owned()));
    }
    finish(name, spec, Map::new(), others)
}

/// Returns the value and meaning of `found`'s configuration changed as asked.
pub(super) fn update(
    name: &NetworkName,
    spec: &NetworkSpec,
    found: &NetworkInfo,
    others: &[&NetworkInfo],
) -> Result<(Vec<u8>, NetworkConfig), InvalidConfig> {
    // A configuration that cannot be read is written anew rather than repaired: the request must then be complete.
    let (map, previous) = match (serde_json::from_slice(&found.config_value), &found.config) {
        (Ok(Value::Object(map)), Ok(previous)) => (map, Some(previous)),
        _ => (Map::new(), None),
    };
    let (value, mut config) = finish(name, spec, map, others)?;
    let Some(previous) = previous else { return Ok((value, config)) };
    config.before = before(previous, &config.backend, &found.leases);
    Ok((encode_config(&config, Some(&value))?, config))
}

/// Returns the earlier backends to write into a configuration that is about to have `new`: those that a lease names.
/// The hosts that hold leases know them without that. A host that joins before all have followed does not.
fn before(previous: &NetworkConfig, new: &BackendConfig, leases: &[Lease]) -> Vec<BackendConfig> {
    let is_named = |backend: &BackendConfig| leases.iter().any(|lease| lease.under(backend).is_some());
    let mut before = earlier_backends(&previous.before, &previous.backend, new);
    before.retain(is_named);
    before
}

fn finish(
    name: &NetworkName,
    spec: &NetworkSpec,
    mut map: Map<String, Value>,
    others: &[&NetworkInfo],
) -> Result<(Vec<u8>, NetworkConfig), InvalidConfig> {
    ranges(spec, &mut map)?;
    backend(name, spec, &mut map, others)?;
    reachable_from(spec, &mut map);
    let draft = Value::Object(map).to_string().into_bytes();
    let (config, _) = decode_config(&draft)?;
    if let BackendConfig::Unsupported(kind) = &config.backend {
        return Err(InvalidConfig(format!(
            "Backend.Type {kind} is not supported: use vxlan, wireguard, gre or host-gw"
        )));
    }
    Ok((encode_config(&config, Some(&draft))?, config))
}

fn reachable_from(spec: &NetworkSpec, map: &mut Map<String, Value>) {
    let Some(ranges) = &spec.reachable_from else { return };
    let mut ours = match remove(map, "Flatnet") {
        Some(Value::Object(ours)) => ours,
        _ => Map::new(),
    };
    set(&mut ours, "ReachableFrom", ranges.iter().map(ToString::to_string).collect::<Vec<_>>());
    set(map, "Flatnet", ours);
}

fn ranges(spec: &NetworkSpec, map: &mut Map<String, Value>) -> Result<(), InvalidConfig> {
    let host_bits = |field: &str, given: &dyn std::fmt::Display, meant: &dyn std::fmt::Display| {
        InvalidConfig(format!("{field} {given} has host bits set; {meant} is meant"))
    };
    let has_v4 = spec.cidr.is_some() || get(map, "Network").is_some();
    if let Some(net) = spec.cidr {
        if net != net.trunc() {
            return Err(host_bits("Network", &net, &net.trunc()));
        }
        replace_range(map, ["Network", "SubnetMin", "SubnetMax"], net.to_string());
        set(map, "EnableIPv4", true);
    } else if !has_v4 {
        set(map, "EnableIPv4", false);
    }
    if let Some(net) = spec.cidr6 {
        if net != net.trunc() {
            return Err(host_bits("IPv6Network", &net, &net.trunc()));
        }
        replace_range(map, ["IPv6Network", "IPv6SubnetMin", "IPv6SubnetMax"], net.to_string());
        set(map, "EnableIPv6", true);
    }
    if let Some(len) = spec.subnet_len {
        set(map, if has_v4 { "SubnetLen" } else { "IPv6SubnetLen" }, len);
    }
    for (value, v4, v6) in
        [(spec.subnet_min, "SubnetMin", "IPv6SubnetMin"), (spec.subnet_max, "SubnetMax", "IPv6SubnetMax")]
    {
        if let Some(address) = value {
            set(map, if address.is_ipv4() { v4 } else { v6 }, address.to_string());
        }
    }
    Ok(())
}

/// Replaces a range and drops its bounds, which mean nothing in another range.
fn replace_range(map: &mut Map<String, Value>, [network, min, max]: [&str; 3], range: String) {
    let before = get(map, network).and_then(Value::as_str).map(str::to_owned);
    if before.as_ref() != Some(&range) {
        remove(map, min);
        remove(map, max);
    }
    set(map, network, range);
}

fn backend(
    network: &NetworkName,
    spec: &NetworkSpec,
    map: &mut Map<String, Value>,
    others: &[&NetworkInfo],
) -> Result<(), InvalidConfig> {
    let mut backend = match remove(map, "Backend") {
        Some(Value::Object(backend)) => backend,
        _ => Map::new(),
    };
    let before = get(&backend, "Type").and_then(Value::as_str).unwrap_or("vxlan").to_owned();
    let kind = BackendKind::from_name(spec.backend.as_deref().unwrap_or(&before));
    if spec.backend.is_some() && kind.as_str() != before {
        backend.clear();
    }
    if let Some(json) = &spec.backend_json {
        let extra: Map<String, Value> = serde_json::from_str(json)
            .map_err(|error| InvalidConfig(format!("{:?} is not a JSON object: {error}", excerpt(json))))?;
        for (name, value) in extra {
            set(&mut backend, &name, value);
        }
    }
    set(&mut backend, "Type", kind.as_str());
    const UDP_TUNNELS: [BackendKind; 2] = [BackendKind::Vxlan, BackendKind::Wireguard];
    const TUNNELS: [BackendKind; 3] = [BackendKind::Vxlan, BackendKind::Wireguard, BackendKind::Gre];
    let numbers = [
        ("VNI", spec.vni, &[BackendKind::Vxlan] as &[_]),
        (if kind == BackendKind::Wireguard { "ListenPort" } else { "Port" }, spec.port.map(u32::from), &UDP_TUNNELS),
        ("MTU", spec.mtu, &TUNNELS),
        ("Key", spec.key, &[BackendKind::Gre]),
    ];
    for (name, value, meant_for) in numbers {
        let Some(value) = value else { continue };
        if !meant_for.contains(&kind) {
            return Err(InvalidConfig(format!("Backend.{name} means nothing for {kind}")));
        }
        set(&mut backend, name, value);
    }
    if let Some(direct) = spec.direct_routing {
        if kind != BackendKind::Vxlan {
            return Err(InvalidConfig(format!("Backend.DirectRouting means nothing for {kind}")));
        }
        set(&mut backend, "DirectRouting", direct);
    }
    if kind == BackendKind::Vxlan && get(&backend, "VNI").is_none() {
        set(&mut backend, "VNI", free_vni(network, others));
    }
    if kind == BackendKind::Wireguard && get(&backend, "ListenPort").is_none() {
        let port = free_port(others);
        set(&mut backend, "ListenPort", port);
        if get(&backend, "ListenPortV6").is_none() {
            set(&mut backend, "ListenPortV6", port.saturating_add(1));
        }
    }
    if kind == BackendKind::Gre && get(&backend, "Key").is_none() {
        set(&mut backend, "Key", free_key(network, others));
    }
    set(map, "Backend", backend);
    Ok(())
}

/// Returns flannel's 51820 (and the one after it for IPv6), else the lowest pair that no other network listens on.
fn free_port(others: &[&NetworkInfo]) -> u16 {
    let used: Vec<u16> =
        configs(others).flat_map(|config| backends(config).flat_map(|way| ports_of(config, way))).collect();
    let mut pairs = (WireguardConfig::DEFAULT_PORT..u16::MAX).step_by(PORT_STEP);
    pairs.find(|port| !used.contains(port) && !used.contains(&(port + 1))).unwrap_or(WireguardConfig::DEFAULT_PORT)
}

/// Returns the configurations of the networks of `infos`, as far as they can be read.
fn configs<'a>(infos: &[&'a NetworkInfo]) -> impl Iterator<Item = &'a NetworkConfig> {
    infos.iter().filter_map(|info| info.config.as_ref().ok())
}

/// Returns the backends for which a network has devices, its earlier ones as well.
fn backends(config: &NetworkConfig) -> impl Iterator<Item = &BackendConfig> {
    std::iter::once(&config.backend).chain(&config.before)
}

/// Returns the UDP ports on which every host of the network listens.
fn udp_ports(config: &NetworkConfig) -> Vec<u16> {
    ports_of(config, &config.backend)
}

fn ports_of(config: &NetworkConfig, backend: &BackendConfig) -> Vec<u16> {
    match backend {
        BackendConfig::Vxlan(vxlan) => vec![vxlan.port],
        BackendConfig::Wireguard(wireguard) => {
            let families = IpFamily::BOTH.into_iter().filter(|family| config.pool(*family).is_some());
            let mut ports: Vec<u16> = families.map(|family| wireguard.port_of(family)).collect();
            ports.dedup();
            ports
        }
        BackendConfig::Gre(_) | BackendConfig::HostGw | BackendConfig::Unsupported(_) => Vec::new(),
    }
}

/// Returns flannel's 1 for the network at flannel's prefix, else the lowest free from [`FIRST_VNI`] up.
fn free_vni(name: &NetworkName, others: &[&NetworkInfo]) -> u32 {
    let used: Vec<u32> = configs(others).flat_map(backends).filter_map(|way| Some(way.vni()?.get())).collect();
    if name.is_default() && !used.contains(&1) {
        return 1;
    }
    // There are more numbers than are used: one of the first `used.len() + 1` is free.
    (FIRST_VNI..).find(|vni| !used.contains(vni)).unwrap_or(FIRST_VNI)
}

/// Returns no key for the network at flannel's prefix, so that tunnels made by hand fit it, else the lowest free from
/// [`FIRST_KEY`] up.
fn free_key(name: &NetworkName, others: &[&NetworkInfo]) -> u32 {
    let used: Vec<u32> = configs(others).flat_map(backends).filter_map(|way| Some(way.gre_key()?.get())).collect();
    if name.is_default() && !used.contains(&0) {
        return 0;
    }
    (FIRST_KEY..).find(|key| !used.contains(key)).unwrap_or(FIRST_KEY)
}

/// Checks that ranges, VNI and GRE key are this network's alone.
pub(super) fn check_against(
    name: &NetworkName,
    config: &NetworkConfig,
    others: &[&NetworkInfo],
) -> Result<(), NetworkError> {
    for other in others {
        let Ok(other_config) = &other.config else { continue };
        for pool in config.pools() {
            for other_pool in other_config.pools() {
                let (cidr, other_cidr) = (pool.network(), other_pool.network());
                if cidr.contains(&other_cidr) || other_cidr.contains(&cidr) {
                    let other = other.keys.network().clone();
                    return Err(NetworkError::Overlap { name: name.clone(), cidr, other, other_cidr });
                }
            }
        }
        if let Some(vni) = config.backend.vni().filter(|vni| other_config.backend.vni() == Some(*vni)) {
            let other = other.keys.network().clone();
            return Err(NetworkError::VniInUse { name: name.clone(), vni: vni.get(), other });
        }
        let is_wireguard = |config: &NetworkConfig| matches!(config.backend, BackendConfig::Wireguard(_));
        let theirs = udp_ports(other_config);
        // Networks over VXLAN share a port: the VNI tells them apart.
        if (is_wireguard(config) || is_wireguard(other_config))
            && let Some(port) = udp_ports(config).into_iter().find(|port| theirs.contains(port))
        {
            let other = other.keys.network().clone();
            return Err(NetworkError::PortInUse { name: name.clone(), port, other });
        }
        if let Some(key) = config.backend.gre_key().filter(|key| other_config.backend.gre_key() == Some(*key)) {
            let other = other.keys.network().clone();
            return Err(NetworkError::KeyInUse { name: name.clone(), key: key.get(), other });
        }
    }
    Ok(())
}

fn get<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    map.iter().find(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_null()).map(|(_, value)| value)
}

fn remove(map: &mut Map<String, Value>, name: &str) -> Option<Value> {
    let key = map.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned()?;
    map.remove(&key)
}

fn set(map: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    while remove(map, name).is_some() {}
    map.insert(name.to_owned(), value.into());
}
