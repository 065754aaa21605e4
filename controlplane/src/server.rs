//! The server: a thin shell over the library, for agents that are not to hold the store's credentials.
//!
//! [`Server`] is the composition root: it decides what is opened, which tasks run, and in which order they end. The
//! services decide who may do what and leave the doing to the library. Any number of servers may share one etcd;
//! nothing is kept here that another one could not know.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use flatnet_model::Revision;
use flatnet_proto::controlplane::v1 as proto;
use futures::FutureExt;
use proto::admin_server::AdminServer;
use proto::enrollment_server::EnrollmentServer;
use proto::node_server::NodeServer;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tonic::service::Routes;
use tonic::transport::server::Server as Grpc;
use tonic::{Response, Status};

use crate::authority::{Authority, SERVER_LIFETIME};
use crate::store::embedded::EmbeddedStore;
use flatnet_plane::clock;
use flatnet_plane::identity::{self, Identity, PkiError};
use flatnet_plane::networks::{self, NetworkError};
use flatnet_plane::store::{Store, StoreError};
use flatnet_plane::tls;

mod admin;
mod audit;
mod caller;
mod enrollment;
mod gate;
mod http;
mod hub;
pub(crate) mod keys;
mod listener;
mod look;
mod metrics;
mod node;
mod registry;
mod removal;
#[cfg(feature = "simulation")]
mod replica;
mod tokens;
mod watches;
mod witness;

use audit::Audit;
use gate::Gate;
use hub::Hubs;
use listener::SharedConfig;
use metrics::Metrics;
use registry::Registry;
use watches::Watches;
use witness::Witness;

#[cfg(feature = "simulation")]
pub use replica::{Replica, Stranger};
pub use tokens::NewToken;

/// The local socket's name in the data directory.
pub const SOCKET: &str = "admin.sock";
/// The authority's directory in the data directory.
pub const PKI: &str = "pki";
/// The most calls and streams on one connection: an agent has one stream a network and a few calls.
const STREAMS: u32 = 128;
/// The most calls and streams on a connection without a certificate: it joins, or looks whether the server is well.
const STRANGERS_STREAMS: u32 = 4;
/// The bytes that may be on their way on one stream before they are read: the least HTTP/2 has (RFC 9113 §6.9.2).
const WINDOW: u32 = 65_535;
/// The longest request taken, in bytes: a network's configuration, up to 64 KB, and some more.
const REQUEST: usize = 128 * 1024;
/// The longest request taken without a certificate, in bytes: a request for one has some 300, 8 KB at most.
const STRANGERS_REQUEST: usize = 16 * 1024;
/// The time within which a connection must answer a ping, and between two pings. A connection that does not is gone.
const PING_EVERY: Duration = Duration::from_secs(10);
/// The time a stopping server waits for calls under way.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(1);
/// The age at which the server's certificate is made anew.
const RENEW_CERTIFICATE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// The pause between two looks at its age. The age is by the clock, which may be set, and goes on while a virtual
/// machine is suspended.
const CERTIFICATE_CHECK_EVERY: Duration = Duration::from_secs(60);
/// The time for which nodes may put networks back after a wipe was seen. A fleet that lost its store is there within
/// minutes; afterwards an administrator does it.
const RESTORE_WINDOW: Duration = Duration::from_secs(15 * 60);
/// The pause between two questions to the store whether it answers.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// The parts a server is made from.
pub struct ServerOptions<S> {
    /// The store with the leases.
    pub store: Arc<S>,
    /// The kind of the store, for people.
    pub store_name: &'static str,
    /// The embedded store, if `store` is one: a file that can be backed up.
    pub embedded: Option<EmbeddedStore>,
    /// The prefix at which the network `default` lives in it.
    pub prefix: String,
    /// The directory of the authority, the socket and the audit log.
    pub data_dir: PathBuf,
    /// An authority of the user's own, certificate and key as PEM files; without it, one is made in `data_dir`.
    pub authority: Option<(PathBuf, PathBuf)>,
    /// The address at which agents connect.
    pub listen: SocketAddr,
    /// The address of /metrics, /healthz and /readyz.
    pub http_listen: Option<SocketAddr>,
}

