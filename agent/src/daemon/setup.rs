//! Everything that is opened and checked before the first task starts: a mistake ends here, with nothing done.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flatnet_controlplane::cli::etcd_args::read_file;
use flatnet_controlplane::client::{Remote, RemoteOptions};
use flatnet_controlplane::random::NodeRandom;
use flatnet_core::exposure::Exposure;
use flatnet_core::facts::HostFacts;
use flatnet_core::host_ranges;
use flatnet_core::underlay::Selection;
use flatnet_kernel::wireguard::Keyring;
use flatnet_kernel::{Kernel, NetlinkKernel};
use flatnet_model::keys::NetworkKeys;
use flatnet_model::{IpFamily, NetworkName, Owner, SubnetKey};
use flatnet_proto::agent::v1::Store as StoreDocument;
use ipnet::IpNet;
use tokio::sync::watch;

use super::real_kernel;
use crate::cli::join::JoinArgs;
use crate::cli::store_args::{self, Endpoint, EndpointKind, endpoints, servers};
use crate::cli::values::NamedCidr;
use crate::namespace_lock::NamespaceLock;
use crate::node::{NetworkSetup, NodeParts};
use crate::plane::Plane;
use crate::preflight;
use crate::purge::state_dir_failure;
use crate::reconciler::HostOptions;
use crate::report::{Exit, Failure, chain};
use crate::state_dir::StateDir;
use crate::store_address;
use crate::sysctl_record::SysctlRecord;
use crate::underlay_record::UnderlayRecord;
use crate::wireguard_key::WireguardIdentity;

/// How long the name of the first endpoint may hold up the start: the underlay is chosen by the way to it; without an answer
/// by the way to where it was before, or by the default route, until there is one.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the process and its node are made from.
pub(super) struct Setup {
    pub(super) parts: NodeParts<Plane, NetlinkKernel>,
    pub(super) process: ProcessSetup,
    pub(super) namespace: NamespaceLock,
}

/// What the process is made from.
pub(super) struct ProcessSetup {
    pub(super) run_dir: PathBuf,
    pub(super) http_listen: Option<SocketAddr>,
    pub(super) store: StoreDocument,
    /// The store's name is still to be resolved.
    pub(super) lookup: Option<Lookup>,
    /// Where the store is, and whom to tell; `None` if it need not be known.
    pub(super) endpoints: Option<(Vec<Endpoint>, watch::Sender<Vec<SocketAddr>>)>,
}

/// A name that could not be resolved in time, and whom to tell when it can be.
pub(super) type Lookup = (Endpoint, watch::Sender<Vec<IpAddr>>);

impl Setup {
    pub(super) async fn new(args: JoinArgs) -> Result<Self, Failure> {
        let endpoints = endpoints(&args.endpoint)?;
        let names = network_names(&args)?;
        let name = node_name(&args)?;
        check_control_plane(&args, &endpoints)?;
        let token = token(&args)?;
        preflight::check()?;
        let namespace = NamespaceLock::acquire()?;
        let dir = Arc::new(StateDir::open(&args.state_dir, &args.run_dir).map_err(|error| state_dir_failure(&error))?);
        let plane = Arc::new(open_plane(&args, &endpoints, token, &dir, &name)?);
        let keys = Keyring::default();
        let kernel = real_kernel(&args.run_dir, keys.clone())?;
        let kernel = Arc::new(if args.no_userspace { kernel.without_userspace() } else { kernel });
        let wireguard = WireguardIdentity::new(Arc::clone(&dir), keys);
        let sysctls = SysctlRecord::open(Arc::clone(&dir)).map_err(|error| state_dir_failure(&error))?;
        let underlay = UnderlayRecord::open(Arc::clone(&dir));
        let (store_at, lookup) = store_address(&endpoints, &underlay).await;
        let selection = selection(&args, store_at.borrow().clone());
        check_firewall(&kernel).await?;
        let facts = check_underlay(kernel.as_ref(), &selection).await?;
        let owner = Owner { node: dir.node(), name, nonce: dir.nonce() };
        let closed = !args.containers_reach_store;
        let known = if closed { store_address::known(&endpoints, &store_at.borrow()) } else { Vec::new() };
        let (tell, endpoints_at) = watch::channel(known);
        let follow = closed.then(|| (endpoints.clone(), tell));
        let host = HostOptions {
            node: dir.node(),
            selection,
            bridge: args.bridge,
            masquerade: args.ip_masq,
            take_over: args.take_over,
            exposure: exposure(&args),
            endpoints: endpoints_at,
            userspace: !args.no_userspace,
            other_endpoints: other_addresses(&endpoints).await,
        };
        let held: Vec<SubnetKey> = names.iter().filter_map(|name| dir.read_subnet(name).ok().flatten()).collect();
        let ranges = host_ranges::own(&facts, &held, &host.store());
        let networks = network_setups(&args, &names, &dir);
        let process = ProcessSetup {
            run_dir: args.run_dir,
            http_listen: args.http_listen,
            store: store_args::document(&args.store, &endpoints),
            lookup,
            endpoints: follow,
        };
        let (lease_ttl, flannel_prefix) = (args.lease_ttl, args.store.etcd_prefix);
        let random = NodeRandom::Os;
        let parts = NodeParts {
            plane,
            kernel,
            dir,
            sysctls,
            wireguard,
            underlay,
            ranges,
            store_at,
            owner,
            host,
            networks,
            lease_ttl,
            flannel_prefix,
            random,
        };
        Ok(Self { parts, process, namespace })
    }
}

