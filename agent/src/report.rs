//! How a command ends, and what it says about a store that does not answer.

use flatnet_controlplane::store::StoreError;

pub use flatnet_controlplane::failure::{Exit, Failure, chain, note, print};

/// What to do about a store that does not answer; `reason`: what it, or the way to it, said.
#[must_use]
pub fn store_hint(reason: &str) -> &'static str {
    if StoreError::is_about_certificates(reason) {
        "one side does not trust the other's certificate: check --etcd-cafile, --etcd-certfile and --etcd-keyfile, and that \
         nothing has expired; a running agent reads new files when it is restarted"
    } else {
        "check the endpoint, and that etcd runs there and has a leader, or the control plane"
    }
}
