//! A network's `config` value (flannel `pkg/subnet/config.go`, `pkg/backend/vxlan/vxlan.go`,
//! `pkg/backend/wireguard/wireguard.go`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatnet_model::text::excerpt;
use flatnet_model::{
    BackendConfig, BackendKind, EARLIER_BACKENDS, GreConfig, GreKey, Mtu, NetworkConfig, Pool, PresharedKey, Vni,
};
use flatnet_model::{VxlanConfig, WireguardConfig, WireguardMode};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::fields::{Fields, Writer};

/// The most bytes a configuration may have: a hundred times what flannel's largest documented one has.
const VALUE_LIMIT: usize = 64 * 1024;

/// The most ranges that may reach a network from outside: each is in the rules of every host.
const REACHABLE_FROM_LIMIT: usize = 64;

/// Something in a usable configuration that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWarning {
    /// A stable name in kebab-case.
    pub code: &'static str,
    /// The warning, in one sentence.
    pub message: String,
    /// The hint what to do about it.
    pub hint: String,
}

/// The reason why a configuration cannot be used; the text names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(pub String);

/// Reads flannel's network configuration, defaults applied as flanneld applies them.
pub fn decode_config(value: &[u8]) -> Result<(NetworkConfig, Vec<ConfigWarning>), InvalidConfig> {
    let (config, warnings) = decode_in_force(value)?;
    for pool in config.pools() {
        pool.check_range().map_err(|error| InvalidConfig(error.to_string()))?;
    }
    Ok((config, warnings))
}

/// Reads a configuration that is in force already. Its range may be any, since containers live in it.
pub fn decode_in_force(value: &[u8]) -> Result<(NetworkConfig, Vec<ConfigWarning>), InvalidConfig> {
    let mut warnings = Vec::new();
    decode(value, &mut warnings).map(|config| (config, warnings)).map_err(InvalidConfig)
}

fn decode(value: &[u8], warnings: &mut Vec<ConfigWarning>) -> Result<NetworkConfig, String> {
    let mut fields = Fields::parse(value, VALUE_LIMIT)?;
    let v4 = fields.boolean("EnableIPv4")?.unwrap_or(true);
    let v6 = fields.boolean("EnableIPv6")?.unwrap_or(false);
    let pool4 = read_pool::<Ipv4Net, Ipv4Addr>(&mut fields, &V4_NAMES, v4, warnings)?;
    let pool6 = read_pool::<Ipv6Net, Ipv6Addr>(&mut fields, &V6_NAMES, v6, warnings)?;
    if pool4.is_none() && pool6.is_none() {
        return Err("EnableIPv4 and EnableIPv6 are both false: the network has no addresses".to_owned());
    }
    let backend = read_backend(fields.object("Backend", "Backend.")?, warnings)?;
    let (before, reachable_from) = match fields.object("Flatnet", "Flatnet.")? {
        Some(mut ours) => (read_before(&mut ours)?, read_reachable_from(&mut ours)?),
        None => (Vec::new(), Vec::new()),
    };
    Ok(NetworkConfig { v4: pool4, v6: pool6, backend, before, reachable_from })
}

/// Reads the earlier backends. Those of kinds that only a later version knows are left out, and so is what flannel
/// would warn of.
fn read_before(ours: &mut Fields) -> Result<Vec<BackendConfig>, String> {
    let mut before = Vec::new();
    for fields in ours.objects("Before", EARLIER_BACKENDS, "Flatnet.Before.")? {
        let backend =
            read_backend(Some(fields), &mut Vec::new()).map_err(|error| format!("in Flatnet.Before: {error}"))?;
        if !matches!(backend, BackendConfig::Unsupported(_)) {
            before.push(backend);
        }
    }
    Ok(before)
}

/// Reads the ranges outside; an address is a range of one.
fn read_reachable_from(ours: &mut Fields) -> Result<Vec<IpNet>, String> {
    let texts = ours.texts("ReachableFrom", REACHABLE_FROM_LIMIT, "a range such as 192.168.1.0/24")?;
    let range = |text: String| {
        let address = text.parse::<IpAddr>().ok().map(IpNet::from);
        let range = address.or_else(|| text.parse().ok());
        let shown = || format!("Flatnet.ReachableFrom {:?}", excerpt(&text));
        let range: IpNet = range.ok_or_else(|| format!("{} is not a range such as 192.168.1.0/24", shown()))?;
        match range == range.trunc() {
            true => Ok(range),
            false => Err(format!("{} has host bits set; {} is meant", shown(), range.trunc())),
        }
    };
    texts.into_iter().map(range).collect()
}

struct PoolNames {
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    enable: &'static str,
    example: &'static str,
    address: &'static str,
}