/// What only one of the two kinds of control plane takes.
fn check_control_plane(args: &JoinArgs, endpoints: &[Endpoint]) -> Result<(), Failure> {
    let is_server = endpoints.iter().any(|endpoint| endpoint.kind == EndpointKind::ControlPlane);
    if is_server && !args.init.is_empty() {
        return Err(Failure::new(Exit::Usage, "--init: nodes create no networks at a control plane")
            .hint("controlplane serve --init, controlplane network create, or agent network create --credentials"));
    }
    if !is_server && (args.token.is_some() || args.token_file.is_some() || args.ca_hash.is_some()) {
        return Err(Failure::new(Exit::Usage, "--token and --ca-hash are for a control plane, not for an etcd")
            .hint("its endpoint looks like grpcs://192.168.33.10:7443"));
    }
    Ok(())
}

/// Whom the networks are opened to. Whoever comes from flannel is told what it let in and this does not.
fn exposure(args: &JoinArgs) -> Exposure {
    if args.take_over && args.expose.is_empty() {
        tracing::warn!(
            hint = "--expose IFACE or CIDR, or for all hosts `agent network update NAME --reachable-from CIDR`, let them in",
            "flannel let every machine that has a route to this host open connections into the network; this agent lets in the \
             network's members, this host, and what published ports lead to"
        );
    }
    Exposure::of(&args.expose)
}

/// The token, from wherever it was given.
fn token(args: &JoinArgs) -> Result<Option<String>, Failure> {
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) => Some(token.0.clone()),
        (None, Some(file)) => Some(String::from_utf8_lossy(&read_file("token-file", file)?).trim().to_owned()),
        (None, None) => None,
    };
    Ok(token)
}

fn open_plane(
    args: &JoinArgs,
    endpoints: &[Endpoint],
    token: Option<String>,
    dir: &StateDir,
    name: &str,
) -> Result<Plane, Failure> {
    if endpoints.iter().all(|endpoint| endpoint.kind == EndpointKind::Etcd) {
        return Ok(Plane::Etcd(store_args::open(&args.store, endpoints)?));
    }
    let options = RemoteOptions {
        servers: servers(endpoints),
        dir: dir.state().to_owned(),
        node: dir.node(),
        name: name.to_owned(),
        token,
        ca_hash: args.ca_hash.clone(),
    };
    let remote = Remote::new(options).map_err(|error| {
        Failure::new(Exit::InvalidConfig, "this node's certificate cannot be read")
            .hint("remove controlplane.key and controlplane.pem in the state directory, and join with a new token")
            .caused_by(error)
    })?;
    if !remote.can_join() {
        return Err(Failure::new(Exit::Usage, "this host has no certificate of that control plane yet")
            .hint("join with --token and --ca-hash: `controlplane token create` on the server prints both"));
    }
    Ok(Plane::Remote(remote))
}

fn network_setups(args: &JoinArgs, names: &[NetworkName], dir: &StateDir) -> Vec<NetworkSetup> {
    let by_network = |named: &[NamedCidr]| {
        let mut map: BTreeMap<NetworkName, Vec<IpNet>> = BTreeMap::new();
        for named in named {
            map.entry(named.network.clone()).or_default().push(named.cidr);
        }
        map
    };
    let (mut init, mut wanted) = (by_network(&args.init), by_network(&args.subnet));
    let setup = |name: &NetworkName| NetworkSetup {
        keys: NetworkKeys::new(name, &args.store.etcd_prefix),
        init: init.remove(name).unwrap_or_default(),
        wanted: wanted.remove(name).unwrap_or_default(),
        env_file: match &args.subnet_file {
            Some(file) if name.is_default() => file.clone(),
            _ => dir.env_file(name),
        },
    };
    names.iter().map(setup).collect()
}

