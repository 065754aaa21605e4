//! Everything that is opened and checked before the first task starts: a mistake ends here, with nothing done.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flatnet_core::exposure::{Exposed, Exposure};
use flatnet_core::facts::HostFacts;
use flatnet_core::host_ranges;
use flatnet_core::underlay::Selection;
use flatnet_kernel::wireguard::Keyring;
use flatnet_kernel::{Kernel, NetlinkKernel, Questions};
use flatnet_model::keys::NetworkKeys;
use flatnet_model::{IpFamily, NodeId, Owner, SubnetKey};
use flatnet_plane::client::{Remote, RemoteOptions};
use flatnet_plane::endpoint::{Endpoint, EndpointKind};
use flatnet_plane::random::NodeRandom;
use flatnet_proto::agent::v1::Store as StoreDocument;
use tokio::sync::watch;

use super::options::{JoinOptions, NetworkOptions};
use crate::daemon::preflight;
use crate::files::namespace_lock::NamespaceLock;
use crate::files::network_record::NetworkRecord;
use crate::files::state_dir::StateDir;
use crate::files::sysctl_record::SysctlRecord;
use crate::files::underlay_record::UnderlayRecord;
use crate::files::wireguard_key::WireguardIdentity;
use crate::node::host_kernel;
use crate::node::purge::state_dir_failure;
use crate::report::{Exit, Failure, chain};
use crate::store::plane::Plane;
use crate::store::store_address;
use crate::store::store_endpoints;
use crate::wiring::context::NodeSetup;
use crate::wiring::host_options::HostOptions;
use crate::wiring::networks::NetworkSetup;

/// The longest that resolving the name of the first endpoint may hold up the start. The underlay is chosen by the way
/// to that endpoint. Until there is an answer, it is chosen by the way to where the store was before, or by the default
/// route.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything the process and its node are made from.
pub(super) struct Setup {
    pub(super) node: NodeSetup<Plane, NetlinkKernel>,
    pub(super) process: ProcessSetup,
    pub(super) namespace: NamespaceLock,
}

/// Everything the process is made from besides its node.
pub(super) struct ProcessSetup {
    pub(super) run_dir: PathBuf,
    pub(super) http_listen: Option<SocketAddr>,
    pub(super) store: StoreDocument,
    /// The lookup of the store's name, if that is still to be resolved.
    pub(super) lookup: Option<Lookup>,
    /// The store's endpoints, and the sender for their addresses; `None` if they need not be known.
    pub(super) endpoints: Option<Followed>,
}

/// A name that could not be resolved in time, and the sender for its addresses once it can be.
pub(super) type Lookup = (Endpoint, watch::Sender<Vec<IpAddr>>);

/// Endpoints whose addresses are to be known, and the sender for these.
pub(super) type Followed = (Vec<Endpoint>, watch::Sender<Vec<SocketAddr>>);

impl Setup {
    pub(super) async fn new(options: JoinOptions) -> Result<Self, Failure> {
        preflight::check()?;
        let namespace = NamespaceLock::acquire()?;
        let dir =
            Arc::new(StateDir::open(&options.state_dir, &options.run_dir).map_err(|error| state_dir_failure(&error))?);
        let plane = Arc::new(open_plane(&options, &dir)?);
        let keys = Keyring::default();
        let kernel = host_kernel::open(&options.run_dir, keys.clone())?;
        let kernel = Arc::new(if options.userspace { kernel } else { kernel.without_userspace() });
        let wireguard = WireguardIdentity::new(Arc::clone(&dir), keys);
        let sysctls = SysctlRecord::open(Arc::clone(&dir)).map_err(|error| state_dir_failure(&error))?;
        let underlay = UnderlayRecord::open(Arc::clone(&dir));
        let (store_at, lookup) = store_address(&options.endpoints, &underlay).await;
        let selection = Selection { store: store_at.borrow().clone(), ..options.underlay.clone() };
        check_firewall(&kernel).await?;
        let facts = check_underlay(kernel.as_ref(), &selection).await?;
        let (host, endpoints) = host_options(&options, dir.node(), selection).await;
        let owner = Owner { node: dir.node(), name: options.name, nonce: dir.nonce() };
        let networks = network_setups(options.networks, &options.etcd.etcd_prefix, &dir);
        let record = NetworkRecord::open(Arc::clone(&dir));
        let all = record.to_join(&networks, &options.etcd.etcd_prefix);
        let names = all.iter().map(|network| network.keys.network());
        let held: Vec<SubnetKey> = names.filter_map(|name| dir.read_subnet(name).ok().flatten()).collect();
        let ranges = host_ranges::own(&facts, &held, &host.store());
        let process = ProcessSetup {
            run_dir: options.run_dir,
            http_listen: options.http_listen,
            store: store_endpoints::document(&options.etcd, &options.endpoints),
            lookup,
            endpoints,
        };
        let (lease_ttl, flannel_prefix) = (options.lease_ttl, options.etcd.etcd_prefix);
        let random = NodeRandom::Os;
        let node = NodeSetup {
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
            record,
            lease_ttl,
            flannel_prefix,
            random,
        };
        Ok(Self { node, process, namespace })
    }
}

