//! Tests of the gate: who is let through to which service, and how much is held.

use std::net::Ipv4Addr;
use std::time::SystemTime;

use tonic::Code;

use super::*;

fn remote(identity: Option<Identity>) -> Peer {
    let holder = identity.map(|identity| Holder {
        identity,
        key_hash: "key".to_owned(),
        lifetime: Duration::from_secs(60),
        not_after: SystemTime::UNIX_EPOCH,
    });
    Peer::Remote { address: Ipv4Addr::LOCALHOST.into(), holder }
}

#[tokio::test]
async fn strangers_join_and_look_at_health_and_reach_nothing_else() {
    let gate = Gate::new(Arc::default());
    let code = |peer: &Peer, path: &str| gate.admit(Some(peer), path).err().map(|status| status.code());
    let stranger = remote(None);
    for path in ["/flatnet.controlplane.v1.Enrollment/Join", "/grpc.health.v1.Health/Watch"] {
        assert_eq!(code(&stranger, path), None, "{path}");
    }
    for path in [
        "/flatnet.controlplane.v1.Node/Acquire",
        "/flatnet.controlplane.v1.Admin/CreateNetwork",
        "/flatnet.controlplane.v1.EnrollmentX/Join",
        "//flatnet.controlplane.v1.Enrollment/Join",
        "/flatnet.controlplane.v1.node/Acquire",
        "/",
        "",
        "*",
    ] {
        assert_eq!(code(&stranger, path), Some(Code::Unauthenticated), "{path}");
    }
    let admin = remote(Some(Identity::Admin("ops".to_owned())));
    assert_eq!(code(&admin, "/flatnet.controlplane.v1.Node/Watch"), Some(Code::PermissionDenied));
    assert_eq!(code(&admin, "/flatnet.controlplane.v1.Admin/GetStatus"), None);
    let node = remote(Some(Identity::Node(NodeId::new(1))));
    assert_eq!(code(&node, "/flatnet.controlplane.v1.Admin/GetStatus"), Some(Code::PermissionDenied));
    assert_eq!(
        code(&remote(Some(Identity::Server)), "/flatnet.controlplane.v1.Node/Watch"),
        Some(Code::Unauthenticated)
    );
    assert!(gate.admit(None, "/grpc.health.v1.Health/Check").is_err());
    assert!(gate.admit(Some(&Peer::Local), "/flatnet.controlplane.v1.Admin/GetStatus").unwrap().is_none());
}

#[test]
fn everybody_has_a_share_that_others_cannot_use_up_and_none_has_more_than_its_most() {
    let held = Arc::<Held>::default();
    let call = |node| Call::begin(&held, Who::Node(NodeId::new(node))).unwrap();
    let greedy: Vec<Call> = (0..100).map(call).collect();
    for call in &greedy {
        while call.hold(16 * 1024).is_ok() {}
    }
    let table = held.lock();
    let all: usize = table.by.values().map(|usage| usage.bytes).sum();
    assert!(table.by.values().all(|usage| (SHARE..=MOST).contains(&usage.bytes)));
    assert!(table.beyond <= TOGETHER && all <= TOGETHER + 100 * SHARE, "{all}");
    drop(table);
    let honest = call(1000);
    assert!(honest.hold(SHARE).is_ok() && honest.hold(1).is_err());
    honest.is_heard();
    assert!(honest.hold(SHARE).is_ok());
    drop((greedy, honest));
    let table = held.lock();
    assert!(table.by.is_empty() && table.beyond == 0);
}

#[test]
fn calls_under_way_are_bounded_for_each_identity_alone() {
    let held = Arc::<Held>::default();
    let one = Who::Admin("one".to_owned());
    let calls: Vec<Call> = (0..CALLS).map(|_| Call::begin(&held, one.clone()).unwrap()).collect();
    assert_eq!(Call::begin(&held, one.clone()).err().unwrap().code(), Code::ResourceExhausted);
    assert!(Call::begin(&held, Who::Admin("two".to_owned())).is_ok());
    drop(calls);
    assert!(Call::begin(&held, one).is_ok());
}
