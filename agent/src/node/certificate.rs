//! The part that keeps valid what this node shows a control plane's server to be let in. An etcd itself needs nothing.

use std::sync::Arc;

use flatnet_plane::plane::ControlPlane;

use crate::wiring::context::Context;
use crate::wiring::part::{Part, Stop};

/// Makes the part.
pub fn part<P: ControlPlane, K>(context: &Context<P, K>) -> Part {
    let plane = Arc::clone(&context.setup.plane);
    // The leases are given back with it.
    Part::new("certificate", Stop::Feed, async move { plane.keep_identity().await })
}