/// Returns the options of the host `node`, and the endpoints to follow if containers must not reach the store.
async fn host_options(options: &JoinOptions, node: NodeId, selection: Selection) -> (HostOptions, Option<Followed>) {
    let closed = !options.containers_reach_store;
    let known = if closed { store_address::known(&options.endpoints, &selection.store) } else { Vec::new() };
    let (tell, endpoints) = watch::channel(known);
    let host = HostOptions {
        node,
        selection,
        bridge: options.bridge,
        masquerade: options.masquerade,
        take_over: options.take_over,
        exposure: exposure(&options.expose, options.take_over),
        endpoints,
        userspace: options.userspace,
        other_endpoints: other_addresses(&options.endpoints).await,
    };
    (host, closed.then(|| (options.endpoints.clone(), tell)))
}

/// Returns the networks that the command line names. `prefix`: the key prefix under which the network `default` lives.
fn network_setups(networks: Vec<NetworkOptions>, prefix: &str, dir: &StateDir) -> Vec<NetworkSetup> {
    let setup = |network: NetworkOptions| NetworkSetup {
        keys: NetworkKeys::new(&network.name, prefix),
        env_file: network.env_file.unwrap_or_else(|| dir.env_file(&network.name)),
        init: network.init,
        wanted: network.wanted,
    };
    networks.into_iter().map(setup).collect()
}

/// Returns the machines that the networks are opened to. Whoever comes from flannel is told what flannel let in and
/// this agent does not.
fn exposure(exposed: &[Exposed], take_over: bool) -> Exposure {
    if take_over && exposed.is_empty() {
        tracing::warn!(
            hint = "--expose IFACE or CIDR, or for all hosts `agent network update NAME --reachable-from CIDR`, let them in",
            "flannel let every machine that has a route to this host open connections into the network; this agent lets in the \
             network's members, this host, and what published ports lead to"
        );
    }
    Exposure::of(exposed)
}

fn open_plane(options: &JoinOptions, dir: &StateDir) -> Result<Plane, Failure> {
    if options.endpoints.iter().all(|endpoint| endpoint.kind == EndpointKind::Etcd) {
        return Ok(Plane::Etcd(store_endpoints::open(&options.etcd, &options.endpoints)?));
    }
    let remote = RemoteOptions {
        servers: store_endpoints::servers(&options.endpoints),
        dir: dir.state().to_owned(),
        node: dir.node(),
        name: options.name.clone(),
        token: options.token.clone(),
        ca_hash: options.ca_hash.clone(),
    };
    let remote = Remote::new(remote).map_err(|error| {
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

/// Resolves the store's name to its addresses, else takes those it had before. Returns the lookup that is still to be
/// done.
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

/// Returns the addresses of all endpoints but the first, as far as they are known by now. The store may be reached at
/// any.
async fn other_addresses(endpoints: &[Endpoint]) -> Vec<IpAddr> {
    let others = endpoints.iter().skip(1).cloned().map(store_address::resolve);
    let lookup = tokio::time::timeout(RESOLVE_TIMEOUT, futures::future::join_all(others));
    lookup.await.unwrap_or_default().into_iter().flatten().collect()
}

/// Has nft read the very text that will guard the tunnels, before a lease is taken. Where an earlier agent's guard is
/// loaded, this agent goes on with it: containers may run here, and the agent reports what it cannot load.
async fn check_firewall(kernel: &NetlinkKernel) -> Result<(), Failure> {
    let Err(mut refused) = kernel.check_firewall(&IpFamily::BOTH).await else { return Ok(()) };
    if refused.by_kernel {
        // A kernel without IPv6 is enough for networks without IPv6.
        match kernel.check_firewall(&[IpFamily::V4]).await {
            Ok(()) => return Ok(()),
            Err(of_v4) => refused = of_v4,
        }
    }
    if flatnet_kernel::is_guarded(kernel).await {
        tracing::warn!(error = chain(&refused), hint = NFT_HINT, "going on with the guard that is loaded");
        return Ok(());
    }
    Err(Failure::new(Exit::Unsupported, "the tunnels could not be guarded").caused_by(refused).hint(NFT_HINT))
}

/// The requirements on nft, and what to do where they are not met.
const NFT_HINT: &str = "the agent needs nft 1.0.3 or later (`nft --version`): install a later package nftables, or put a later nft first in PATH; \
     where nft could read it, the kernel lacks a part of nftables (nft_fib_inet, nft_masq, nft_set_hash)";

/// Checks that an interface that was named exists now: a typing error would otherwise be waited on for ever.
async fn check_underlay(kernel: &NetlinkKernel, selection: &Selection) -> Result<HostFacts, Failure> {
    let unreadable = |error| Failure::new(Exit::Kernel, "cannot look at this host's interfaces").caused_by(error);
    let facts = kernel.facts(&Questions::host(selection.route_queries())).await.map_err(unreadable)?.host;
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
