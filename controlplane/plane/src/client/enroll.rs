//! Joining: a token is exchanged for a certificate.

use std::sync::Arc;

use flatnet_proto::controlplane::v1 as proto;
use proto::enrollment_client::EnrollmentClient;
use tonic::Status;

use super::channel::Transport;
use super::credentials::{self, Credentials, CredentialsError};
use super::{RemoteOptions, ServerAddress, channel};
use crate::tls::{self, Trust};
use crate::wire::refusal;

/// Makes a request for a certificate for the node's key, DER; the key is made if there is none.
pub(super) fn request(options: &RemoteOptions) -> Result<Arc<[u8]>, Status> {
    let key = credentials::key(&options.dir).map_err(failed)?;
    crate::identity::request_for(&key).map(Arc::from).map_err(|error| Status::internal(error.to_string()))
}

/// Joins at `server` with `request` and keeps the certificate it answers with.
pub(super) async fn join(
    options: &RemoteOptions,
    transport: &Transport,
    server: &ServerAddress,
    request: impl FnOnce() -> Result<Arc<[u8]>, Status>,
) -> Result<Credentials, Status> {
    let (Some(token), Some(ca_hash)) = (&options.token, &options.ca_hash) else {
        return Err(refusal::not_allowed(
            "this node has no certificate that is good now",
            "join with --token and --ca-hash: controlplane token create prints both",
        ));
    };
    let csr = request()?.to_vec();
    let config = tls::client(&Trust::Hash(ca_hash.clone()), None)
        .map_err(|error| Status::failed_precondition(error.to_string()))?;
    let channel =
        transport.channel(server, config, None).map_err(|error| Status::failed_precondition(error.to_string()))?;
    let message =
        proto::JoinRequest { token: token.clone(), csr, node: options.node.to_string(), name: options.name.clone() };
    let reply = EnrollmentClient::new(channel).join(message).await.map_err(channel::with_causes)?;
    let key = credentials::key(&options.dir).map_err(failed)?;
    let joined = Credentials::answered(key, &reply.into_inner()).map_err(failed)?;
    if joined.authority_hash() != *ca_hash || !joined.is_for(options.node) {
        return Err(Status::failed_precondition("the server answered with somebody else's certificate"));
    }
    joined.write(&options.dir).map_err(failed)?;
    tracing::info!(%server, "joined; this node has its certificate");
    Ok(joined)
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` has it")]
fn failed(error: CredentialsError) -> Status {
    Status::failed_precondition(error.to_string())
}
