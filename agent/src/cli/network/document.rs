//! The printed forms of networks, for people and as JSON.

use comfy_table::{Table, presets};
use flatnet_model::text::{line, set_in};
use flatnet_model::{BackendConfig, NetworkConfig};
use flatnet_plane::networks::NetworkInfo;

/// A network as a document. It is stable and documented: people script against it.
#[derive(serde::Serialize)]
pub(super) struct NetworkDocument {
    name: String,
    cidr: Option<String>,
    cidr6: Option<String>,
    subnet_len: Option<u8>,
    subnet6_len: Option<u8>,
    backend: Option<String>,
    vni: Option<u32>,
    port: Option<u16>,
    key: Option<u32>,
    problem: Option<String>,
    warnings: Vec<String>,
    leases: Vec<LeaseDocument>,
    rejected: Vec<RejectedDocument>,
}

#[derive(serde::Serialize)]
struct LeaseDocument {
    subnet: Option<String>,
    subnet6: Option<String>,
    public_ip: Option<String>,
    public_ipv6: Option<String>,
    backend: String,
    node: Option<String>,
    node_name: Option<String>,
    permanent: bool,
}

#[derive(serde::Serialize)]
struct RejectedDocument {
    key: String,
    reason: String,
}

/// Returns a network as `--json` prints it.
pub(super) fn document(info: &NetworkInfo) -> NetworkDocument {
    let config: Option<&NetworkConfig> = info.config.as_ref().ok();
    let backend = config.map(|config| &config.backend);
    let port = backend.and_then(|backend| match backend {
        BackendConfig::Vxlan(vxlan) => Some(vxlan.port),
        BackendConfig::Wireguard(wireguard) => Some(wireguard.port),
        _ => None,
    });
    let leases = info.leases.iter().map(|lease| LeaseDocument {
        subnet: lease.subnets.v4().map(|net| net.to_string()),
        subnet6: lease.subnets.v6().map(|net| net.to_string()),
        public_ip: lease.public_ip.map(|address| address.to_string()),
        public_ipv6: lease.public_ipv6.map(|address| address.to_string()),
        backend: lease.backend.to_string(),
        node: lease.owner.as_ref().map(|owner| owner.node.to_string()),
        node_name: lease.owner.as_ref().map(|owner| owner.name.clone()),
        permanent: lease.owner.is_none() && lease.etcd_lease.is_none(),
    });
    NetworkDocument {
        name: info.keys.network().to_string(),
        cidr: config.and_then(|config| config.v4.map(|pool| pool.network().to_string())),
        cidr6: config.and_then(|config| config.v6.map(|pool| pool.network().to_string())),
        subnet_len: config.and_then(|config| config.v4.map(|pool| pool.subnet_len())),
        subnet6_len: config.and_then(|config| config.v6.map(|pool| pool.subnet_len())),
        backend: config.map(|config| config.backend.kind().to_string()),
        vni: backend.and_then(|backend| Some(backend.vni()?.get())),
        port,
        key: backend.and_then(|backend| Some(backend.gre_key()?.get())),
        problem: info.config.as_ref().err().map(ToString::to_string),
        warnings: info.warnings.iter().map(|warning| warning.message.clone()).collect(),
        leases: leases.collect(),
        rejected: info
            .rejected
            .iter()
            .map(|(key, reason)| RejectedDocument { key: key.clone(), reason: reason.clone() })
            .collect(),
    }
}

/// Returns a network in one line.
pub(super) fn summary(info: &NetworkInfo) -> String {
    let document = document(info);
    let mut parts: Vec<String> = document.cidr.into_iter().chain(document.cidr6).collect();
    parts.extend(document.backend);
    parts.extend(document.vni.map(|vni| format!("VNI {vni}")));
    parts.extend(document.key.map(|key| format!("key {key}")));
    parts.extend(document.problem);
    line(&parts.join(", "))
}

/// Returns a table with one line per network.
pub(super) fn table(all: &[NetworkInfo]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["NETWORK", "RANGE", "BACKEND", "VNI/KEY", "LEASES"]);
    for info in all {
        let document = document(info);
        let ranges: Vec<String> = document.cidr.into_iter().chain(document.cidr6).collect();
        table.add_row([
            document.name,
            if ranges.is_empty() { "unusable".to_owned() } else { ranges.join(" ") },
            document.backend.map_or_else(|| "-".to_owned(), |backend| line(&backend)),
            document.vni.or(document.key).map_or_else(|| "-".to_owned(), |vni| vni.to_string()),
            info.leases.len().to_string(),
        ]);
    }
    format!("{table}\n")
}

/// Returns the text on one network with its leases.
pub(super) fn detail(info: &NetworkInfo) -> String {
    let mut out = format!("network {}: {}\n", info.keys.network(), summary(info));
    for warning in &info.warnings {
        out.push_str(&format!("warning: {}\n  hint: {}\n", set_in(&warning.message), set_in(&warning.hint)));
    }
    for (key, reason) in &info.rejected {
        out.push_str(&format!("rejected: {}: {}\n", line(key), set_in(reason)));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["SUBNET", "PUBLIC IP", "BACKEND", "NODE"]);
    for lease in document(info).leases {
        let join = |a: Option<String>, b: Option<String>| a.into_iter().chain(b).collect::<Vec<_>>().join(" ");
        let node = lease
            .node_name
            .unwrap_or_else(|| if lease.permanent { "(permanent)".to_owned() } else { "(flanneld)".to_owned() });
        table.add_row([
            join(lease.subnet, lease.subnet6),
            join(lease.public_ip, lease.public_ipv6),
            line(&lease.backend),
            line(&node),
        ]);
    }
    out.push_str(&format!("{table}\n"));
    out
}