/// The networks to join, each once, in the order given.
fn network_names(args: &JoinArgs) -> Result<Vec<NetworkName>, Failure> {
    let mut names = Vec::new();
    for name in &args.network {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    for (flag, named) in
        args.init.iter().map(|named| ("init", named)).chain(args.subnet.iter().map(|named| ("subnet", named)))
    {
        if !names.contains(&named.network) {
            return Err(Failure::new(
                Exit::Usage,
                format!("--{flag} names network {}, which is not joined", named.network),
            )
            .hint(format!("add --network {}", named.network)));
        }
        let same = |other: &&NamedCidr| {
            other.network == named.network && other.cidr.addr().is_ipv4() == named.cidr.addr().is_ipv4()
        };
        let all = if flag == "init" { &args.init } else { &args.subnet };
        if all.iter().filter(same).count() > 1 {
            return Err(Failure::new(
                Exit::Usage,
                format!("--{flag}: network {} has one range of each family at most", named.network),
            ));
        }
    }
    Ok(names)
}

/// The node's name: given, or the host's.
fn node_name(args: &JoinArgs) -> Result<String, Failure> {
    let name = match &args.node_name {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
    };
    // A DNS name (RFC 1035): it becomes one.
    let valid = (1..=253).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if valid {
        Ok(name)
    } else {
        Err(Failure::new(
            Exit::InvalidConfig,
            format!("{:?} cannot be a node's name", flatnet_model::keys::excerpt(&name)),
        )
        .hint("1 to 253 letters, digits, '-', '.' or '_': give one with --node-name"))
    }
}

/// Where the store is: by its name, else where it was before; and what is still to be looked up.
async fn store_address(
    endpoints: &[Endpoint],
    before: &UnderlayRecord,
) -> (watch::Receiver<Vec<IpAddr>>, Option<Lookup>) {
    let Some(first) = endpoints.first().cloned() else { return (watch::channel(Vec::new()).1, None) };
    let lookup = tokio::time::timeout(RESOLVE_TIMEOUT, store_address::resolve(first.clone()));
    let known = lookup.await.unwrap_or_default();
    if !known.is_empty() {
        return (watch::channel(known).1, None);
    }
    tracing::warn!(endpoint = first.url, before = ?before.store(), "the store's name cannot be resolved yet; trying again");
    let (sender, addresses) = watch::channel(before.store().to_vec());
    (addresses, Some((first, sender)))
}

/// The addresses of all endpoints but the first, as far as they are known by now: the store may be reached at any of them.
async fn other_addresses(endpoints: &[Endpoint]) -> Vec<IpAddr> {
    let others = endpoints.iter().skip(1).cloned().map(store_address::resolve);
    let lookup = tokio::time::timeout(RESOLVE_TIMEOUT, futures::future::join_all(others));
    lookup.await.unwrap_or_default().into_iter().flatten().collect()
}

fn selection(args: &JoinArgs, store: Vec<IpAddr>) -> Selection {
    Selection {
        ifaces: args.iface.clone(),
        iface_regexes: args.iface_regex.clone(),
        can_reach: args.iface_can_reach,
        public_ip: args.public_ip,
        public_ipv6: args.public_ipv6,
        store,
    }
}

/// The very text that will guard the tunnels is read before a lease is taken. Where an earlier agent's guard is loaded,
/// this one goes on with it: containers may run here, and it says what it cannot load.
async fn check_firewall(kernel: &NetlinkKernel) -> Result<(), Failure> {
    let Err(mut refused) = kernel.check_firewall(&IpFamily::BOTH).await else { return Ok(()) };
    if refused.by_kernel {
        // A kernel without IPv6 does for networks without.
        match kernel.check_firewall(&[IpFamily::V4]).await {
            Ok(()) => return Ok(()),
            Err(of_v4) => refused = of_v4,
        }
    }
    if kernel.is_guarded().await {
        tracing::warn!(error = chain(&refused), hint = NFT_HINT, "going on with the guard that is loaded");
        return Ok(());
    }
    Err(Failure::new(Exit::Unsupported, "the tunnels could not be guarded").caused_by(refused).hint(NFT_HINT))
}

/// What nft must be, and what to do where it is not.
const NFT_HINT: &str = "the agent needs nft 1.0.3 or later (`nft --version`): install a later package nftables, or put a later nft first in PATH; \
     where nft could read it, the kernel lacks a part of nftables (nft_fib_inet, nft_masq, nft_set_hash)";

/// An interface that was named must be there now: a typing error would otherwise be waited on for ever.
async fn check_underlay(kernel: &NetlinkKernel, selection: &Selection) -> Result<HostFacts, Failure> {
    let unreadable = |error| Failure::new(Exit::Kernel, "cannot look at this host's interfaces").caused_by(error);
    let facts = kernel.facts(&selection.route_queries()).await.map_err(unreadable)?;
    match flatnet_core::underlay::select(&facts, selection, &[]) {
        Ok(underlay) => {
            tracing::info!(device = %underlay.device, mtu = underlay.mtu.get(), "underlay chosen");
            Ok(facts)
        }
        Err(error) => {
            let named =
                !(selection.ifaces.is_empty() && selection.iface_regexes.is_empty() && selection.can_reach.is_none());
            if named {
                return Err(Failure::new(Exit::InvalidConfig, error.to_string()).hint(error.hint()));
            }
            // At boot the network may come after us.
            tracing::warn!(hint = error.hint(), "no underlay yet: {error}");
            Ok(facts)
        }
    }
}
