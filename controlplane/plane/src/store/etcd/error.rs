//! Translating etcd-client's errors.

use std::error::Error as _;

use etcd_client::Error;

use crate::store::StoreError;

// gRPC's codes (google.golang.org/grpc/codes), by number: etcd-client does not export tonic's type.
const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const DATA_LOSS: i32 = 15;
const UNAUTHENTICATED: i32 = 16;

/// Returns the store's error for one of etcd-client's, with `endpoint` named.
pub(super) fn classify(endpoint: &str, error: &Error) -> StoreError {
    let endpoint = endpoint.to_owned();
    match error {
        Error::GRpcStatus(status) => {
            let reason = with_causes(status.message(), status.source());
            match i32::from(status.code()) {
                NOT_FOUND if reason.contains("lease not found") => StoreError::LeaseGone(0),
                OUT_OF_RANGE if reason.contains("compacted") => StoreError::Compacted(0),
                PERMISSION_DENIED | UNAUTHENTICATED => StoreError::Denied { endpoint, reason },
                INVALID_ARGUMENT
                    if reason.contains("authentication failed") || reason.contains("user name is empty") =>
                {
                    StoreError::Denied { endpoint, reason }
                }
                // The token is from before the users were changed: the next connection gets a new one.
                INVALID_ARGUMENT if reason.contains("auth store is old") => {
                    StoreError::Unavailable { endpoint, reason }
                }
                INVALID_ARGUMENT | NOT_FOUND | FAILED_PRECONDITION | OUT_OF_RANGE | UNIMPLEMENTED => {
                    StoreError::Rejected { endpoint, reason }
                }
                // A full quota (NOSPACE) and a corrupt member are answers of a store that is there, and last until
                // somebody clears the alarm. Too many requests at once pass by themselves.
                RESOURCE_EXHAUSTED if reason.contains("database space exceeded") => {
                    StoreError::Rejected { endpoint, reason }
                }
                DATA_LOSS => StoreError::Rejected { endpoint, reason },
                // Everything else is the network, a restart, an election or an overload.
                _ => unavailable(endpoint, reason),
            }
        }
        Error::LeaseKeepAliveError(reason) if reason.contains("lease not found") => StoreError::LeaseGone(0),
        Error::InvalidArgs(reason) => StoreError::Rejected { endpoint, reason: reason.clone() },
        Error::InvalidUri(reason) => StoreError::Rejected { endpoint, reason: reason.to_string() },
        Error::TransportError(error) => {
            let reason = with_causes(&error.to_string(), error.source());
            unavailable(endpoint, reason)
        }
        other => StoreError::Unavailable { endpoint, reason: other.to_string() },
    }
}

/// Makes the error of a connection that failed. With TLS 1.3 (RFC 8446 §4.4.2.4 and §6) a client learns that its
/// certificate is refused after its side of the handshake is done. What remains of that here is a connection that ends
/// before it answered anything.
fn unavailable(endpoint: String, mut reason: String) -> StoreError {
    const ENDED: [&str; 4] = ["connection closed", "connection reset", "broken pipe", "canceled"];
    let said = reason.to_ascii_lowercase();
    if endpoint.starts_with("https://") && !said.contains("certificate") && ENDED.iter().any(|word| said.contains(word))
    {
        reason.push_str(
            " (so ends a server that does not accept the client's certificate: expired, of another CA, or none)",
        );
    }
    StoreError::Unavailable { endpoint, reason }
}

/// Puts the lease's id into an error that etcd answers without it.
pub(super) fn name_lease(error: StoreError, lease: Option<i64>) -> StoreError {
    match (error, lease) {
        (StoreError::LeaseGone(0), Some(lease)) => StoreError::LeaseGone(lease),
        (error, _) => error,
    }
}

/// Returns `message` with its causes: "tcp connect error" alone does not say whether the port is closed or the name
/// unknown.
fn with_causes(message: &str, source: Option<&(dyn std::error::Error + 'static)>) -> String {
    /// The most causes named: deeper ones are the libraries' own wrapping.
    const DEPTH: usize = 6;
    let mut text = message.to_owned();
    let mut source = source;
    for _ in 0..DEPTH {
        let Some(cause) = source else { break };
        let said = cause.to_string();
        if !text.contains(&said) {
            text = if text.is_empty() { said } else { format!("{text}: {said}") };
        }
        source = cause.source();
    }
    text
}
