//! The end of a command, and what it says about a store that does not answer.

use flatnet_plane::networks::NetworkError;
use flatnet_plane::store::StoreError;

pub use flatnet_plane::failure::{Exit, Failure, chain, note, print};

/// Returns what to do about a store that answers and refuses. `said`: the store's words.
#[must_use]
pub fn refusal_hint(said: &str) -> &'static str {
    let said = said.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if says(&["database space exceeded"]) {
        "etcd's quota is full and it takes no writes: compact and defragment it, or raise --quota-backend-bytes, then \
         `etcdctl alarm disarm`; leases that cannot be renewed end meanwhile"
    } else if says(&["corrupt"]) {
        "a member of etcd found its data damaged: `etcdctl alarm list`, replace that member, then `etcdctl alarm disarm`"
    } else if says(&["authentication failed", "invalid auth token", "user name is empty", "auth"]) {
        "check --etcd-username, and the password in the file of --etcd-password-file, which is read again by itself"
    } else if says(&["permission denied"]) {
        "give etcd's user readwrite on the prefix of the network (/coreos.com/network unless --etcd-prefix says another) \
         and on /flatnet: etcdctl role grant-permission ROLE readwrite --prefix=true /flatnet/"
    } else if StoreError::is_about_certificates(&said) {
        store_hint(&said)
    } else {
        "the store is there and will not do it; its words say why: rights, a read-only proxy or replica, an alarm \
         (`etcdctl alarm list`)"
    }
}

/// Returns what to do about a store that does not answer. `reason`: what the store, or the way to it, said.
#[must_use]
pub fn store_hint(reason: &str) -> &'static str {
    if StoreError::is_about_certificates(reason) {
        "one side does not trust the other's certificate: check --etcd-cafile, --etcd-certfile and --etcd-keyfile, and that \
         nothing has expired; a running agent reads new files when it connects again, by itself"
    } else {
        "check the endpoint, and that etcd runs there and has a leader, or the control plane"
    }
}

/// Turns an error of a command on networks into its failure.
#[must_use]
pub fn network_failure(error: &NetworkError) -> Failure {
    let (exit, hint) = match error {
        NetworkError::Exists(_) => (Exit::Conflict, "change it with `agent network update`"),
        NetworkError::NotFound(_) => {
            (Exit::NotFound, "`agent network ls` lists them; create it with `agent network create`")
        }
        NetworkError::Invalid { .. } => {
            (Exit::InvalidConfig, "nothing was written; `agent network create --help` lists the values")
        }
        NetworkError::Overlap { .. } => {
            (Exit::Conflict, "choose a range that no other network has: `agent network ls`")
        }
        NetworkError::VniInUse { .. } => (Exit::Conflict, "leave out --vni to get a free one"),
        NetworkError::PortInUse { .. } => (Exit::Conflict, "leave out --port to get a free one"),
        NetworkError::KeyInUse { .. } => (Exit::Conflict, "leave out --key to get a free one"),
        NetworkError::InUse { .. } => (Exit::Conflict, "let those hosts leave first, or use --force"),
        NetworkError::Strands { .. } => (Exit::Conflict, "let those hosts leave first, or use --force"),
        NetworkError::UsedByHosts { .. } => (Exit::Conflict, NetworkError::USED_BY_HOSTS_HINT),
        NetworkError::PeerOverlap { .. } => {
            (Exit::Conflict, "choose a subnet that no host has: `agent network inspect`")
        }
        NetworkError::PeerOutside { .. } => (Exit::InvalidConfig, "choose a subnet inside the network"),
        NetworkError::NoSuchPeer { .. } => (
            Exit::NotFound,
            "`agent network inspect` lists the leases; only those without owner and expiry are permanent peers",
        ),
        NetworkError::Busy(_) => (Exit::Unavailable, "try again"),
        NetworkError::Store(error) => (store_exit(error), store_hint(&error.to_string())),
    };
    let source = std::error::Error::source(error).map(ToString::to_string);
    let failure = Failure::new(exit, error.to_string()).hint(hint);
    match source {
        Some(source) => failure.caused_by(source),
        None => failure,
    }
}

/// Returns the exit code for what the store said.
#[must_use]
pub fn store_exit(error: &StoreError) -> Exit {
    match error {
        StoreError::Unavailable { .. } | StoreError::Compacted(_) | StoreError::LeaseGone(_) => Exit::Unavailable,
        StoreError::Denied { .. } => Exit::Unsupported,
        StoreError::Rejected { .. } => Exit::Internal,
    }
}
