//! The agent's socket, `<run-dir>/agent.sock`: the server in the daemon, the client in the other commands.
//!
//! Only root reaches it (mode 0600). The server answers from what the tasks publish. It waits for nobody but the
//! reconciler, and for that with a deadline.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flatnet_model::{NetworkName, WireguardKey};
use flatnet_plane::wire::refusal;
use flatnet_proto::agent::v1::agent_client::AgentClient;
use flatnet_proto::agent::v1::agent_server::{Agent, AgentServer};
use flatnet_proto::agent::v1::{
    GetPlanRequest, GetStatusRequest, GetStoreRequest, JoinNetworkReply, JoinNetworkRequest, LeaveNetworkReply,
    LeaveNetworkRequest, LeaveReply, LeaveRequest, Plan, PlannedOp, RotateKeyReply, RotateKeyRequest,
    Status as StatusDocument, Store,
};
use flatnet_proto::controlplane::v1::Refusal;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status};

use crate::files::network_record::RunTimeOptions;
use crate::files::state_dir::SOCKET;
use crate::node::membership::{JoinError, Joining, LeaveError, Left};
use crate::node::rotation::RotationError;
use crate::node::status;
use crate::reconciler::PlanError;
use crate::report::{Exit, Failure, chain};

/// The longest a client waits for an answer. A pass over 8,000 peers takes well under a second; leaving a store that
/// does not answer ends with its own deadline of 3 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The delay before a connection is accepted again after that failed. Descriptors that are used up come back by
/// themselves.
const ACCEPT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Returns the stream of connections. A connection that cannot be accepted does not end it: a server that ended with it
/// would be deaf for good.
fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), listener)),
                Err(error) => {
                    tracing::warn!(%error, "the agent's socket cannot take a connection; trying again");
                    tokio::time::sleep(ACCEPT_RETRY_AFTER).await;
                }
            }
        }
    })
}

/// The requests that the socket passes on to the daemon.
#[derive(Debug)]
pub enum Ask {
    /// Tell what the next pass would change.
    Plan(oneshot::Sender<Result<Vec<PlannedOp>, PlanError>>),
    /// Give the lease back and stop.
    Leave {
        /// Remove everything of ours.
        purge: bool,
        /// The sender for the failures, once done.
        reply: oneshot::Sender<Vec<String>>,
    },
    /// Replace this node's WireGuard key.
    RotateKey(oneshot::Sender<Result<WireguardKey, RotationError>>),
    /// Give up a lost subnet and take a new one.
    Renumber(oneshot::Sender<Vec<String>>),
    /// Join a further network.
    JoinNetwork {
        /// The network.
        name: NetworkName,
        /// How to join it.
        options: RunTimeOptions,
        /// The sender for what came of it.
        reply: oneshot::Sender<Result<Joining, JoinError>>,
    },
    /// Leave one network.
    LeaveNetwork {
        /// The network.
        name: NetworkName,
        /// Also forget what is remembered of it.
        purge: bool,
        /// The sender for what came of it.
        reply: oneshot::Sender<Result<Left, LeaveError>>,
    },
}

/// The server's side of the socket.
pub struct LocalApi<S> {
    status: S,
    store: Store,
    asks: mpsc::Sender<Ask>,
}

impl<S: Fn() -> StatusDocument + Send + Sync + 'static> LocalApi<S> {
    /// Creates a server that answers from `status` and `store`, and hands the rest to `asks`.
    pub fn new(status: S, store: Store, asks: mpsc::Sender<Ask>) -> Self {
        Self { status, store, asks }
    }

    /// Serves on `listener` until `stop` is done.
    pub async fn serve(
        self,
        listener: UnixListener,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        Server::builder()
            .add_service(AgentServer::new(self))
            .serve_with_incoming_shutdown(connections(listener), stop)
            .await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let stopping = |_| Status::unavailable("the agent is stopping");
        self.asks.send(ask(reply)).await.map_err(|_| Status::unavailable("the agent is stopping"))?;
        tokio::time::timeout(ANSWER_TIMEOUT, answer)
            .await
            .map_err(|_| Status::deadline_exceeded("the agent did not get to it in time"))?
            .map_err(stopping)
    }
}

