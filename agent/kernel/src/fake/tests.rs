use flatnet_core::object::{ObjectKey, Route, RouteKey, RouteVia, Sysctl};
use flatnet_core::op::Object;
use flatnet_model::IfName;
use futures::StreamExt;

use super::*;

fn unreachable(net: &str) -> Op {
    let key = RouteKey::unreachable(net.parse().unwrap());
    Op { action: Action::Create, object: Object::Route(key, Route { via: RouteVia::Unreachable, source: None }) }
}

fn setting(path: &str) -> Op {
    Op { action: Action::Change, object: Object::Sysctl(Sysctl::new(path), "1".to_owned()) }
}

fn errnos(outcomes: &[OpOutcome]) -> Vec<Option<i32>> {
    let errno = |outcome: &OpOutcome| match outcome {
        OpOutcome::Failed(error) => error.errno,
        OpOutcome::Done | OpOutcome::Skipped => None,
    };
    outcomes.iter().map(errno).collect()
}

#[tokio::test]
async fn the_nth_operation_fails_once() {
    let kernel = FakeKernel::default();
    kernel.fail(Strike::Nth(1), libc::ENOBUFS);
    let ops = [unreachable("10.0.0.0/24"), unreachable("10.0.1.0/24"), unreachable("10.0.2.0/24")];
    assert_eq!(errnos(&kernel.apply(&ops).await), [None, Some(libc::ENOBUFS), None]);
    assert_eq!(kernel.apply(&ops[1..2]).await, [OpOutcome::Done]);
    assert_eq!((kernel.tried(), kernel.state().routes.len()), (4, 3));
    assert_eq!(kernel.counts(), Counts::from([((ObjectKind::Route, Action::Create), 4)]));
}

#[tokio::test]
async fn a_kind_fails_until_healed() {
    let kernel = FakeKernel::default();
    kernel.fail(Strike::Kind(ObjectKind::Route), libc::EBUSY);
    kernel.fail(Strike::KindAndAction(ObjectKind::Sysctl, Action::Create), libc::EPERM);
    let ops = [unreachable("10.0.0.0/24"), setting("net/ipv4/ip_forward")];
    assert_eq!(errnos(&kernel.apply(&ops).await), [Some(libc::EBUSY), None]);
    kernel.fail_reads(libc::ENOBUFS);
    assert!(kernel.dump(&Scope::default()).await.is_err() && kernel.facts(&Questions::host([])).await.is_err());
    kernel.heal();
    assert_eq!(kernel.apply(&ops).await, [OpOutcome::Done, OpOutcome::Done]);
    assert_eq!(kernel.dump(&Scope::default()).await.unwrap().state.routes.len(), 1);
}

#[tokio::test]
async fn a_change_from_outside_wakes_and_our_own_does_not() {
    let kernel = FakeKernel::default();
    let mut wakes = kernel.events().unwrap();
    kernel.apply(&[unreachable("10.0.0.0/24")]).await;
    assert!(futures::poll!(wakes.next()).is_pending());
    kernel.edit(|state| state.routes.clear());
    assert_eq!(wakes.next().await, Some(Wake::Netlink));
    kernel.edit_foreign(|foreign| foreign.links.insert(IfName::new("flat.1").unwrap(), "bridge".to_owned()));
    assert_eq!(wakes.next().await, Some(Wake::Netlink));
}

#[tokio::test]
async fn a_dump_tells_of_what_is_in_scope() {
    let kernel = FakeKernel::default();
    let device = IfName::new("flat.1").unwrap();
    kernel.apply(&[setting("net/ipv4/ip_forward"), setting("net/other")]).await;
    kernel.edit_foreign(|foreign| foreign.links.insert(device, "bridge".to_owned()));
    assert_eq!(kernel.dump(&Scope::default()).await.unwrap(), Dump::default());
    let scope = Scope::also([ObjectKey::Link(device), ObjectKey::Sysctl(Sysctl::new("net/other"))]);
    let dump = kernel.dump(&scope).await.unwrap();
    assert_eq!((dump.foreign.links.len(), dump.state.sysctls.len()), (1, 1));
}