/// The reason why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A file or directory cannot be used.
    #[error("cannot use {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The authority cannot be opened.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS cannot be set up.
    #[error("cannot set TLS up")]
    Tls(#[from] rustls::Error),
    /// The definitions of the services cannot be served.
    #[error("cannot serve the definitions of the services")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// The state that all services share.
pub(crate) struct Context<S> {
    store: Arc<S>,
    store_name: &'static str,
    embedded: Option<EmbeddedStore>,
    prefix: String,
    authority: Authority,
    /// The lifetime of a node's certificate.
    node_lifetime: Duration,
    registry: Arc<Registry>,
    hubs: Hubs<S>,
    watches: Watches,
    witness: Witness,
    audit: Audit,
    failures: tokens::Failures,
    line: tokens::Line,
    metrics: Metrics,
    /// The memory of the looks at the store, which are taken one after the other.
    looks: tokio::sync::Mutex<Looks>,
    /// `Ok` while the store answers, else the reason why not.
    ready: watch::Sender<Result<(), String>>,
    /// Set once, when the server ends.
    stopping: watch::Sender<bool>,
}

impl<S: Store> Context<S> {
    fn new(
        store: Arc<S>,
        store_name: &'static str,
        prefix: String,
        authority: Authority,
        (audit, witness): (Audit, Witness),
    ) -> Self {
        Self {
            watches: Watches::default(),
            witness,
            hubs: Hubs::new(Arc::clone(&store)),
            store,
            store_name,
            embedded: None,
            prefix,
            authority,
            node_lifetime: crate::authority::NODE_LIFETIME,
            registry: Arc::default(),
            audit,
            failures: tokens::Failures::default(),
            line: tokens::Line::default(),
            metrics: Metrics::default(),
            looks: tokio::sync::Mutex::default(),
            ready: watch::Sender::new(Err("the store has not answered yet".to_owned())),
            stopping: watch::Sender::new(false),
        }
    }

    /// Counts an answer and makes the response of it.
    fn done<T>(&self, method: &'static str, result: Result<T, Status>) -> Result<Response<T>, Status> {
        self.metrics.answered(method, result.as_ref().map_or_else(Status::code, |_| tonic::Code::Ok));
        result.map(Response::new)
    }

    fn issue(&self, identity: &Identity, csr: &[u8], lifetime: Duration) -> Result<proto::Credentials, Status> {
        let issued = self.authority.issue(identity, csr, lifetime).map_err(|error| match error {
            PkiError::Invalid(reason) => Status::invalid_argument(reason),
            other => Status::internal(other.to_string()),
        })?;
        Ok(proto::Credentials {
            certificate: issued.certificate.to_vec(),
            authority: self.authority.certificate().to_vec(),
            not_after: identity::unix_seconds(issued.not_after),
        })
    }

    /// Decides whether nodes may put networks back. This server, or an earlier run of it, must have seen networks in
    /// the store that are gone, since it came to the store or since the store went back under it. Nobody but nodes may
    /// have written networks since, and it must not be long ago.
    async fn was_wiped(&self) -> Result<bool, StoreError> {
        let mut looks = self.looks.lock().await;
        let look = look::look(self.store.as_ref(), &self.prefix).await?;
        if !look.is_blank && looks.written != Some(look.written) {
            let all = networks::list(self.store.as_ref(), &self.prefix).await.map_err(|error| match error {
                NetworkError::Store(error) => error,
                other => StoreError::Unavailable { endpoint: "store".to_owned(), reason: other.to_string() },
            })?;
            let all = all.iter().map(|info| (info.keys.network(), info.config_value.as_slice()));
            // While nodes are putting networks back, not all are there yet.
            self.witness.saw_these(all, !look.is_restored);
            looks.written = Some(look.written);
        }
        // Networks are seen between two looks too.
        let seen = self.witness.newest(look.revision);
        let went_back = looks.newest.is_none_or(|newest| look.revision < newest.max(seen));
        looks.wiped = look.is_blank && !self.witness.is_empty() && (looks.wiped || went_back);
        looks.newest = Some(look.revision);
        let is_open = looks.wiped || look.is_restored;
        looks.open_since = is_open.then(|| looks.open_since.unwrap_or_else(tokio::time::Instant::now));
        Ok(looks.open_since.is_some_and(|since| since.elapsed() < RESTORE_WINDOW))
    }
}

/// The memory a server has of its looks at the store.
#[derive(Default)]
struct Looks {
    /// The store's revision at the last look.
    newest: Option<Revision>,
    /// True if the store was blank at the first look, or has gone back to being so, and networks were seen in it
    /// before.
    wiped: bool,
    /// The revision of the last write of networks that were seen.
    written: Option<Revision>,
    /// The time since which nodes may put networks back.
    open_since: Option<tokio::time::Instant>,
}

/// A server with everything opened, not serving yet.
pub struct Server<S> {
    context: Arc<Context<S>>,
    listener: TcpListener,
    http: Option<TcpListener>,
    socket: std::os::unix::net::UnixListener,
    socket_path: PathBuf,
    tls: SharedConfig,
}

impl<S: Store> Server<S> {
    /// Opens everything: a mistake ends here, with nothing done. The store need not answer yet.
    pub async fn open(options: ServerOptions<S>) -> Result<Self, ServerError> {
        let dir = options.data_dir;
        let io = |path: &std::path::Path| {
            let path = path.to_owned();
            move |source| ServerError::Io { path, source }
        };
        flatnet_plane::files::create_dir(&dir, 0o700).map_err(io(&dir))?;
        let authority = match options.authority {
            Some((certificate, key)) => Authority::read(&certificate, &key)?,
            None => Authority::open(&dir.join(PKI))?,
        };
        let audit = Audit::open(&dir).map_err(io(&dir.join("audit.log")))?;
        let tls = Arc::new(RwLock::new(Arc::new(tls_config(&authority)?)));
        let listen = |address| async move {
            TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
        };
        let listener = listen(options.listen).await?;
        let http = match options.http_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let socket_path = dir.join(SOCKET);
        let socket = listener::bind_local(&socket_path).map_err(io(&socket_path))?;
        let kept = (audit, Witness::open(&dir));
        let context = Context::new(options.store, options.store_name, options.prefix, authority, kept);
        let context = Arc::new(Context { embedded: options.embedded, ..context });
        Ok(Self { context, listener, http, socket, socket_path, tls })
    }

    /// Returns the address on which it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Ends when the store has answered: from then on it is known whether it was blank, and may be written.
    pub fn looked(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ready = self.context.ready.subscribe();
        async move {
            // If the server is gone, nobody waits for this.
            let _ = ready.wait_for(Result::is_ok).await;
        }
    }

    /// Returns `sha256:…` of the authority's certificate.
    #[must_use]
    pub fn ca_hash(&self) -> String {
        self.context.authority.hash()
    }

    /// Serves until `stop` ends.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), ServerError> {
        let stopped = self.context.stopping.subscribe();
        let until = |mut stopped: watch::Receiver<bool>| async move {
            // A dropped sender stops the server too.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let mut tasks = tokio::task::JoinSet::new();
        let (registry, store) = (Arc::clone(&self.context.registry), Arc::clone(&self.context.store));
        tasks.spawn(async move { registry.run(store).await });
        tasks.spawn(probe(Arc::clone(&self.context)));
        tasks.spawn(renew_certificate(Arc::clone(&self.context), Arc::clone(&self.tls)));
        if let Some(http) = self.http {
            tasks.spawn(http::serve(http, Arc::clone(&self.context)));
        }
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(flatnet_proto::DESCRIPTORS)
            .build_v1()?;
        let reflection = reflection.max_decoding_message_size(STRANGERS_REQUEST);
        let routes = routes(&self.context).await.add_service(reflection).prepare();
        let gate = Gate::new(Arc::clone(&self.context.registry));
        let incoming = listener::tls(self.listener, self.tls, Arc::clone(&self.context.registry));
        let known = grpc(STREAMS).layer(gate.clone()).add_routes(routes.clone());
        let known = known.serve_with_incoming_shutdown(incoming.known, until(stopped.clone()));
        let strangers = grpc(STRANGERS_STREAMS).layer(gate.clone()).add_routes(routes.clone());
        let strangers = strangers.serve_with_incoming_shutdown(incoming.strangers, until(stopped.clone()));
        for (served, what) in [(known.boxed(), "the listener broke"), (strangers.boxed(), "the listener broke")] {
            tasks.spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!(%error, what);
                }
            });
        }
        let local = grpc(STREAMS).layer(gate).add_routes(routes);
        let socket = self.socket;
        let local = beside(async move {
            let served = async {
                let incoming = listener::local(socket)?;
                local.serve_with_incoming_shutdown(incoming, until(stopped)).await.map_err(std::io::Error::other)
            };
            if let Err(error) = served.await {
                tracing::error!(%error, "the local socket broke");
            }
        });
        let path = self.socket_path;
        tasks.spawn(local.map_err(|source| ServerError::Io { path: path.clone(), source })?);
        stop.await;
        // This ends the watches, and with them what holds connections open.
        self.context.stopping.send_replace(true);
        let _ = tokio::time::timeout(LAST_ANSWERS_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await;
        tasks.shutdown().await;
        std::fs::remove_file(&path).map_err(|source| ServerError::Io { path, source })
    }
}

