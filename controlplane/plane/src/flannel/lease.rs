//! A lease's value (flannel `pkg/lease/lease.go`: `LeaseAttrs`), and the change that a watch's event stands for.

use std::net::{Ipv4Addr, Ipv6Addr};

use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::{Change, ConfigState};
use flatnet_model::text::excerpt;
use flatnet_model::{
    BackendData, BackendKind, Besides, EARLIER_BACKENDS, GreKey, Lease, Mac, Owner, Publication, SubnetKey, Vni,
    WireguardKey,
};
use serde_json::Value;

use super::config::decode_config;
use super::fields::{Fields, Writer};
use crate::store::{KeyValue, WatchEvent};

/// The longest value a lease may have, in bytes: fifty times what flannel and we write.
const VALUE_LIMIT: usize = 16 * 1024;
/// The longest key, in bytes: a dual stack lease under a long prefix has about 150.
const KEY_LIMIT: usize = 256;
/// The longest name of a node, in bytes: that of a DNS name (RFC 1035).
const NAME_LIMIT: usize = 253;
/// Version of our own part of the value.
const VERSION: u32 = 1;

/// The reason why a lease's value cannot be used; the text names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidLease(pub String);

/// Reads the value of the lease on `subnets`.
pub fn decode_lease(subnets: SubnetKey, kv: &KeyValue) -> Result<Lease, InvalidLease> {
    decode(subnets, kv).map_err(InvalidLease)
}

fn decode(subnets: SubnetKey, kv: &KeyValue) -> Result<Lease, String> {
    let mut fields = Fields::parse(&kv.value, VALUE_LIMIT)?;
    let public_ipv6 = fields.parsed("PublicIPv6", "an IPv6 address")?;
    let public_ip = fields.parsed("PublicIP", "an IPv4 address")?;
    // A node without IPv4 is written by flannel with the zero value of its address type.
    let public_ip = public_ip.filter(|ip: &Ipv4Addr| !(ip.is_unspecified() && public_ipv6.is_some()));
    if public_ip.is_none() && public_ipv6.is_none() {
        return Err("PublicIP is missing".to_owned());
    }
    if let Some(ip) = public_ip.filter(|ip| !is_usable_v4(*ip)) {
        return Err(format!("PublicIP {ip} is not an address a host can have"));
    }
    if let Some(ip) = public_ipv6.filter(|ip| !is_usable_v6(*ip)) {
        return Err(format!("PublicIPv6 {ip} is not an address a host can have"));
    }
    // flannel omits an empty type, and reservations made by hand have none.
    let backend = BackendKind::from_name(&fields.text("BackendType")?.unwrap_or_default());
    let (data, data_v6) = read_data(&backend, &mut fields)?;
    let (owner, besides) = match fields.object("Flatnet", "Flatnet.")? {
        Some(ours) => read_ours(ours).map(|(owner, besides)| (Some(owner), besides))?,
        None => (None, Vec::new()),
    };
    Ok(Lease {
        subnets,
        public_ip,
        public_ipv6,
        backend,
        data,
        data_v6,
        besides,
        owner,
        etcd_lease: kv.lease,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
    })
}

/// Reads the data needed to reach a node by `backend`, over IPv4 and over IPv6.
fn read_data(backend: &BackendKind, fields: &mut Fields) -> Result<(BackendData, BackendData), String> {
    let read = match backend {
        BackendKind::Vxlan => read_vxlan,
        BackendKind::Wireguard => read_wireguard,
        BackendKind::Gre => read_gre,
        BackendKind::HostGw | BackendKind::Other(_) => return Ok((BackendData::None, BackendData::None)),
    };
    let data = read(fields.object("BackendData", "BackendData.")?)?;
    let data_v6 = read(fields.object("BackendV6Data", "BackendV6Data.")?)?;
    // A host that was set up by hand may publish nothing with gre.
    if *backend != BackendKind::Gre && data == BackendData::None && data_v6 == BackendData::None {
        return Err(format!("BackendData is missing, which {backend} needs"));
    }
    Ok((data, data_v6))
}

fn is_usable_v4(ip: Ipv4Addr) -> bool {
    // 0.0.0.0/8 is "this network" (RFC 1122), 240.0.0.0/4 reserved (RFC 1112) and with it the broadcast address.
    ip.octets()[0] != 0 && ip.octets()[0] < 240 && !ip.is_loopback() && !ip.is_multicast()
}

