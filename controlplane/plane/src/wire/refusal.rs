//! Refusals: the library's errors as gRPC's status with details, and back.

use flatnet_model::SubnetKey;
use flatnet_proto::controlplane::v1::{Refusal, refusal::Kind};
use prost::Message;
use tonic::{Code, Status};

use crate::allocate::{AcquireError, Holder, UpdateError};
use crate::networks::NetworkError;
use crate::presence::PresenceError;
use crate::store::StoreError;

/// Makes a status with its details.
#[must_use]
#[expect(clippy::needless_pass_by_value, reason = "made for this one call by every caller")]
pub fn status(code: Code, message: impl Into<String>, refusal: Refusal) -> Status {
    Status::with_details(code, message, refusal.encode_to_vec().into())
}

/// Makes the refusal of a caller that has no right to the call.
#[must_use]
pub fn not_allowed(message: impl Into<String>, hint: &str) -> Status {
    let refusal = Refusal { kind: Kind::NotAllowed.into(), hint: hint.to_owned(), ..Refusal::default() };
    status(Code::PermissionDenied, message, refusal)
}

/// Reads the details of a status; default if there are none.
#[must_use]
pub fn details(status: &Status) -> Refusal {
    Refusal::decode(status.details()).unwrap_or_default()
}

fn of(kind: Kind) -> Refusal {
    Refusal { kind: kind.into(), ..Refusal::default() }
}

/// Writes a store's error for a client.
#[must_use]
pub fn store(error: &StoreError) -> Status {
    let message = error.to_string();
    match error {
        StoreError::Unavailable { .. } => status(Code::Unavailable, message, of(Kind::StoreUnavailable)),
        StoreError::Compacted(revision) => {
            status(Code::OutOfRange, message, Refusal { number: *revision, ..of(Kind::StoreCompacted) })
        }
        StoreError::LeaseGone(lease) => {
            status(Code::NotFound, message, Refusal { number: *lease, ..of(Kind::StoreLeaseGone) })
        }
        // The refusal is of the server, not of its caller: a client is told that the store refuses, in the store's
        // words.
        StoreError::Denied { .. } | StoreError::Rejected { .. } => {
            status(Code::Internal, message, of(Kind::StoreRejected))
        }
    }
}

/// Reads a status as the error of a store at `endpoint`.
#[must_use]
pub fn read_store(endpoint: &str, status: &Status) -> StoreError {
    let (endpoint, reason) = (endpoint.to_owned(), status.message().to_owned());
    let details = details(status);
    match (details.kind(), status.code()) {
        (Kind::StoreCompacted, _) => StoreError::Compacted(details.number),
        (Kind::StoreLeaseGone, _) => StoreError::LeaseGone(details.number),
        (Kind::StoreUnavailable, _) => StoreError::Unavailable { endpoint, reason },
        (_, Code::PermissionDenied | Code::Unauthenticated) => StoreError::Denied { endpoint, reason },
        // A server that restarts, a connection that breaks, a call that takes too long.
        (
            Kind::Unspecified,
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Internal,
        )
        | (_, Code::ResourceExhausted) => StoreError::Unavailable { endpoint, reason },
        _ => StoreError::Rejected { endpoint, reason },
    }
}

/// Writes the reason why no lease was acquired, for a client.
#[must_use]
pub fn acquire(error: &AcquireError) -> Status {
    let message = error.to_string();
    let holder =
        |kind, by: &Holder| Refusal { holder: by.name.clone(), holder_subnets: by.subnets.to_string(), ..of(kind) };
    match error {
        AcquireError::Store(error) => store(error),
        AcquireError::NoConfig { network } => {
            status(Code::FailedPrecondition, message, Refusal { network: network.clone(), ..of(Kind::NoConfig) })
        }
        AcquireError::Outside { subnet, network, expected } => {
            let (subnet, network, expected) = (subnet.to_string(), network.clone(), expected.clone());
            status(Code::InvalidArgument, message, Refusal { subnet, network, expected, ..of(Kind::Outside) })
        }
        AcquireError::Moved { subnets, network, expected } => {
            let (subnets, network, expected) = (subnets.to_string(), network.clone(), expected.clone());
            status(Code::FailedPrecondition, message, Refusal { subnets, network, expected, ..of(Kind::Moved) })
        }
        AcquireError::WantedTaken { subnet, by } => {
            status(Code::Aborted, message, Refusal { subnet: subnet.to_string(), ..holder(Kind::WantedTaken, by) })
        }
        AcquireError::Taken { subnets, by } => {
            status(Code::Aborted, message, Refusal { subnets: subnets.to_string(), ..holder(Kind::Taken, by) })
        }
        AcquireError::SamePublicIp { address, subnets, name } => {
            let (address, subnets, holder) = (address.to_string(), subnets.to_string(), name.clone());
            status(Code::Aborted, message, Refusal { address, subnets, holder, ..of(Kind::SamePublicIp) })
        }
        AcquireError::Exhausted(exhausted) => {
            let number = i64::try_from(exhausted.capacity).unwrap_or(i64::MAX);
            let subnet = exhausted.network.to_string();
            status(Code::ResourceExhausted, message, Refusal { subnet, number, ..of(Kind::Exhausted) })
        }
        AcquireError::Busy(attempts) => {
            status(Code::Aborted, message, Refusal { number: i64::from(*attempts), ..of(Kind::Busy) })
        }
    }
}