/// Runs `work` on a thread of its own, which no number of remote ends keeps busy: the local administrator is heard
/// whatever goes on. The returned value ends with the work, and dropping it ends the work.
fn beside(
    work: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (wanted, dropped) = oneshot::channel::<()>();
    let (tell, ended) = oneshot::channel();
    std::thread::Builder::new().name("local".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = work => {}
                _ = dropped => {}
            }
        });
        // The server may have stopped waiting.
        let _ = tell.send(());
    })?;
    Ok(async move {
        let _wanted = wanted;
        // Its sender is dropped only when it has ended.
        let _ = ended.await;
    })
}

fn grpc(streams: u32) -> Grpc {
    Grpc::builder()
        .max_concurrent_streams(streams)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_EVERY))
        .http2_max_header_list_size(8 * 1024)
}

async fn routes<S: Store>(context: &Arc<Context<S>>) -> Routes {
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut ready = context.ready.subscribe();
    tokio::spawn(async move {
        loop {
            let serving = match &*ready.borrow_and_update() {
                Ok(()) => tonic_health::ServingStatus::Serving,
                Err(_) => tonic_health::ServingStatus::NotServing,
            };
            health.set_service_status("", serving).await;
            health.set_service_status("flatnet.controlplane.v1.Node", serving).await;
            if ready.changed().await.is_err() {
                return;
            }
        }
    });
    let enrollment = enrollment::EnrollmentService { context: Arc::clone(context) };
    let node = node::NodeService { context: Arc::clone(context) };
    let admin = admin::AdminService { context: Arc::clone(context) };
    Routes::new(health_service.max_decoding_message_size(STRANGERS_REQUEST))
        .add_service(EnrollmentServer::new(enrollment).max_decoding_message_size(STRANGERS_REQUEST))
        .add_service(NodeServer::new(node).max_decoding_message_size(REQUEST))
        .add_service(AdminServer::new(admin).max_decoding_message_size(REQUEST))
}

