//! The service for joining: a token is exchanged for a certificate.

use std::sync::Arc;

use flatnet_proto::controlplane::v1 as proto;
use proto::enrollment_server::Enrollment;
use tonic::{Code, Request, Response, Status};

use super::{Context, caller, tokens};
use flatnet_plane::identity::{self, CSR_LIMIT, Identity};
use flatnet_plane::store::Store;
use flatnet_plane::wire;

/// The enrollment service.
pub struct EnrollmentService<S> {
    pub(super) context: Arc<Context<S>>,
}

#[tonic::async_trait]
impl<S: Store> Enrollment for EnrollmentService<S> {
    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::Credentials>, Status> {
        let context = &self.context;
        let (peer, address) = caller::stranger(&request)?;
        context.failures.may_try(address)?;
        let message = request.into_inner();
        let result = join(context, &message).await;
        let code = result.as_ref().err().map(Status::code);
        if code.is_some_and(|code| code != Code::Unavailable) {
            context.failures.failed(address);
        }
        // A request that no agent sends is not noted: with such requests a stranger could push the real entries out of
        // the log.
        if code != Some(Code::InvalidArgument) {
            context.audit.note(&peer, "join", &flatnet_model::text::excerpt(&message.node), &result);
        }
        context.done("join", result)
    }
}

async fn join<S: Store>(context: &Context<S>, message: &proto::JoinRequest) -> Result<proto::Credentials, Status> {
    let node = wire::node(&message.node)?;
    let name = wire::node_name(&message.name)?;
    let too_long = || Status::invalid_argument("the certificate request is too long");
    let csr = Some(&message.csr).filter(|csr| csr.len() <= CSR_LIMIT).ok_or_else(too_long)?;
    // The certificate is signed first: a request that cannot be signed uses no token.
    let credentials = context.issue(&Identity::Node(node), csr, context.node_lifetime)?;
    let key_hash = identity::holder(&credentials.certificate).map(|holder| holder.key_hash).unwrap_or_default();
    tokens::use_for(context.store.as_ref(), &context.line, &message.token, node, &name, &key_hash).await?;
    tracing::info!(%node, name, "node joined");
    Ok(credentials)
}
