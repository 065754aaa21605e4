//! Entrances for fuzzing: any bytes in the place of what the other end of a connection sends.
//!
//! This is no interface of the crate: hidden from its documentation. What is *not* here: the targets, which are with
//! the tests.

use flatnet_model::NodeId;
use flatnet_proto::controlplane::v1 as proto;
use prost::Message;
use tonic::{Code, Status};

use crate::identity;
use crate::wire::{self, refusal};

/// The longest text repeated from what somebody sent, in bytes: it ends in logs and on terminals.
const SAID: usize = 600;

fn short<T>(result: Result<T, Status>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(status) => {
            assert!(status.message().len() <= SAID, "{}", status.message());
            assert!(!status.message().chars().any(char::is_control), "{:?}", status.message());
            None
        }
    }
}

/// Sends requests of nodes and administrators, each with `bytes` for its message.
pub fn requests(bytes: &[u8]) {
    if let Ok(message) = proto::AcquireRequest::decode(bytes) {
        let _ = short(wire::network(&message.network));
        let _ = short(wire::owner(NodeId::new(1), message.instance.as_ref()));
        let _ = short(wire::wanted(&message.wanted));
        if let Some(subnets) = short(wire::subnets(&message.previous)) {
            assert_eq!(subnets.to_string(), message.previous, "one lease is spelt in one way");
            let _ = short(wire::publication(&message.publication, subnets));
        }
        let _ = crate::flannel::decode_config(&message.config);
    }
    if let Ok(proto::WatchRequest { network, position: Some(position) }) = proto::WatchRequest::decode(bytes) {
        let _ = short(wire::network(&network));
        assert_eq!(wire::position(&wire::read_position(&position)), position);
    }
    if let Ok(message) = proto::ChangeNetworkRequest::decode(bytes)
        && let (Some(name), Some(spec)) = (short(wire::network(&message.name)), short(wire::spec(&message)))
    {
        let again = wire::spec(&wire::change_request(&name, &spec, message.force));
        assert_eq!(format!("{:?}", again.ok()), format!("{:?}", Some(spec)));
    }
    if let Ok(message) = proto::JoinRequest::decode(bytes) {
        let (_, _) = (short(wire::node(&message.node)), short(wire::node_name(&message.name)));
        let _ = identity::request_key_hash(&message.csr);
    }
}

/// Reads `bytes` as answers of a server, and as its refusals, as a node does.
pub fn answers(bytes: &[u8]) {
    let endpoint = "grpcs://192.0.2.1:7443";
    if let Ok(reply) = proto::AcquireReply::decode(bytes) {
        let _ = wire::read_claim(reply);
    }
    if let Ok(reply) = proto::WatchReply::decode(bytes) {
        match reply.news {
            Some(proto::watch_reply::News::Batch(batch)) => {
                let count = batch.changes.len();
                assert!(wire::batch("/coreos.com/network/", batch).events.len() <= count);
            }
            Some(proto::watch_reply::News::Snapshot(part)) => {
                for record in part.records {
                    assert!(wire::key_value("/coreos.com/network/", record).key.starts_with(b"/coreos.com/network/"));
                }
            }
            Some(proto::watch_reply::News::Resumed(_)) | None => {}
        }
    }
    for code in [Code::PermissionDenied, Code::Unavailable, Code::Aborted, Code::ResourceExhausted, Code::NotFound] {
        let status = Status::with_details(code, "refused", bytes.to_vec().into());
        drop((refusal::read_store(endpoint, &status), refusal::read_acquire(endpoint, &status)));
        drop((refusal::read_update(endpoint, &status), refusal::read_presence(endpoint, &status)));
    }
}

/// Reads `bytes` as a certificate that a client shows, and as a request for one.
pub fn certificate(bytes: &[u8]) {
    let (_, _) = (identity::holder(bytes), identity::request_key_hash(bytes));
}