#[tonic::async_trait]
impl<S: Fn() -> StatusDocument + Send + Sync + 'static> Agent for LocalApi<S> {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<StatusDocument>, Status> {
        Ok(Response::new((self.status)()))
    }

    async fn get_plan(&self, _: Request<GetPlanRequest>) -> Result<Response<Plan>, Status> {
        match self.ask(Ask::Plan).await? {
            Ok(ops) => Ok(Response::new(Plan { ops })),
            Err(error) => Err(Status::unavailable(chain(&error))),
        }
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        let LeaveRequest { purge, renumber } = request.into_inner();
        let failures = match (purge, renumber) {
            (true, true) => return Err(Status::invalid_argument("purge and renumber exclude each other")),
            (false, true) => self.ask(Ask::Renumber).await?,
            (purge, false) => self.ask(|reply| Ask::Leave { purge, reply }).await?,
        };
        Ok(Response::new(LeaveReply { failures }))
    }

    async fn rotate_key(&self, _: Request<RotateKeyRequest>) -> Result<Response<RotateKeyReply>, Status> {
        match self.ask(Ask::RotateKey).await? {
            Ok(key) => Ok(Response::new(RotateKeyReply { public_key: key.to_string() })),
            Err(error @ RotationError::NoNetwork) => Err(Status::not_found(error.to_string())),
            Err(error @ RotationError::File(_)) => Err(Status::invalid_argument(error.to_string())),
            Err(error @ (RotationError::Disconnected(_) | RotationError::Unpublished(_))) => {
                Err(Status::unavailable(error.to_string()))
            }
        }
    }

    async fn join_network(&self, request: Request<JoinNetworkRequest>) -> Result<Response<JoinNetworkReply>, Status> {
        let JoinNetworkRequest { name, subnets, subnet_file } = request.into_inner();
        let subnets: Result<Vec<IpNet>, _> = subnets.iter().map(|subnet| subnet.parse()).collect();
        let subnets = subnets.map_err(|_| Status::invalid_argument("a subnet is not a CIDR"))?;
        let subnets = subnets.iter().map(IpNet::trunc).collect();
        let subnet_file = subnet_file.map(PathBuf::from);
        if subnet_file.as_ref().is_some_and(|file| file.is_relative()) {
            return Err(Status::invalid_argument("the path of the env file is not absolute"));
        }
        let options = RunTimeOptions { subnets, subnet_file };
        let name = network_name(&name)?;
        let joined = self.ask(|reply| Ask::JoinNetwork { name, options, reply }).await?;
        let Joining { up, problems, document } = joined.map_err(|error| not_joined(&error))?;
        let problems = problems.into_iter().map(status::problem).collect();
        Ok(Response::new(JoinNetworkReply { network: Some(document), up, problems }))
    }

    async fn leave_network(
        &self,
        request: Request<LeaveNetworkRequest>,
    ) -> Result<Response<LeaveNetworkReply>, Status> {
        let LeaveNetworkRequest { name, purge } = request.into_inner();
        let name = network_name(&name)?;
        let left = self.ask(|reply| Ask::LeaveNetwork { name, purge, reply }).await?;
        let Left { is_named, remains } = left.map_err(|error| not_left(&error))?;
        let failures = remains.iter().map(|remains| chain(remains)).collect();
        Ok(Response::new(LeaveNetworkReply { failures, named: is_named }))
    }

    async fn get_store(&self, _: Request<GetStoreRequest>) -> Result<Response<Store>, Status> {
        Ok(Response::new(self.store.clone()))
    }
}

fn network_name(text: &str) -> Result<NetworkName, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{error}")))
}

