//! The problems of a lease, in words.

use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_model::keys::NetworkKeys;
use flatnet_model::{NetworkConfig, SubnetKey};
use flatnet_plane::allocate::AcquireError;
use ipnet::IpNet;

use crate::report::{Exit, Failure};
use crate::wiring::networks::Held;

const RENUMBER: &str = "containers here go on with the old addresses; when they may change: agent leave --renumber";

/// Converts a failed attempt to a problem; `None` when the view of the store says it already.
pub(super) fn acquire(keys: &NetworkKeys, error: &AcquireError) -> Option<Problem> {
    let network = keys.network();
    let (code, hint) = match error {
        AcquireError::Store(_) | AcquireError::NoConfig { .. } => return None,
        AcquireError::Busy(_) => return None,
        AcquireError::Taken { subnets, by } => return Some(taken(keys, *subnets, &by.name)),
        AcquireError::Exhausted(_) => (
            ProblemCode::SubnetsExhausted,
            "waiting for one to be given back; remove dead hosts' leases or widen the network".to_owned(),
        ),
        AcquireError::Moved { .. } => (ProblemCode::SubnetOutside, RENUMBER.to_owned()),
        AcquireError::Outside { .. } => {
            (ProblemCode::SubnetOutside, "ask for a subnet that the network hands out".to_owned())
        }
        AcquireError::WantedTaken { .. } => {
            (ProblemCode::SubnetTaken, format!("choose another --subnet: agent network inspect {network}"))
        }
        AcquireError::SamePublicIp { .. } => (
            ProblemCode::PublicIpConflict,
            "two hosts cannot receive at one address: name this host's own with --iface or --public-ip".to_owned(),
        ),
    };
    Some(Problem::new(code, format!("network {network}: {error}"), hint, network))
}

/// Returns the problem that this node's subnet is another's.
pub(super) fn taken(keys: &NetworkKeys, subnets: SubnetKey, by: &str) -> Problem {
    let network = keys.network();
    Problem::new(
        ProblemCode::SubnetLost,
        format!("network {network}: this node's subnet {subnets} was taken by {by}"),
        RENUMBER,
        subnets,
    )
}

/// Returns the problem that the command line asks for another subnet than containers live in. The latter comes first.
pub(super) fn differs(keys: &NetworkKeys, wanted: &[IpNet], held: SubnetKey) -> Option<Problem> {
    let network = keys.network();
    let other = wanted.iter().find(|wanted| held.iter().all(|held| held != **wanted))?;
    Some(Problem::new(
        ProblemCode::SubnetDiffers,
        format!("network {network}: --subnet asks for {other}, but this node holds {held}"),
        "leave --subnet out; or, when addresses of containers here may change: agent leave, then join again",
        held,
    ))
}

/// Returns the problem that the network was changed while this node holds a subnet that no longer fits it.
pub(super) fn changed(keys: &NetworkKeys, stored: &NetworkConfig, held: &Held) -> Problem {
    let network = keys.network();
    let ranges: Vec<String> =
        stored.pools().map(|pool| format!("{} in /{}", pool.network(), pool.subnet_len())).collect();
    Problem::new(
        ProblemCode::NetworkChanged,
        format!(
            "network {network} was changed to {}: this node's subnet {} does not fit it",
            ranges.join(" and "),
            held.subnets
        ),
        "the old configuration stays in force here; put it back, or give the subnet up with: agent leave --renumber",
        network,
    )
}

/// Logs, once, a configuration that is refused for what it would do to this host.
pub(super) fn say(problem: &Problem) {
    if problem.code == ProblemCode::NetworkCoversHost {
        tracing::warn!(
            code = problem.code.as_str(),
            object = problem.object,
            hint = problem.hint,
            "{}",
            problem.message
        );
    }
}

/// Returns the problem that the network was changed to what this host cannot have beside what it has.
pub(super) fn not_in_force(keys: &NetworkKeys, why: &Problem) -> Problem {
    Problem {
        message: format!(
            "{}; the configuration of network {} before that stays in force here",
            why.message,
            keys.network()
        ),
        ..why.clone()
    }
}

/// Returns the problem that the network was given a backend that nobody here can build.
pub(super) fn backend_changed(keys: &NetworkKeys, backend: &str, held: &Held) -> Problem {
    let network = keys.network();
    Problem::new(
        ProblemCode::BackendUnsupported,
        format!(
            "network {network} was changed to the backend {backend:?}, which is not supported; {} stays in force here",
            held.config.backend.kind()
        ),
        format!("agent network update {network} --backend vxlan: supported are vxlan, wireguard, gre and host-gw"),
        network,
    )
}

/// Returns the failure of an agent that cannot serve its network on this host.
pub(super) fn unsupported(problem: &Problem) -> Failure {
    Failure::new(Exit::Unsupported, problem.message.clone()).hint(problem.hint.clone())
}

/// Returns the failure that ends an agent which has nothing to lose yet, if only an operator can put `error` right.
pub(super) fn fatal(error: &AcquireError) -> Option<Failure> {
    let (exit, hint) = match error {
        AcquireError::Outside { .. } => (Exit::InvalidConfig, "ask for a subnet that the network hands out"),
        AcquireError::WantedTaken { .. } => {
            (Exit::Conflict, "choose another --subnet, or leave it out to get a free one")
        }
        AcquireError::SamePublicIp { .. } => (
            Exit::Conflict,
            "two hosts cannot receive at one address: name this host's own with --iface or --public-ip",
        ),
        AcquireError::NoConfig { .. }
        | AcquireError::Moved { .. }
        | AcquireError::Taken { .. }
        | AcquireError::Exhausted(_)
        | AcquireError::Busy(_)
        | AcquireError::Store(_) => return None,
    };
    Some(Failure::new(exit, error.to_string()).hint(hint))
}