fn tls_config(authority: &Authority) -> Result<rustls::ServerConfig, ServerError> {
    let (issued, key) = authority.issue_with_key(&Identity::Server, SERVER_LIFETIME)?;
    Ok(tls::server(authority.certificate(), issued.certificate, key)?)
}

/// Renews the server's own certificate, so that it is never older than a day.
async fn renew_certificate<S: Store>(context: Arc<Context<S>>, tls: SharedConfig) {
    let mut made = clock::now();
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK_EVERY).await;
        let now = clock::now();
        // The certificate was made at a time that is in the future now: it may not be good yet.
        if now.duration_since(made).is_ok_and(|age| age < RENEW_CERTIFICATE_AFTER) {
            continue;
        }
        match tls_config(&context.authority) {
            Ok(config) => {
                *tls.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                made = now;
            }
            Err(error) => tracing::error!(%error, "the server's certificate cannot be renewed"),
        }
    }
}

/// Asks the store every second whether it answers. It does so by reading, which takes a quorum.
async fn probe<S: Store>(context: Arc<Context<S>>) {
    loop {
        // Each look counts, also when no node offers anything: the store may go back between two of them.
        let answer = match context.was_wiped().await {
            Ok(_) => context.store.refuses_changes().map_or(Ok(()), Err),
            Err(error) => Err(error.to_string()),
        };
        context.ready.send_if_modified(|ready| {
            let changed = *ready != answer;
            match &answer {
                Err(reason) if changed => tracing::warn!(reason, "the store does not answer"),
                Ok(()) if changed => tracing::info!("the store answers"),
                _ => {}
            }
            *ready = answer;
            changed
        });
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

/// Makes a join token in the store of a server: the first one, for the administrator who starts the server.
pub async fn create_token<S: Store>(store: &S, ttl: Duration, uses: u32) -> Result<NewToken, StoreError> {
    tokens::create(store, ttl, uses, None).await
}

/// Uses a token for a node without a name, as a joining node does.
pub(crate) async fn use_token<S: Store>(store: &S, token: &str, node: flatnet_model::NodeId) -> Result<(), Status> {
    tokens::use_for(store, &tokens::Line::default(), token, node, "", "").await
}