/// Makes a refusal with a hint for people.
fn refusal(code: Code, error: &(dyn std::error::Error + 'static), hint: impl Into<String>) -> Status {
    refusal::status(code, chain(error), Refusal { hint: hint.into(), ..Refusal::default() })
}

fn not_joined(error: &JoinError) -> Status {
    const NO_ROOM: &str = "make room in the state directory, or make it writable";
    let (code, hint) = match error {
        JoinError::OtherOptions(name) => {
            (Code::AlreadyExists, format!("leave it first: agent network leave {name}; or leave the options out"))
        }
        JoinError::FileInUse { .. } => (Code::AlreadyExists, "name another --subnet-file".to_owned()),
        JoinError::Named(_) => (Code::InvalidArgument, "leave --subnet and --subnet-file out".to_owned()),
        JoinError::NoSuchNetwork(name) => (
            Code::NotFound,
            format!("`agent network ls` lists them; create it: agent network create {name} --cidr 10.100.0.0/16"),
        ),
        JoinError::Refused(failure) => {
            let code = match failure.exit() {
                Exit::InvalidConfig => Code::InvalidArgument,
                Exit::Unsupported => Code::FailedPrecondition,
                Exit::Conflict => Code::Aborted,
                _ => Code::Internal,
            };
            (code, failure.hints().to_owned())
        }
        JoinError::Record { .. } => (Code::Unavailable, NO_ROOM.to_owned()),
        JoinError::Stopping => (Code::Unavailable, String::new()),
    };
    refusal(code, error, hint)
}

fn not_left(error: &LeaveError) -> Status {
    match error {
        LeaveError::NotJoined(_) => refusal(Code::NotFound, error, "`agent status` lists the networks of this host"),
        LeaveError::Record { .. } => {
            refusal(Code::Unavailable, error, "make room in the state directory, or make it writable")
        }
    }
}

/// Listens on the socket in `run_dir`. Whoever calls this holds the state directory's lock, so a socket that is already
/// there was left by a killed agent.
pub fn listen(run_dir: &Path) -> std::io::Result<UnixListener> {
    let path = run_dir.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Returns a client of the agent in `run_dir`. The exit code is 5 if there is none.
pub async fn connect(run_dir: &Path) -> Result<AgentClient<Channel>, Failure> {
    let path: PathBuf = run_dir.join(SOCKET);
    let shown = path.display().to_string();
    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://agent.localhost")
        .timeout(ANSWER_TIMEOUT + Duration::from_secs(1))
        .connect_with_connector(connector)
        .await
        .map_err(|error| {
            Failure::new(Exit::Unavailable, format!("no agent answers at {shown}"))
                .hint("start one with `agent join ENDPOINT`, or name its --run-dir; the socket is root's")
                .caused_by(error)
        })?;
    Ok(AgentClient::new(channel))
}

/// Converts a refused call to a failure of this command.
#[must_use]
pub fn refused(status: &Status) -> Failure {
    let failure = Failure::new(Exit::of_code(status.code()), format!("the agent answered: {}", status.message()));
    match refusal::details(status).hint {
        hint if hint.is_empty() => failure,
        hint => failure.hint(hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a script sees does not depend on whom the command asked.
    #[test]
    fn a_refusal_of_the_agent_ends_a_command_as_that_of_a_server_does() {
        let expected = [
            (Status::permission_denied("x"), Exit::Unsupported),
            (Status::unauthenticated("x"), Exit::Unsupported),
            (Status::unimplemented("x"), Exit::Unsupported),
            (Status::already_exists("x"), Exit::Conflict),
            (Status::out_of_range("x"), Exit::InvalidConfig),
            (Status::cancelled("x"), Exit::Unavailable),
            (Status::not_found("x"), Exit::NotFound),
            (Status::internal("x"), Exit::Internal),
        ];
        for (status, exit) in expected {
            assert_eq!(refused(&status).exit(), exit, "{status}");
        }
    }
}
