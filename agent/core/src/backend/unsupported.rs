//! A backend that this version does not build, such as another release's or another program's. Nothing is built for it.

use flatnet_model::{BackendData, BackendKind, IpFamily, NetworkConfig, NetworkName, NodeId};

use super::{Backend, Built, NetworkCtx, Overhead, PublicKey};
use crate::object::Draft;
use crate::problem::{Problem, ProblemCode};
use crate::underlay::Underlay;

impl Backend for BackendKind {
    fn check(&self, name: &NetworkName, _network: &NetworkConfig, _underlay: &Underlay) -> Result<(), Problem> {
        Err(problem(self, name))
    }

    fn overhead(&self, _underlay: IpFamily) -> Overhead {
        Overhead(0)
    }

    fn data(&self, _node: NodeId, _key: Option<PublicKey>, _family: IpFamily) -> Option<BackendData> {
        None
    }

    fn desired(&self, ctx: &NetworkCtx<'_>, _out: &mut Draft) -> Result<Built, Problem> {
        Err(problem(self, ctx.name))
    }
}

fn problem(kind: &BackendKind, name: &NetworkName) -> Problem {
    Problem::new(
        ProblemCode::BackendUnsupported,
        format!("network {name}: the backend {:?} is not supported", kind.as_str()),
        "supported are vxlan, wireguard, gre and host-gw: agent network update NAME --backend vxlan",
        name,
    )
}
