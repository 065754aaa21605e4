use super::*;

fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), "/coreos.com/network")
}

fn denied(reason: &str) -> StoreError {
    StoreError::Denied { endpoint: "http://a:2379".to_owned(), reason: reason.to_owned() }
}

fn silent() -> StoreError {
    StoreError::Unavailable { endpoint: "http://a:2379".to_owned(), reason: "timed out".to_owned() }
}

const ALL: [Channel; 5] = [Channel::Presence, Channel::Claim, Channel::Publish, Channel::KeepAlive, Channel::Create];

fn network_of(channel: Channel, keys: &NetworkKeys) -> Option<&NetworkKeys> {
    (channel != Channel::Presence).then_some(keys)
}

#[test]
fn every_refusal_on_every_way_is_said_at_once_in_the_stores_words_whatever_the_watch_says() {
    let (keys, now) = (keys(), Instant::now());
    let full =
        StoreError::Rejected { endpoint: "http://a:2379".to_owned(), reason: "database space exceeded".to_owned() };
    for error in [denied("etcdserver: permission denied"), denied("authentication failed"), full] {
        for channel in ALL {
            for followed in [true, false] {
                let channels = Channels::default();
                let network = network_of(channel, &keys);
                channels.failed(channel, network, &error, now);
                let problems = channels.problems(now, |_| followed);
                let [problem] = problems.as_slice() else { panic!("{channel:?} {error}: {problems:?}") };
                assert_eq!(problem.code, ProblemCode::StoreRefuses);
                assert!(problem.message.ends_with(&error.to_string()), "{problem:?}");
                let keys = if channel == Channel::Presence { "/flatnet/nodes/" } else { "/coreos.com/network/" };
                assert!(problem.message.contains(keys) && problem.object.contains(keys), "{problem:?}");
                assert!(!problem.hint.is_empty());
                channels.succeeded(channel, network, now);
                assert_eq!(channels.problems(now, |_| followed), []);
            }
        }
    }
}

#[test]
fn rights_that_are_missing_beside_flannels_prefix_are_named() {
    let channels = Channels::default();
    channels.failed(Channel::Claim, Some(&keys()), &denied("etcdserver: permission denied"), Instant::now());
    let problem = channels.problems(Instant::now(), |_| true).remove(0);
    assert!(problem.message.contains("/flatnet/claims/default/") && problem.hint.contains("/flatnet"), "{problem:?}");
}

#[test]
fn silence_is_said_after_a_while_and_only_if_nobody_else_says_it() {
    let (channels, start) = (Channels::default(), Instant::now());
    channels.failed(Channel::Presence, None, &silent(), start);
    channels.failed(Channel::Presence, None, &silent(), start + SILENCE_REPORTED_AFTER / 2);
    assert_eq!(channels.problems(start + SILENCE_REPORTED_AFTER / 2, |_| true), []);
    let later = start + SILENCE_REPORTED_AFTER;
    assert_eq!(channels.problems(later, |_| true)[0].code, ProblemCode::StoreUnreachable);
    assert_eq!(channels.problems(later, |_| false), [], "the watch says it");
    // The outage is over, and its length does not count for this way.
    channels.store_is_back(&keys(), later);
    assert_eq!(channels.problems(later + SILENCE_REPORTED_AFTER / 2, |_| true), []);
    assert_eq!(channels.problems(later + SILENCE_REPORTED_AFTER, |_| true).len(), 1);
}

#[test]
fn what_is_not_asked_any_more_and_what_the_store_answered_is_no_trouble() {
    let (channels, now) = (Channels::default(), Instant::now());
    let keys = keys();
    channels.failed(Channel::Publish, Some(&keys), &denied("no"), now);
    channels.idle(Channel::Publish, Some(&keys));
    channels.failed(Channel::KeepAlive, Some(&keys), &StoreError::LeaseGone(7), now);
    assert_eq!(channels.problems(now + SILENCE_REPORTED_AFTER, |_| true), []);
    let states = channels.states();
    assert!(states.len() == 2 && states.iter().all(|(_, _, is_well)| *is_well), "{states:?}");
}

#[test]
fn a_wait_for_another_instance_is_said_until_the_store_answers() {
    let (channels, start) = (Channels::default(), Instant::now());
    channels.pending(Channel::Presence, start);
    channels.pending(Channel::Presence, start + PENDING_REPORTED_AFTER);
    assert_eq!(channels.problems(start + PENDING_REPORTED_AFTER / 2, |_| true), []);
    assert_eq!(channels.problems(start + PENDING_REPORTED_AFTER, |_| true)[0].code, ProblemCode::PresencePending);
    channels.succeeded(Channel::Presence, None, start + PENDING_REPORTED_AFTER);
    channels.pending(Channel::Presence, start + PENDING_REPORTED_AFTER);
    assert_eq!(channels.problems(start + PENDING_REPORTED_AFTER * 9, |_| true), [], "later announcements are renewals");
}

#[test]
fn a_change_wakes_and_a_repetition_does_not() {
    let (channels, now) = (Channels::default(), Instant::now());
    let mut woken = channels.subscribe();
    channels.succeeded(Channel::Presence, None, now);
    assert!(!woken.has_changed().unwrap());
    channels.failed(Channel::Presence, None, &denied("no"), now);
    assert!(woken.has_changed().unwrap());
    woken.mark_unchanged();
    channels.failed(Channel::Presence, None, &denied("no"), now + SILENCE_REPORTED_AFTER);
    assert!(!woken.has_changed().unwrap());
    channels.succeeded(Channel::Presence, None, now + SILENCE_REPORTED_AFTER);
    assert!(woken.has_changed().unwrap());
}
