use flatnet_model::{BackendData, BackendKind};
use proptest::prelude::*;

use super::*;

const TTL: Duration = Duration::from_secs(24 * 3600);

fn publication(last: u8) -> Publication {
    Publication {
        public_ip: Some([192, 0, 2, last].into()),
        public_ipv6: None,
        backend: BackendKind::HostGw,
        data: BackendData::None,
        data_v6: BackendData::None,
        besides: Vec::new(),
    }
}

fn subnets() -> SubnetKey {
    "10.100.4.0-24".parse().unwrap()
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn input<'a>(now: Duration, seen: Seen<'a>, seen_revision: Revision, wanted: &'a Publication) -> Input<'a> {
    Input { now, seen, seen_revision, followed: !matches!(seen, Seen::Nothing), wanted: Some(wanted) }
}

/// Returns a machine that holds its lease since second 0, written at revision 10.
fn held() -> LeaseMachine {
    let mut machine = LeaseMachine::new(None);
    machine.acquired(Duration::ZERO, subnets(), publication(1), 10, TTL, 0);
    machine
}

#[test]
fn it_acquires_as_soon_as_it_knows_what_to_publish() {
    let mut machine = LeaseMachine::new(Some(subnets()));
    let unknown = Input { now: secs(1), seen: Seen::Nothing, seen_revision: 0, followed: false, wanted: None };
    assert_eq!(machine.next(&unknown), Action::Nothing { until: None });
    assert_eq!(machine.subnets(), Some(subnets()), "the datapath stays up with what was held");
    let wanted = publication(1);
    let acquire = Action::Acquire { previous: Some(subnets()), publication: wanted.clone() };
    assert_eq!(machine.next(&input(secs(1), Seen::Nothing, 0, &wanted)), acquire);
}

#[test]
fn a_failure_is_waited_out_longer_each_time_up_to_the_limit() {
    let mut machine = LeaseMachine::new(None);
    let wanted = publication(1);
    let mut last = Duration::ZERO;
    for attempt in 0..12 {
        let until = machine.failed(secs(100), u64::MAX) - secs(100);
        assert!(until >= last && until <= LONGEST_RETRY_AFTER, "{attempt}: {until:?}");
        last = until;
        let asked = machine.next(&input(secs(100), Seen::Nothing, 0, &wanted));
        assert_eq!(asked, Action::Nothing { until: Some(secs(100) + until) });
        assert!(matches!(machine.next(&input(secs(100) + until, Seen::Nothing, 0, &wanted)), Action::Acquire { .. }));
    }
    assert!(last > LONGEST_RETRY_AFTER * 9 / 10);
    let least = machine.failed(secs(100), 0) - secs(100);
    assert_eq!(least, LONGEST_RETRY_AFTER / 2, "half at least, however the dice fall");
}

#[test]
fn a_held_lease_is_kept_alive_at_a_third_of_its_life() {
    let mut machine = held();
    let wanted = publication(1);
    let ours = publication(1);
    let due = TTL / 3;
    let asked = machine.next(&input(secs(1), Seen::Ours(&ours), 10, &wanted));
    assert_eq!(asked, Action::Nothing { until: Some(due) });
    assert_eq!(machine.next(&input(due, Seen::Ours(&ours), 10, &wanted)), Action::KeepAlive);
    machine.kept_alive(due, TTL, u64::MAX);
    let Action::Nothing { until: Some(next) } = machine.next(&input(due, Seen::Ours(&ours), 10, &wanted)) else {
        panic!("it was just kept alive")
    };
    assert!(next < due * 2 && next > due + due * 8 / 10, "spread over a tenth: {next:?}");
}

#[test]
fn a_lease_is_kept_alive_while_the_store_takes_no_change_of_it() {
    let mut machine = held();
    let (wanted, ours) = (publication(2), publication(1));
    let due = TTL / 3;
    let mut now = secs(1);
    let mut kept = 0;
    while now < TTL * 2 {
        match machine.next(&input(now, Seen::Ours(&ours), 10, &wanted)) {
            Action::Publish(_) => machine.publishing_failed(now, 0),
            Action::KeepAlive => {
                kept += 1;
                machine.kept_alive(now, TTL, 0);
            }
            Action::Nothing { until: Some(until) } if until > now => now = until,
            other => panic!("{other:?} at {now:?}"),
        }
        assert!(!machine.is_overdue(now), "the lease ended at {now:?}");
    }
    assert!(kept >= 5, "{kept}");
    // When that fails too, both wait.
    machine.failed(due * 7, 0);
    let asked = machine.next(&input(due * 7, Seen::Ours(&ours), 10, &wanted));
    assert!(matches!(asked, Action::Nothing { until: Some(until) } if until > due * 7), "{asked:?}");
}

#[test]
fn a_lease_that_is_gone_is_claimed_again_at_once_with_the_same_subnets() {
    let wanted = publication(1);
    let again = Action::Acquire { previous: Some(subnets()), publication: wanted.clone() };
    let mut seen = held();
    assert_eq!(seen.next(&input(secs(5), Seen::Gone, 11, &wanted)), again);
    let mut told = held();
    told.failed(secs(5), 0);
    told.lost();
    assert_eq!(told.next(&input(secs(5), Seen::Nothing, 0, &wanted)), again);
    assert_eq!(told.state(), &LeaseState::Lost { subnets: subnets() });
}

#[test]
fn a_view_older_than_our_own_write_says_nothing_about_it() {
    let wanted = publication(1);
    for seen in [Seen::Gone, Seen::Other, Seen::Ours(&publication(9))] {
        let mut machine = held();
        assert!(matches!(machine.next(&input(secs(1), seen, 9, &wanted)), Action::Nothing { .. }), "{seen:?}");
        assert!(matches!(machine.state(), LeaseState::Held(_)));
    }
    let mut machine = held();
    machine.store_went_back();
    assert!(matches!(machine.next(&input(secs(1), Seen::Gone, 1, &wanted)), Action::Acquire { .. }));
}

#[test]
fn a_followed_store_that_never_shows_our_own_write_is_asked_what_it_has_of_us() {
    let (old, wanted) = (publication(1), publication(2));
    let ask = |machine: &mut LeaseMachine, at, followed| {
        let seen = Input { followed, ..input(at, Seen::Ours(&old), 9, &wanted) };
        machine.next(&seen)
    };
    let mut machine = held();
    machine.published(wanted.clone(), 20);
    assert_eq!(ask(&mut machine, secs(100), true), Action::Nothing { until: Some(secs(100) + OWN_WRITE_SEEN_TIMEOUT) });
    assert!(matches!(ask(&mut machine, secs(109), true), Action::Nothing { .. }));
    assert!(matches!(ask(&mut machine, secs(150), false), Action::Nothing { .. }), "nobody follows: nothing is late");
    assert!(matches!(ask(&mut machine, secs(151), true), Action::Nothing { .. }));
    let again = Action::Acquire { previous: Some(subnets()), publication: wanted.clone() };
    assert_eq!(ask(&mut machine, secs(161), true), again);
}

#[test]
fn what_changed_is_published_once_and_what_somebody_wrote_over_is_put_right() {
    let mut machine = held();
    let (old, new) = (publication(1), publication(2));
    assert_eq!(machine.next(&input(secs(1), Seen::Ours(&old), 10, &new)), Action::Publish(new.clone()));
    machine.published(new.clone(), 20);
    assert!(matches!(machine.next(&input(secs(1), Seen::Ours(&old), 15, &new)), Action::Nothing { .. }), "a late view");
    assert!(matches!(machine.next(&input(secs(1), Seen::Ours(&new), 20, &new)), Action::Nothing { .. }));
    assert_eq!(machine.next(&input(secs(1), Seen::Ours(&old), 21, &new)), Action::Publish(new));
}

#[test]
fn a_subnet_another_node_has_is_left_to_it_until_it_is_free_or_given_up() {
    let mut machine = held();
    let wanted = publication(1);
    assert_eq!(machine.next(&input(secs(1), Seen::Other, 11, &wanted)), Action::Nothing { until: None });
    assert_eq!(machine.state(), &LeaseState::TakenByOther { subnets: subnets() });
    assert_eq!(machine.next(&input(secs(9), Seen::Other, 12, &wanted)), Action::Nothing { until: None });
    let mut freed = machine.clone();
    let again = Action::Acquire { previous: Some(subnets()), publication: wanted.clone() };
    assert_eq!(freed.next(&input(secs(9), Seen::Gone, 13, &wanted)), again);
    // The claim is refused again, because the view was late. It is not made once more at once.
    freed.taken(secs(9), 0);
    assert!(matches!(freed.next(&input(secs(9), Seen::Gone, 13, &wanted)), Action::Nothing { until: Some(_) }));
    machine.renumber();
    let fresh = Action::Acquire { previous: None, publication: wanted.clone() };
    assert_eq!(machine.next(&input(secs(9), Seen::Other, 13, &wanted)), fresh);
}

#[test]
fn a_lease_stays_held_while_the_store_cannot_be_asked_however_long() {
    let mut machine = held();
    let wanted = publication(1);
    let late = TTL * 3;
    assert_eq!(machine.next(&input(late, Seen::Ours(&wanted), 10, &wanted)), Action::KeepAlive);
    machine.failed(late, 7);
    assert!(matches!(machine.state(), LeaseState::Held(_)));
    assert!(machine.is_overdue(late) && !held().is_overdue(secs(1)));
}

proptest! {
    /// Whatever happens in whatever order: the subnets are only given up on demand, and a failure is never followed by
    /// an attempt at the same moment.
    #[test]
    fn subnets_are_kept_through_everything(steps in prop::collection::vec((0_u8..8, any::<u64>(), 0_u64..100_000), 1..60)) {
        let mut machine = held();
        let (mine, other) = (publication(1), publication(2));
        let mut now = Duration::ZERO;
        let mut revision = 10;
        for (step, random, pause) in steps {
            now += secs(pause);
            revision += 1;
            match step {
                0 => { machine.next(&input(now, Seen::Gone, revision, &mine)); }
                1 => { machine.next(&input(now, Seen::Other, revision, &mine)); }
                2 => { machine.next(&input(now, Seen::Ours(&other), revision, &mine)); }
                3 => machine.lost(),
                4 => machine.taken(now, random),
                5 => machine.kept_alive(now, TTL, random),
                6 => machine.published(mine.clone(), revision),
                _ => {
                    let until = machine.failed(now, random);
                    prop_assert!(until > now && until <= now + LONGEST_RETRY_AFTER);
                    let action = machine.next(&input(now, Seen::Nothing, 0, &mine));
                    prop_assert!(matches!(action, Action::Nothing { .. }), "{:?}", action);
                }
            }
            prop_assert_eq!(machine.subnets(), Some(subnets()));
        }
    }
}
