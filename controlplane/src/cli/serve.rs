//! `controlplane serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use flatnet_model::NetworkName;
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};

use super::DataDir;
use super::report::{Exit, Failure, print};
use crate::server::{Server, ServerError, ServerOptions};
use crate::store::any::AnyStore;
use crate::store::embedded::EmbeddedStore;
use flatnet_plane::etcd_args::EtcdArgs;
use flatnet_plane::failure::chain;
use flatnet_plane::networks::{self, Force, NetworkError, NetworkSpec};
use flatnet_plane::store::memory::MemoryStore;

/// The store's file in the data directory.
pub const STORE_FILE: &str = "store.redb";
/// The wait before a store that does not answer is asked again for the first token and networks.
const STORE_RETRY_AFTER: Duration = Duration::from_millis(500);

/// Serve agents and administrators; prints the command with which hosts join
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Where agents come to
    #[arg(long, value_name = "ADDR:PORT", env = "FLATNET_LISTEN", default_value = "0.0.0.0:7443")]
    listen: SocketAddr,
    #[command(flatten)]
    dir: DataDir,
    /// An authority of your own that signs hosts' certificates (PEM) [default: one is made in the data directory]
    #[arg(long, value_name = "FILE", env = "FLATNET_CA_CERT", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// The key (PEM) of that authority
    #[arg(long, value_name = "FILE", env = "FLATNET_CA_KEY", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// What hosts are told to join: HOST or HOST:PORT [default: this host's name, or the address listened on]
    #[arg(long, value_name = "HOST", env = "FLATNET_ADVERTISE")]
    advertise: Option<String>,
    /// Where leases are kept: a file in the data directory, an etcd, or nowhere that lasts
    #[arg(long, value_name = "STORE", value_enum, env = "FLATNET_STORE", default_value_t = StoreKind::Embedded)]
    store: StoreKind,
    /// etcd servers, with --store etcd
    #[arg(long, value_name = "URL", env = "FLATNET_ENDPOINTS", value_delimiter = ',')]
    endpoints: Vec<String>,
    #[command(flatten)]
    etcd: EtcdArgs,
    /// Create the network if there is none: CIDR or NAME=CIDR
    #[arg(long, value_name = "CIDR", env = "FLATNET_INIT", value_delimiter = ',', value_parser = named_cidr)]
    init: Vec<(NetworkName, IpNet)>,
    /// The backend of networks that --init creates
    #[arg(long, value_name = "TYPE", env = "FLATNET_INIT_BACKEND")]
    init_backend: Option<String>,
    /// How long the token in the printed command is good
    #[arg(long, value_name = "TIME", env = "FLATNET_TOKEN_TTL", default_value = "1h", value_parser = humantime::parse_duration)]
    token_ttl: Duration,
    /// How many hosts it may bring in
    #[arg(long, value_name = "N", env = "FLATNET_TOKEN_USES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    token_uses: u32,
    /// Print no command, and make no token for it
    #[arg(long, env = "FLATNET_QUIET")]
    quiet: bool,
    /// Serve /metrics, /healthz and /readyz there
    #[arg(long, value_name = "ADDR:PORT", env = "FLATNET_HTTP_LISTEN")]
    http_listen: Option<SocketAddr>,
}

/// The place where leases are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// A file.
    Embedded,
    /// An etcd.
    Etcd,
    /// Memory.
    Memory,
}

fn named_cidr(text: &str) -> Result<(NetworkName, IpNet), String> {
    let (name, cidr) = text.split_once('=').unwrap_or((NetworkName::DEFAULT, text));
    let name = name.parse().map_err(|_| format!("{name:?} is not a network's name"))?;
    let cidr: IpNet = cidr.parse().map_err(|_| format!("{cidr:?} is not a range such as 10.100.0.0/16"))?;
    if cidr == cidr.trunc() { Ok((name, cidr)) } else { Err(format!("{cidr} has host bits")) }
}

