//! Translation between the wire and the library: records, requests and refusals. Both sides use it; what comes from the
//! other one is hostile until it was read here.

use std::net::IpAddr;

use flatnet_model::ipam::Exhausted;
use flatnet_model::keys::NetworkKeys;
use flatnet_model::text::excerpt;
use flatnet_model::{EtcdLease, HostRanges, Lease, NetworkName, Owner, Publication, SubnetKey};
use flatnet_proto::controlplane::v1 as proto;
use ipnet::IpNet;
use proto::refusal::Kind;
use tonic::Status;

use crate::allocate::{Claim, Origin};
use crate::flannel::{decode_lease, encode_lease};
use crate::networks::NetworkSpec;
use crate::plane::contents::Fingerprint;
use crate::plane::feed::Position;
use crate::store::{KeyValue, WatchBatch, WatchEvent};

pub mod refusal;

/// The longest publication taken, in bytes; one of ours has some 200.
const PUBLICATION_LIMIT: usize = 8 * 1024;

/// Makes the refusal of a message that is not what it should be.
fn invalid(what: &str, text: &str) -> Status {
    refusal::status(
        tonic::Code::InvalidArgument,
        format!("{what}: {:?}", excerpt(text)),
        proto::Refusal { kind: Kind::Invalid.into(), ..Default::default() },
    )
}

/// Reads a network's name.
pub fn network(text: &str) -> Result<NetworkName, Status> {
    text.parse().map_err(|_| invalid("not a network's name", text))
}

/// Reads subnets as in a key.
pub fn subnets(text: &str) -> Result<SubnetKey, Status> {
    text.parse().map_err(|_| invalid("not subnets", text))
}

/// Reads a node's id.
pub fn node(text: &str) -> Result<flatnet_model::NodeId, Status> {
    text.parse().map_err(|_| invalid("not a node's id", text))
}

/// Reads who runs as `node`.
pub fn owner(node: flatnet_model::NodeId, instance: Option<&proto::Instance>) -> Result<Owner, Status> {
    let instance = instance.ok_or_else(|| invalid("no instance", ""))?;
    Ok(Owner {
        node,
        name: node_name(&instance.name)?,
        nonce: instance.nonce.parse().map_err(|_| invalid("not a nonce", &instance.nonce))?,
    })
}

/// Reads a node's name: 1 to 253 letters, digits, '-', '.' or '_' (a DNS name, RFC 1035).
pub fn node_name(text: &str) -> Result<String, Status> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if (1..=253).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(invalid("not a node's name", text))
    }
}

/// Reads what a node's host uses itself.
pub fn ranges(request: &proto::AnnounceRequest) -> Result<HostRanges, Status> {
    let is_too_long = request.routes.len() > HostRanges::PREFIXES
        || request.resolvers.len() > HostRanges::RESOLVERS
        || request.endpoints.len() > HostRanges::ENDPOINTS;
    if is_too_long {
        return Err(invalid("more routes, resolvers or endpoints than a host says", ""));
    }
    let routes = request.routes.iter().map(|text| text.parse::<IpNet>().map_err(|_| invalid("not a range", text)));
    let address = |text: &String| text.parse::<IpAddr>().map_err(|_| invalid("not an address", text));
    let resolvers = request.resolvers.iter().map(address).collect::<Result<Vec<_>, _>>()?;
    let endpoints = request.endpoints.iter().map(address).collect::<Result<Vec<_>, _>>()?;
    Ok(HostRanges::new(routes.collect::<Result<Vec<_>, _>>()?, resolvers).with_endpoints(endpoints))
}

/// Writes who runs, and what its host uses itself.
#[must_use]
pub fn announce(owner: &Owner, ranges: &HostRanges) -> proto::AnnounceRequest {
    proto::AnnounceRequest {
        instance: Some(instance(owner)),
        routes: ranges.prefixes().iter().map(ToString::to_string).collect(),
        resolvers: ranges.resolvers().iter().map(ToString::to_string).collect(),
        endpoints: ranges.endpoints().iter().map(ToString::to_string).collect(),
    }
}