fn is_usable_v6(ip: Ipv6Addr) -> bool {
    // A link-local address means nothing without the interface it belongs to, which a lease does not carry.
    !ip.is_unspecified()
        && !ip.is_loopback()
        && !ip.is_multicast()
        && !ip.is_unicast_link_local()
        && ip.to_ipv4_mapped().is_none()
}

fn read_vxlan(fields: Option<Fields>) -> Result<BackendData, String> {
    let Some(mut fields) = fields else { return Ok(BackendData::None) };
    let vni = fields.number32("VNI")?.map(Vni::new).transpose().map_err(|error| error.to_string())?;
    let mac: Mac = fields.parsed("VtepMAC", "an Ethernet address")?.ok_or("VtepMAC is missing")?;
    if !mac.is_unicast() {
        return Err(format!("VtepMAC {mac} is not one station's address"));
    }
    Ok(BackendData::Vxlan { vni, mac })
}

fn read_wireguard(fields: Option<Fields>) -> Result<BackendData, String> {
    let Some(mut fields) = fields else { return Ok(BackendData::None) };
    let public_key: WireguardKey =
        fields.parsed("PublicKey", "a WireGuard key (32 bytes in base64)")?.ok_or("PublicKey is missing")?;
    let port = match fields.number("Port")? {
        None | Some(0) => None,
        Some(port) => Some(u16::try_from(port).map_err(|_| format!("Port {port} is not in 1..=65535"))?),
    };
    Ok(BackendData::Wireguard { public_key, port })
}

/// Reads GRE's data. A host that was set up by hand publishes none: it is taken to use the network's own key.
fn read_gre(fields: Option<Fields>) -> Result<BackendData, String> {
    let Some(mut fields) = fields else { return Ok(BackendData::None) };
    Ok(match fields.number32("Key")? {
        Some(key) => BackendData::Gre { key: GreKey::new(key) },
        None => BackendData::None,
    })
}

fn read_ours(mut fields: Fields) -> Result<(Owner, Vec<Besides>), String> {
    let node = fields.parsed("Node", "a node id")?.ok_or("Flatnet.Node is missing")?;
    let nonce = fields.parsed("Nonce", "an instance nonce")?.ok_or("Flatnet.Nonce is missing")?;
    let name = fields.text("Name")?.unwrap_or_default();
    if name.len() > NAME_LIMIT || !name.chars().all(flatnet_model::text::is_shown) {
        return Err("Flatnet.Name is not a name of at most 253 bytes".to_owned());
    }
    let besides = fields.objects("Besides", EARLIER_BACKENDS, "Flatnet.Besides.")?;
    let besides =
        besides.into_iter().filter_map(|fields| read_besides(fields).transpose()).collect::<Result<_, _>>()?;
    Ok((Owner { node, name, nonce }, besides))
}

/// Reads another way to a node. `None`: its backend is one that only a later version knows.
fn read_besides(mut fields: Fields) -> Result<Option<Besides>, String> {
    let backend = BackendKind::from_name(&fields.text("BackendType")?.unwrap_or_default());
    if let BackendKind::Other(_) = backend {
        return Ok(None);
    }
    let (data, data_v6) = read_data(&backend, &mut fields)?;
    let used = fields.boolean("Used")?.unwrap_or(true);
    Ok(Some(Besides { backend, data, data_v6, used }))
}

/// Writes a lease's value byte for byte as flanneld does, with our owner, if any, as its last field.
#[must_use]
pub fn encode_lease(publication: &Publication, owner: Option<&Owner>) -> Vec<u8> {
    let mut out = Writer::new();
    out.field("PublicIP", publication.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED).to_string());
    out.field("PublicIPv6", publication.public_ipv6.map_or(Value::Null, |ip| Value::from(ip.to_string())));
    if !publication.backend.as_str().is_empty() {
        out.field("BackendType", publication.backend.as_str());
    }
    write_data(&mut out, &publication.data, &publication.data_v6);
    if let Some(owner) = owner {
        let mut ours = Writer::new();
        ours.field("Node", owner.node.to_string());
        ours.field("Name", owner.name.as_str());
        ours.field("Nonce", owner.nonce.to_string());
        ours.field("Version", VERSION);
        if !publication.besides.is_empty() {
            let besides: Vec<String> = publication.besides.iter().map(besides_object).collect();
            ours.raw("Besides", &format!("[{}]", besides.join(",")));
        }
        out.raw("Flatnet", &ours.end());
    }
    out.end().into_bytes()
}