/// Runs until it is told to stop.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    if args.store == StoreKind::Etcd && args.endpoints.is_empty() {
        return Err(Failure::new(Exit::Usage, "--store etcd needs --endpoints"));
    }
    if args.store != StoreKind::Etcd && !args.endpoints.is_empty() {
        return Err(Failure::new(Exit::Usage, "--endpoints are an etcd's").hint("add --store etcd"));
    }
    let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let store = Arc::new(open_store(&args)?);
    let server = Server::open(ServerOptions {
        store: Arc::clone(&store),
        store_name: match args.store {
            StoreKind::Embedded => "embedded",
            StoreKind::Etcd => "etcd",
            StoreKind::Memory => "memory",
        },
        embedded: match store.as_ref() {
            AnyStore::Embedded(embedded) => Some(embedded.clone()),
            AnyStore::Etcd(_) | AnyStore::Memory(_) => None,
        },
        prefix: args.etcd.etcd_prefix.clone(),
        data_dir: args.dir.data_dir.clone(),
        authority: args.ca_cert.clone().zip(args.ca_key.clone()),
        listen: args.listen,
        http_listen: args.http_listen,
    });
    let server = server.await.map_err(|error| cannot_start(&error))?;
    let address = server.address().map_err(|error| Failure::new(Exit::Internal, "no address").caused_by(error))?;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "serving");
    let (ca_hash, prepare_args, prefix) = (server.ca_hash(), args.clone(), args.etcd.etcd_prefix.clone());
    let looked = server.looked();
    let (failed, mut failure) = tokio::sync::mpsc::channel(1);
    // This runs beside the server: while an etcd is away, clients can be told so.
    let prepare = tokio::spawn(async move {
        // Wait until the server knows whether the store was blank: only then may nodes put networks back.
        looked.await;
        if let Err(error) = prepare(store.as_ref(), &prefix, &prepare_args, &ca_hash, address).await {
            // The receiver ends with the process.
            let _ = failed.send(error).await;
        }
        // Do not end: a channel that closes is not a failure.
        std::future::pending::<()>().await;
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = server.serve(async { stopped.await.unwrap_or_default() });
    tokio::pin!(serving);
    let ended = tokio::select! {
        result = &mut serving => return result.map_err(|error| cannot_start(&error)),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(failure) = failure.recv() => Err(failure),
    };
    notify(&[sd_notify::NotifyState::Stopping]);
    prepare.abort();
    drop(stop);
    if let Err(error) = serving.await {
        tracing::warn!(%error, "not everything was put away");
    }
    ended
}

/// Makes the networks, the first token and the line printed with it; waits for the store.
async fn prepare(
    store: &AnyStore,
    prefix: &str,
    args: &ServeArgs,
    ca_hash: &str,
    address: SocketAddr,
) -> Result<(), Failure> {
    let mut specs: Vec<(NetworkName, NetworkSpec)> = Vec::new();
    for (name, net) in &args.init {
        let at = specs.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            specs.push((name.clone(), NetworkSpec { backend: args.init_backend.clone(), ..NetworkSpec::default() }));
            specs.len() - 1
        });
        if let Some((_, spec)) = specs.get_mut(at) {
            match net {
                IpNet::V4(net) => spec.cidr = Some(*net),
                IpNet::V6(net) => spec.cidr6 = Some(*net),
            }
        }
    }
    for (name, spec) in specs {
        loop {
            // Hosts that live in it may be there already: networks are also created again in a store that was lost.
            match networks::create(store, prefix, &name, &spec, Force::Yes).await {
                Ok(_) => break tracing::info!(network = %name, "network created"),
                Err(NetworkError::Exists(_)) => break,
                Err(NetworkError::Store(_) | NetworkError::Busy(_)) => tokio::time::sleep(STORE_RETRY_AFTER).await,
                Err(error) => return Err(Failure::new(Exit::InvalidConfig, error.to_string()).caused_by(error)),
            }
        }
    }
    if !args.quiet {
        let token = loop {
            match crate::server::create_token(store, args.token_ttl, args.token_uses).await {
                Ok(made) => break made,
                Err(error) if error.can_retry() => tokio::time::sleep(STORE_RETRY_AFTER).await,
                Err(error) => return Err(Failure::new(Exit::Unavailable, "no token can be made").caused_by(error)),
            }
        };
        let server = advertised(args.advertise.as_deref(), address);
        print(&format!("agent join grpcs://{server} --token {} --ca-hash {ca_hash}\n", token.token))?;
    }
    notify(&[sd_notify::NotifyState::Ready]);
    Ok(())
}

/// Returns HOST:PORT as hosts are told to use it.
fn advertised(wish: Option<&str>, address: SocketAddr) -> String {
    match wish {
        Some(wish) if wish.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => wish.to_owned(),
        Some(wish) => format!("{wish}:{}", address.port()),
        None if !address.ip().is_unspecified() => address.to_string(),
        None => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{}:{}", name.trim(), address.port())
        }
    }
}

fn open_store(args: &ServeArgs) -> Result<AnyStore, Failure> {
    Ok(match args.store {
        StoreKind::Etcd => AnyStore::Etcd(args.etcd.open(args.endpoints.clone())?),
        StoreKind::Memory => AnyStore::Memory(MemoryStore::new()),
        StoreKind::Embedded => {
            let dir = &args.dir.data_dir;
            flatnet_plane::files::create_dir(dir, 0o700).map_err(|error| {
                Failure::new(Exit::InvalidConfig, format!("cannot use {}", dir.display())).caused_by(error)
            })?;
            let opened = EmbeddedStore::open(&dir.join(STORE_FILE));
            AnyStore::Embedded(opened.map_err(|error| {
                Failure::new(Exit::InvalidConfig, error.to_string())
                    .hint("one server at a time; a damaged file is replaced by a backup: controlplane restore")
            })?)
        }
    })
}

fn cannot_start(error: &ServerError) -> Failure {
    let hint = match error {
        ServerError::Listen { .. } => "another program has that port, or the address is not this host's",
        ServerError::Io { .. } | ServerError::Pki(_) => "the data directory is to be the server's own: --data-dir",
        ServerError::Tls(_) | ServerError::Reflection(_) => "",
    };
    let failure = Failure::new(Exit::InvalidConfig, error.to_string()).hint(hint);
    match std::error::Error::source(error) {
        Some(source) => failure.caused_by(chain(source)),
        None => failure,
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

fn signals(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(Exit::Internal, "cannot listen for signals").caused_by(error))
}