/// Reads the reason why no lease was acquired, as a server at `endpoint` gave it.
#[must_use]
pub fn read_acquire(endpoint: &str, status: &Status) -> AcquireError {
    let details = details(status);
    read_acquire_details(&details).unwrap_or_else(|| AcquireError::Store(read_store(endpoint, status)))
}

fn read_acquire_details(details: &Refusal) -> Option<AcquireError> {
    let subnets = || details.subnets.parse::<SubnetKey>().ok();
    let by = || Some(Holder { subnets: details.holder_subnets.parse().ok()?, name: details.holder.clone() });
    let (network, expected) = (details.network.clone(), details.expected.clone());
    Some(match details.kind() {
        Kind::NoConfig => AcquireError::NoConfig { network },
        Kind::Outside => AcquireError::Outside { subnet: details.subnet.parse().ok()?, network, expected },
        Kind::Moved => AcquireError::Moved { subnets: subnets()?, network, expected },
        Kind::WantedTaken => AcquireError::WantedTaken { subnet: details.subnet.parse().ok()?, by: by()? },
        Kind::Taken => AcquireError::Taken { subnets: subnets()?, by: by()? },
        Kind::SamePublicIp => AcquireError::SamePublicIp {
            address: details.address.parse().ok()?,
            subnets: subnets()?,
            name: details.holder.clone(),
        },
        Kind::Exhausted => AcquireError::Exhausted(super::exhausted(details)?),
        Kind::Busy => AcquireError::Busy(u32::try_from(details.number).unwrap_or(u32::MAX)),
        _ => return None,
    })
}

/// Writes the reason why a lease was not changed, for a client.
#[must_use]
pub fn update(error: &UpdateError) -> Status {
    match error {
        UpdateError::Lost(subnets) => {
            let refusal = Refusal { subnets: subnets.to_string(), ..of(Kind::LeaseLost) };
            status(Code::NotFound, error.to_string(), refusal)
        }
        UpdateError::Store(error) => store(error),
    }
}

/// Reads the reason why a lease was not changed, as a server at `endpoint` gave it.
#[must_use]
pub fn read_update(endpoint: &str, status: &Status) -> UpdateError {
    let details = details(status);
    match (details.kind(), details.subnets.parse()) {
        (Kind::LeaseLost, Ok(subnets)) => UpdateError::Lost(subnets),
        _ => UpdateError::Store(read_store(endpoint, status)),
    }
}

/// Writes the reason why presence could not be claimed, for a client.
#[must_use]
pub fn presence(error: &PresenceError) -> Status {
    match error {
        PresenceError::Cloned { node, name, nonce } => {
            let (node, holder, nonce) = (node.to_string(), name.clone(), nonce.to_string());
            status(Code::AlreadyExists, error.to_string(), Refusal { node, holder, nonce, ..of(Kind::Cloned) })
        }
        PresenceError::Store(error) => store(error),
    }
}

/// Reads the reason why presence could not be claimed, as a server at `endpoint` gave it.
#[must_use]
pub fn read_presence(endpoint: &str, status: &Status) -> PresenceError {
    let details = details(status);
    match (details.kind(), details.node.parse(), details.nonce.parse()) {
        (Kind::Cloned, Ok(node), Ok(nonce)) => PresenceError::Cloned { node, name: details.holder, nonce },
        _ => PresenceError::Store(read_store(endpoint, status)),
    }
}

/// Writes the reason why a network was not changed, for a client.
#[must_use]
pub fn network(error: &NetworkError) -> Status {
    let code = match error {
        NetworkError::Store(error) => return store(error),
        NetworkError::Exists(_) => Code::AlreadyExists,
        NetworkError::NotFound(_) | NetworkError::NoSuchPeer { .. } => Code::NotFound,
        NetworkError::Invalid { .. } | NetworkError::PeerOutside { .. } => Code::InvalidArgument,
        NetworkError::Busy(_) => Code::Unavailable,
        NetworkError::Overlap { .. }
        | NetworkError::VniInUse { .. }
        | NetworkError::PortInUse { .. }
        | NetworkError::KeyInUse { .. }
        | NetworkError::InUse { .. }
        | NetworkError::Strands { .. }
        | NetworkError::UsedByHosts { .. }
        | NetworkError::PeerOverlap { .. } => Code::Aborted,
    };
    let hint = match error {
        NetworkError::UsedByHosts { .. } => NetworkError::USED_BY_HOSTS_HINT.to_owned(),
        _ => String::new(),
    };
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    status(code, format!("{error}{source}"), Refusal { hint, ..of(Kind::Unspecified) })
}

#[cfg(test)]
mod tests;
