//! How a command ends, and what it says about a store that does not answer.

use flatnet_controlplane::store::StoreError;

pub use flatnet_controlplane::failure::{Exit, Failure, chain, note, print};

/// What to do about a store that answers and refuses; `said`: its words.
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

/// What to do about a store that does not answer; `reason`: what it, or the way to it, said.
#[must_use]
pub fn store_hint(reason: &str) -> &'static str {
    if StoreError::is_about_certificates(reason) {
        "one side does not trust the other's certificate: check --etcd-cafile, --etcd-certfile and --etcd-keyfile, and that \
         nothing has expired; a running agent reads new files when it connects again, by itself"
    } else {
        "check the endpoint, and that etcd runs there and has a leader, or the control plane"
    }
}