/// Writes who runs.
#[must_use]
pub fn instance(owner: &Owner) -> proto::Instance {
    proto::Instance { name: owner.name.clone(), nonce: owner.nonce.to_string() }
}

/// Reads what a node publishes.
pub fn publication(bytes: &[u8], subnets: SubnetKey) -> Result<Publication, Status> {
    if bytes.len() > PUBLICATION_LIMIT {
        return Err(invalid("a publication that is too long", ""));
    }
    let kv = KeyValue { key: Vec::new(), value: bytes.to_vec(), create_revision: 0, mod_revision: 0, lease: None };
    let lease = decode_lease(subnets, &kv)
        .map_err(|error| invalid(&format!("not a publication ({error})"), &String::from_utf8_lossy(bytes)))?;
    Ok(lease.publication())
}

/// Reads subnets asked for.
pub fn wanted(texts: &[String]) -> Result<Vec<IpNet>, Status> {
    if texts.len() > 2 {
        return Err(invalid("more than one subnet a family", ""));
    }
    texts
        .iter()
        .map(|text| {
            let net: IpNet = text.parse().map_err(|_| invalid("not a subnet", text))?;
            if net == net.trunc() { Ok(net) } else { Err(invalid("a subnet with host bits", text)) }
        })
        .collect()
}

/// Writes a record with its key below `prefix`; `None`: it is not there.
#[must_use]
pub fn record(prefix: &str, kv: &KeyValue) -> Option<proto::Record> {
    Some(proto::Record {
        key: kv.key.strip_prefix(prefix.as_bytes())?.to_vec(),
        value: kv.value.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        lease: kv.lease.map_or(0, |lease| lease.0),
    })
}

/// Reads a record, with its whole key.
#[must_use]
pub fn key_value(prefix: &str, record: proto::Record) -> KeyValue {
    let mut key = prefix.as_bytes().to_vec();
    key.extend(record.key);
    KeyValue {
        key,
        value: record.value,
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        lease: Some(EtcdLease(record.lease)).filter(|lease| lease.0 != 0),
    }
}

/// Writes one change with its key below `prefix`; `None`: it is not there.
#[must_use]
pub fn change(prefix: &str, event: &WatchEvent) -> Option<proto::Change> {
    Some(match event {
        WatchEvent::Put(kv) => proto::Change { record: Some(record(prefix, kv)?), deleted: false },
        WatchEvent::Delete { key, revision } => {
            let key = key.strip_prefix(prefix.as_bytes())?.to_vec();
            let record = proto::Record { key, mod_revision: *revision, ..Default::default() };
            proto::Change { record: Some(record), deleted: true }
        }
    })
}

/// Reads changes.
#[must_use]
pub fn batch(prefix: &str, batch: proto::Batch) -> WatchBatch {
    let event = |change: proto::Change| {
        let deleted = change.deleted;
        let kv = key_value(prefix, change.record.unwrap_or_default());
        if deleted { WatchEvent::Delete { key: kv.key, revision: kv.mod_revision } } else { WatchEvent::Put(kv) }
    };
    WatchBatch { events: batch.changes.into_iter().map(event).collect(), revision: batch.revision }
}

/// Writes the position from which a watch goes on.
#[must_use]
pub fn position(position: &Position) -> proto::Position {
    proto::Position { revision: position.revision, contents: position.contents.0 }
}

/// Reads the position from which a watch goes on.
#[must_use]
pub fn read_position(position: &proto::Position) -> Position {
    Position { revision: position.revision, contents: Fingerprint(position.contents) }
}

/// Writes a claim that is held.
#[must_use]
pub fn claim(keys: &NetworkKeys, claim: &Claim) -> proto::AcquireReply {
    let lease = &claim.lease;
    let origin = match claim.origin {
        Origin::Refreshed => proto::Origin::Refreshed,
        Origin::Reclaimed => proto::Origin::Reclaimed,
        Origin::Adopted => proto::Origin::Adopted,
        Origin::Chosen => proto::Origin::Chosen,
    };
    let key = keys.lease(&lease.subnets);
    let record = proto::Record {
        key: key.strip_prefix(&keys.all()).unwrap_or(&key).as_bytes().to_vec(),
        value: encode_lease(&lease.publication(), lease.owner.as_ref()),
        create_revision: lease.create_revision,
        mod_revision: lease.mod_revision,
        lease: claim.etcd_lease.0,
    };
    proto::AcquireReply { lease: Some(record), origin: origin.into() }
}