fn write_data(out: &mut Writer, data: &BackendData, data_v6: &BackendData) {
    for (name, data) in [("BackendData", data), ("BackendV6Data", data_v6)] {
        match data {
            BackendData::None => {}
            BackendData::Vxlan { vni, mac } => out.raw(name, &vxlan_data(*vni, *mac)),
            BackendData::Wireguard { public_key, port } => out.raw(name, &wireguard_data(*public_key, *port)),
            BackendData::Gre { key } => out.raw(name, &gre_data(*key)),
        }
    }
}

fn besides_object(besides: &Besides) -> String {
    let mut out = Writer::new();
    out.field("BackendType", besides.backend.as_str());
    write_data(&mut out, &besides.data, &besides.data_v6);
    out.field("Used", besides.used);
    out.end()
}

fn vxlan_data(vni: Option<Vni>, mac: Mac) -> String {
    let mut out = Writer::new();
    if let Some(vni) = vni {
        out.field("VNI", vni.get());
    }
    out.field("VtepMAC", mac.to_string());
    out.end()
}

fn wireguard_data(public_key: WireguardKey, port: Option<u16>) -> String {
    let mut out = Writer::new();
    out.field("PublicKey", public_key.to_string());
    if let Some(port) = port {
        out.field("Port", port);
    }
    out.end()
}

fn gre_data(key: GreKey) -> String {
    let mut out = Writer::new();
    out.field("Key", key.get());
    out.end()
}

/// Returns the change that one event stands for in the network of `keys`; `None` for keys that are not part of it.
#[must_use]
pub fn decode_change(keys: &NetworkKeys, event: &WatchEvent) -> Option<Change> {
    match event {
        WatchEvent::Put(kv) => decode_put(keys, kv),
        WatchEvent::Delete { key, .. } => decode_delete(keys, key),
    }
}

/// Returns the change that a key with its value stands for in the network of `keys`.
fn decode_put(keys: &NetworkKeys, kv: &KeyValue) -> Option<Change> {
    if kv.key == keys.config().as_bytes() {
        return Some(Change::Config(match decode_config(&kv.value) {
            Ok((config, _)) => ConfigState::Valid(config),
            Err(error) => ConfigState::Invalid(error.to_string()),
        }));
    }
    let name = lease_name(keys, &kv.key)?;
    let lease = name.and_then(|subnets| decode_lease(subnets, kv).map_err(|error| error.to_string()));
    Some(match lease {
        Ok(lease) => Change::Lease(Box::new(lease)),
        Err(reason) => Change::Rejected { key: show_key(&kv.key), reason },
    })
}

fn decode_delete(keys: &NetworkKeys, key: &[u8]) -> Option<Change> {
    if key == keys.config().as_bytes() {
        return Some(Change::Config(ConfigState::Missing));
    }
    Some(match lease_name(keys, key)? {
        Ok(subnets) => Change::LeaseGone(subnets),
        Err(_) => Change::RejectedGone { key: show_key(key) },
    })
}

/// Returns the subnets that a key under `subnets/` names; `None` for other keys.
pub(crate) fn lease_name(keys: &NetworkKeys, key: &[u8]) -> Option<Result<SubnetKey, String>> {
    let name = key.strip_prefix(keys.subnets().as_bytes())?;
    if key.len() > KEY_LIMIT {
        return Some(Err(format!("the key has {} bytes, more than the {KEY_LIMIT} allowed", key.len())));
    }
    let text = std::str::from_utf8(name).map_err(|_| "the key is not text".to_owned());
    Some(text.and_then(|text| text.parse::<SubnetKey>().map_err(|error| error.to_string())))
}

/// Returns a key in the form in which it may be shown: shortened, and without what is not text.
pub(crate) fn show_key(key: &[u8]) -> String {
    excerpt(&String::from_utf8_lossy(&key[..key.len().min(KEY_LIMIT)]))
}

#[cfg(test)]
mod tests;