const V4_NAMES: PoolNames = PoolNames {
    network: "Network",
    len: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    enable: "EnableIPv4",
    example: "an IPv4 range such as 10.100.0.0/16",
    address: "an IPv4 address",
};

const V6_NAMES: PoolNames = PoolNames {
    network: "IPv6Network",
    len: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    enable: "EnableIPv6",
    example: "an IPv6 range such as fd00:100::/48",
    address: "an IPv6 address",
};

fn read_pool<N, A>(
    fields: &mut Fields,
    names: &PoolNames,
    enabled: bool,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Option<Pool>, String>
where
    N: std::str::FromStr + Into<IpNet>,
    A: std::str::FromStr + Into<IpAddr>,
{
    let network = fields.parsed::<N>(names.network, names.example)?.map(Into::into);
    let len = fields.number(names.len)?;
    let min = fields.parsed::<A>(names.min, names.address)?.map(Into::into);
    let max = fields.parsed::<A>(names.max, names.address)?.map(Into::into);
    let network: IpNet = match (enabled, network) {
        (true, Some(network)) => network,
        (true, None) => {
            let (enable, network) = (names.enable, names.network);
            return Err(format!("{network} is missing (or set {enable} to false if the network has none)"));
        }
        (false, Some(_)) => {
            warnings.push(ConfigWarning {
                code: "range-not-enabled",
                message: format!("{} is set but {} is not true, so it is not used", names.network, names.enable),
                hint: format!("set {} to true, or remove {}", names.enable, names.network),
            });
            return Ok(None);
        }
        (false, None) => return Ok(None),
    };
    if network != network.trunc() {
        // flannel takes the range that contains the address (net.ParseCIDR), so a cluster may run with it.
        warnings.push(ConfigWarning {
            code: "range-has-host-bits",
            message: format!("{} {network} has host bits set and is read as {}", names.network, network.trunc()),
            hint: format!("write {}", network.trunc()),
        });
    }
    Pool::new(network.trunc(), len, min, max).map(Some).map_err(|error| error.to_string())
}

fn read_backend(fields: Option<Fields>, warnings: &mut Vec<ConfigWarning>) -> Result<BackendConfig, String> {
    let (kind, fields) = match fields {
        None => (None, None),
        Some(mut fields) => (fields.text("Type")?.filter(|kind| !kind.is_empty()), Some(fields)),
    };
    if kind.is_none() {
        warnings.push(ConfigWarning {
            code: "backend-type-missing",
            message: "Backend.Type is missing: it is read as vxlan, but flanneld reads it as udp".to_owned(),
            hint: "write \"Backend\":{\"Type\":\"vxlan\",\"VNI\":1}".to_owned(),
        });
    }
    match BackendKind::from_name(kind.as_deref().unwrap_or("vxlan")) {
        BackendKind::Vxlan => match fields {
            Some(fields) => read_vxlan(fields, warnings).map(BackendConfig::Vxlan),
            None => Ok(BackendConfig::Vxlan(VxlanConfig::default())),
        },
        BackendKind::HostGw => Ok(BackendConfig::HostGw),
        BackendKind::Gre => fields.map_or(Ok(GreConfig::default()), read_gre).map(BackendConfig::Gre),
        BackendKind::Wireguard => match fields {
            Some(fields) => read_wireguard(fields).map(BackendConfig::Wireguard),
            None => Ok(BackendConfig::Wireguard(WireguardConfig::default())),
        },
        kind @ BackendKind::Other(_) => Ok(BackendConfig::Unsupported(kind)),
    }
}

fn read_vxlan(mut fields: Fields, warnings: &mut Vec<ConfigWarning>) -> Result<VxlanConfig, String> {
    let vni = match fields.number32("VNI")? {
        None => Vni::FLANNEL_DEFAULT,
        Some(vni) => Vni::new(vni).map_err(|error| format!("Backend.VNI: {error}"))?,
    };
    let port = match fields.number("Port")? {
        None | Some(0) => VxlanConfig::DEFAULT_PORT,
        Some(port) => read_port("Port", port)?,
    };
    let mtu = read_mtu(&mut fields)?;
    let direct_routing = fields.boolean("DirectRouting")?.unwrap_or(false);
    for name in ["Learning", "GBP"] {
        if fields.boolean(name)?.unwrap_or(false) {
            warnings.push(ConfigWarning {
                code: "backend-option-ignored",
                message: format!("Backend.{name} is not supported and stays off"),
                hint: format!("remove {name}; every peer's entry is permanent, so nothing needs to be learnt"),
            });
        }
    }
    Ok(VxlanConfig { vni, port, mtu, direct_routing })
}

fn read_wireguard(mut fields: Fields) -> Result<WireguardConfig, String> {
    let mut port = |name: &str, default: u16| match fields.number(name)? {
        None => Ok(default),
        // Peers must know where to send: a port of the kernel's choosing would be another one after every start.
        Some(port) => read_port(name, port),
    };
    let (port, port_v6) =
        (port("ListenPort", WireguardConfig::DEFAULT_PORT)?, port("ListenPortV6", WireguardConfig::DEFAULT_PORT_V6)?);
    let mtu = match fields.number32("MTU")? {
        None | Some(0) => None,
        Some(mtu) => Some(Mtu::new(mtu).map_err(|error| format!("Backend.MTU: {error}"))?),
    };
    let keepalive_secs = fields.number("PersistentKeepaliveInterval")?.unwrap_or_default();
    let keepalive_secs = u16::try_from(keepalive_secs)
        .map_err(|_| format!("Backend.PersistentKeepaliveInterval {keepalive_secs} is not in 0..=65535 seconds"))?;
    let mode = match fields.text("Mode")?.filter(|mode| !mode.is_empty()) {
        None => WireguardMode::default(),
        Some(mode) => WireguardMode::from_name(&mode)
            .ok_or_else(|| format!("Backend.Mode {:?} is not separate, auto, ipv4 or ipv6", excerpt(&mode)))?,
    };
    if mode == WireguardMode::Separate && port == port_v6 {
        return Err(format!(
            "Backend.ListenPort and Backend.ListenPortV6 are both {port}: one port carries one tunnel"
        ));
    }
    // The error does not show the value: it is a secret all the same.
    let psk = match fields.text("PSK")?.filter(|psk| !psk.is_empty()) {
        None => None,
        Some(psk) => {
            Some(psk.parse::<PresharedKey>().map_err(|error| format!("Backend.PSK: {error}; `wg genpsk` makes one"))?)
        }
    };
    Ok(WireguardConfig { port, port_v6, mtu, keepalive_secs, mode, psk })
}

/// Reads a UDP port that tunnels listen on. Every host opens it, so it must be none that a service of the host may
/// have. Those below 1024 are privileged (net.ipv4.ip_unprivileged_port_start), and DNS, portmap and SNMP are among
/// them.
fn read_port(name: &str, port: u64) -> Result<u16, String> {
    let number = u16::try_from(port).ok().filter(|port| *port != 0);
    let port = number.ok_or_else(|| format!("Backend.{name} {port} is not in {LEAST_PORT}..=65535"))?;
    match port < LEAST_PORT {
        true => Err(format!(
            "Backend.{name} {port} is a service's, which every host would open: tunnels listen on {LEAST_PORT}..=65535"
        )),
        false => Ok(port),
    }
}

/// The first port that needs no privilege to listen on.
const LEAST_PORT: u16 = 1024;

fn read_gre(mut fields: Fields) -> Result<GreConfig, String> {
    let key = fields.number32("Key")?.map_or(GreKey::NONE, GreKey::new);
    Ok(GreConfig { key, mtu: read_mtu(&mut fields)? })
}

/// Reads an MTU. 0 is written by people who mean "whatever fits".
fn read_mtu(fields: &mut Fields) -> Result<Option<Mtu>, String> {
    match fields.number32("MTU")? {
        None | Some(0) => Ok(None),
        Some(mtu) => Mtu::new(mtu).map(Some).map_err(|error| format!("Backend.MTU: {error}")),
    }
}

/// Writes `config`: Type and VNI always explicitly. Fields of `previous` that are not ours to set are kept, those of
/// its backend only while the type stays.
pub fn encode_config(config: &NetworkConfig, previous: Option<&[u8]>) -> Result<Vec<u8>, InvalidConfig> {
    let previous = previous.map(|value| Fields::parse(value, VALUE_LIMIT)).transpose().map_err(InvalidConfig)?;
    let Known { backend, ours, rest } = take_known(previous).map_err(InvalidConfig)?;
    let mut out = Writer::new();
    if config.v4.is_none() {
        out.field("EnableIPv4", false);
    }
    if config.v6.is_some() {
        out.field("EnableIPv6", true);
    }
    if let Some(pool) = &config.v4 {
        write_pool(&mut out, pool, &V4_NAMES);
    }
    if let Some(pool) = &config.v6 {
        write_pool(&mut out, pool, &V6_NAMES);
    }
    out.raw("Backend", &write_backend(&config.backend, backend).map_err(InvalidConfig)?);
    if !config.before.is_empty() || !config.reachable_from.is_empty() || !ours.is_empty() {
        out.raw("Flatnet", &write_ours(config, ours).map_err(InvalidConfig)?);
    }
    for (name, value) in rest {
        out.field(&name, value);
    }
    Ok(out.end().into_bytes())
}

type Unknown = serde_json::Map<String, serde_json::Value>;

/// The fields of a previous value besides ranges.
#[derive(Default)]
struct Known {
    backend: Option<Fields>,
    /// The fields a later version wrote into our own part.
    ours: Unknown,
    /// Fields that are not ours.
    rest: Unknown,
}

fn take_known(previous: Option<Fields>) -> Result<Known, String> {
    let Some(mut fields) = previous else { return Ok(Known::default()) };
    for names in [&V4_NAMES, &V6_NAMES] {
        for name in [names.network, names.len, names.min, names.max, names.enable] {
            fields.take(name)?;
        }
    }
    let backend = fields.object("Backend", "Backend.")?;
    let ours = match fields.object("Flatnet", "Flatnet.")? {
        Some(mut ours) => {
            ours.take("Before")?;
            ours.take("ReachableFrom")?;
            ours.rest()
        }
        None => Unknown::new(),
    };
    Ok(Known { backend, ours, rest: fields.rest() })
}

fn write_ours(config: &NetworkConfig, rest: Unknown) -> Result<String, String> {
    let mut out = Writer::new();
    if !config.before.is_empty() {
        let before: Vec<String> =
            config.before.iter().map(|backend| write_backend(backend, None)).collect::<Result<_, _>>()?;
        out.raw("Before", &format!("[{}]", before.join(",")));
    }
    if !config.reachable_from.is_empty() {
        let ranges: Vec<String> = config.reachable_from.iter().map(ToString::to_string).collect();
        out.field("ReachableFrom", ranges);
    }
    for (name, value) in rest {
        out.field(&name, value);
    }
    Ok(out.end())
}

fn write_pool(out: &mut Writer, pool: &Pool, names: &PoolNames) {
    out.field(names.network, pool.network().to_string());
    out.field(names.len, pool.subnet_len());
    let usual = Pool::new(pool.network(), Some(u64::from(pool.subnet_len())), None, None).ok();
    if usual.is_none_or(|usual| usual.min() != pool.min()) {
        out.field(names.min, pool.min().to_string());
    }
    if usual.is_none_or(|usual| usual.max() != pool.max()) {
        out.field(names.max, pool.max().to_string());
    }
}

fn write_backend(backend: &BackendConfig, previous: Option<Fields>) -> Result<String, String> {
    let kind = backend.kind();
    let mut out = Writer::new();
    out.field("Type", kind.as_str());
    let mut rest = Unknown::new();
    if let Some(mut fields) = previous {
        let before = fields.text("Type")?.unwrap_or_else(|| "vxlan".to_owned());
        if before == kind.as_str() || excerpt(&before) == kind.as_str() {
            for name in known_options(&kind) {
                fields.take(name)?;
            }
            rest = fields.rest();
        }
    }
    if let BackendConfig::Wireguard(wireguard) = backend {
        write_wireguard(&mut out, wireguard);
    }
    if let BackendConfig::Vxlan(vxlan) = backend {
        out.field("VNI", vxlan.vni.get());
        if vxlan.port != VxlanConfig::DEFAULT_PORT {
            out.field("Port", vxlan.port);
        }
        if let Some(mtu) = vxlan.mtu {
            out.field("MTU", mtu.get());
        }
        if vxlan.direct_routing {
            out.field("DirectRouting", true);
        }
    }
    if let BackendConfig::Gre(gre) = backend {
        out.field("Key", gre.key.get());
        if let Some(mtu) = gre.mtu {
            out.field("MTU", mtu.get());
        }
    }
    for (name, value) in rest {
        out.field(&name, value);
    }
    Ok(out.end())
}

fn write_wireguard(out: &mut Writer, wireguard: &WireguardConfig) {
    out.field("ListenPort", wireguard.port);
    if wireguard.port_v6 != WireguardConfig::DEFAULT_PORT_V6 {
        out.field("ListenPortV6", wireguard.port_v6);
    }
    if let Some(mtu) = wireguard.mtu {
        out.field("MTU", mtu.get());
    }
    if wireguard.keepalive_secs != 0 {
        out.field("PersistentKeepaliveInterval", wireguard.keepalive_secs);
    }
    if wireguard.mode != WireguardMode::default() {
        out.field("Mode", wireguard.mode.as_str());
    }
    if let Some(psk) = wireguard.psk {
        out.field("PSK", psk.to_base64());
    }
}

/// Returns the fields of `Backend` that are ours to set for a type.
fn known_options(kind: &BackendKind) -> &'static [&'static str] {
    match kind {
        BackendKind::Vxlan => &["VNI", "Port", "MTU", "DirectRouting"],
        BackendKind::Gre => &["Key", "MTU"],
        BackendKind::Wireguard => &["ListenPort", "ListenPortV6", "MTU", "PersistentKeepaliveInterval", "Mode", "PSK"],
        BackendKind::HostGw | BackendKind::Other(_) => &[],
    }
}

#[cfg(test)]
mod tests;