/// Reads a claim that is held; `None`: it is not what a server answers.
#[must_use]
pub fn read_claim(reply: proto::AcquireReply) -> Option<Claim> {
    let origin = match reply.origin() {
        proto::Origin::Unspecified => return None,
        proto::Origin::Refreshed => Origin::Refreshed,
        proto::Origin::Reclaimed => Origin::Reclaimed,
        proto::Origin::Adopted => Origin::Adopted,
        proto::Origin::Chosen => Origin::Chosen,
    };
    let kv = key_value("", reply.lease?);
    let name = std::str::from_utf8(&kv.key).ok()?.strip_prefix("subnets/")?;
    let lease: Lease = decode_lease(name.parse().ok()?, &kv).ok()?;
    Some(Claim { etcd_lease: kv.lease?, lease, origin })
}

/// Writes the wishes for a network.
#[must_use]
pub fn change_request(name: &NetworkName, spec: &NetworkSpec, force: bool) -> proto::ChangeNetworkRequest {
    proto::ChangeNetworkRequest {
        name: name.to_string(),
        cidr: spec.cidr.map(|net| net.to_string()),
        cidr6: spec.cidr6.map(|net| net.to_string()),
        subnet_len: spec.subnet_len.map(u32::from),
        subnet_min: spec.subnet_min.map(|address| address.to_string()),
        subnet_max: spec.subnet_max.map(|address| address.to_string()),
        backend: spec.backend.clone(),
        vni: spec.vni,
        port: spec.port.map(u32::from),
        key: spec.key,
        mtu: spec.mtu,
        direct_routing: spec.direct_routing,
        backend_json: spec.backend_json.clone(),
        reachable_from: spec.reachable_from.as_ref().map(|ranges| proto::Ranges { cidrs: texts(ranges) }),
        force,
    }
}

fn texts(ranges: &[IpNet]) -> Vec<String> {
    ranges.iter().map(ToString::to_string).collect()
}

fn cidrs(ranges: &proto::Ranges) -> Result<Vec<IpNet>, Status> {
    ranges.cidrs.iter().map(|text| text.parse().map_err(|_| invalid("not an address or range", text))).collect()
}

/// Reads the wishes for a network.
pub fn spec(request: &proto::ChangeNetworkRequest) -> Result<NetworkSpec, Status> {
    fn parse<T: std::str::FromStr>(text: Option<&String>) -> Result<Option<T>, Status> {
        text.map(|text| text.parse().map_err(|_| invalid("not an address or range", text))).transpose()
    }
    fn number<T: TryFrom<u32>>(number: Option<u32>) -> Result<Option<T>, Status> {
        number
            .map(|number| T::try_from(number).map_err(|_| invalid("a number that is too large", &number.to_string())))
            .transpose()
    }
    Ok(NetworkSpec {
        cidr: parse(request.cidr.as_ref())?,
        cidr6: parse(request.cidr6.as_ref())?,
        subnet_len: number(request.subnet_len)?,
        subnet_min: parse::<IpAddr>(request.subnet_min.as_ref())?,
        subnet_max: parse::<IpAddr>(request.subnet_max.as_ref())?,
        backend: request.backend.clone(),
        vni: request.vni,
        port: number(request.port)?,
        key: request.key,
        mtu: request.mtu,
        direct_routing: request.direct_routing,
        backend_json: request.backend_json.clone().filter(|json| json.len() <= 16 * 1024),
        reachable_from: request.reachable_from.as_ref().map(cidrs).transpose()?,
    })
}

/// Reads the error of a pool that is used up from a refusal's details.
fn exhausted(refusal: &proto::Refusal) -> Option<Exhausted> {
    Some(Exhausted { network: refusal.subnet.parse().ok()?, capacity: u128::try_from(refusal.number).ok()? })
}
