//! Places that groups share: when all are taken, the group that has most gives up its oldest.
//!
//! A group that comes alone finds a place however many another one has taken; one group may have all that nobody else
//! wants. Groups are source addresses or identities.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

/// Returns the network whose machines count as one: an IPv6 host has a /64 to itself (RFC 7421), an IPv4 host an
/// address.
#[must_use]
pub fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Returns the number of descriptors this process may have open: `RLIMIT_NOFILE`, as it is now.
#[must_use]
pub fn descriptors() -> usize {
    /// The limit that Linux gives a process by default.
    const USUAL: usize = 1024;
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    soft.map_or(USUAL, |soft| soft.parse().unwrap_or(usize::MAX))
}

/// A limited number of places.
pub struct Seats<G> {
    limit: usize,
    taken: Mutex<Taken<G>>,
    freed: Notify,
}

struct Taken<G> {
    next: u64,
    total: usize,
    /// The places of each group in the order they came, each with the channel that tells it that its place is lost.
    groups: HashMap<G, VecDeque<(u64, oneshot::Sender<()>)>>,
}

/// One place; free again when dropped.
pub struct Seat<G: Eq + Hash + Clone> {
    seats: Arc<Seats<G>>,
    group: G,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl<G: Eq + Hash + Clone> Seats<G> {
    /// Makes `limit` places, none taken.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        let taken = Taken { next: 0, total: 0, groups: HashMap::new() };
        Arc::new(Self { limit: limit.max(1), taken: Mutex::new(taken), freed: Notify::new() })
    }

    /// Takes a place for one more of `group`, which may have `most`. `None`: all are taken, and no other group has
    /// more.
    pub fn take(self: &Arc<Self>, group: &G, most: usize) -> Option<Seat<G>> {
        self.seat(group, most, false)
    }

    /// Takes a place for one more of `group`. If no other group has more, the oldest of its own gives way.
    pub fn take_newest(self: &Arc<Self>, group: &G) -> Option<Seat<G>> {
        self.seat(group, usize::MAX, true)
    }

    /// Ends when a place has become free since this was called.
    pub fn freed(&self) -> impl Future<Output = ()> + '_ {
        self.freed.notified()
    }

    /// Returns the number of places taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.lock().total
    }

    fn seat(self: &Arc<Self>, group: &G, most: usize, newest: bool) -> Option<Seat<G>> {
        let mut taken = self.lock();
        let own = taken.groups.get(group).map_or(0, VecDeque::len);
        if own >= most.max(1) {
            taken.evict(group);
        } else if taken.total >= self.limit {
            let oldest = |held: &VecDeque<(u64, _)>| held.front().map_or(u64::MAX, |(number, _)| *number);
            let heaviest = taken.groups.iter().max_by_key(|(_, held)| (held.len(), u64::MAX - oldest(held)));
            let heaviest = heaviest.filter(|(_, held)| held.len() > own || newest).map(|(group, _)| group.clone());
            taken.evict(&heaviest?);
        }
        let (tell, lost) = oneshot::channel();
        let number = taken.next;
        taken.next += 1;
        taken.total += 1;
        taken.groups.entry(group.clone()).or_default().push_back((number, tell));
        Some(Seat { seats: Arc::clone(self), group: group.clone(), number, lost })
    }

    fn lock(&self) -> MutexGuard<'_, Taken<G>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G: Eq + Hash + Clone> Taken<G> {
    fn evict(&mut self, group: &G) {
        if let Some((_, tell)) = self.groups.get_mut(group).and_then(VecDeque::pop_front) {
            self.total -= 1;
            // The holder may have ended by itself just now.
            let _ = tell.send(());
        }
        self.tidy(group);
    }

    fn tidy(&mut self, group: &G) {
        if self.groups.get(group).is_some_and(VecDeque::is_empty) {
            self.groups.remove(group);
        }
    }
}

impl<G: Eq + Hash + Clone> Seat<G> {
    /// Ends when somebody else got this place.
    pub async fn lost(&mut self) {
        // Its sender is kept while the place is held.
        let _ = (&mut self.lost).await;
    }
}

impl<G: Eq + Hash + Clone> Drop for Seat<G> {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        if let Some(held) = taken.groups.get_mut(&self.group)
            && let Ok(at) = held.binary_search_by_key(&self.number, |(number, _)| *number)
        {
            held.remove(at);
            taken.total -= 1;
        }
        taken.tidy(&self.group);
        drop(taken);
        self.seats.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_lost<G: Eq + Hash + Clone>(seat: &mut Seat<G>) -> bool {
        seat.lost.try_recv().is_ok()
    }

    #[test]
    fn whoever_comes_alone_finds_a_place_and_the_group_with_most_gives_its_oldest_up() {
        let seats = Seats::new(4);
        let mut many: Vec<_> = (0..4).map(|_| seats.take(&"many", usize::MAX).unwrap()).collect();
        assert!(seats.take(&"many", usize::MAX).is_none(), "it waits for itself");
        let mut one = seats.take(&"one", usize::MAX).unwrap();
        assert_eq!(many.iter_mut().map(is_lost).collect::<Vec<_>>(), [true, false, false, false]);
        let mut newest = seats.take_newest(&"many").unwrap();
        assert!(is_lost(&mut many[1]) && !is_lost(&mut one) && !is_lost(&mut newest));
        assert_eq!(seats.taken(), 4);
        drop((many, one, newest));
        assert_eq!(seats.taken(), 0);
        assert!(seats.lock().groups.is_empty());
    }

    #[test]
    fn of_as_many_groups_as_there_are_places_the_oldest_gives_way_and_a_newcomer_stays() {
        let seats = Seats::new(3);
        let mut held: Vec<_> = (0..3).map(|group| seats.take_newest(&group).unwrap()).collect();
        let mut late = seats.take_newest(&7).unwrap();
        assert_eq!(held.iter_mut().map(is_lost).collect::<Vec<_>>(), [true, false, false]);
        assert!(!is_lost(&mut late));
    }

    #[test]
    fn a_group_at_its_own_limit_gives_up_its_oldest_though_there_is_room() {
        let seats = Seats::new(100);
        let mut held: Vec<_> = (0..8).map(|_| seats.take(&1, 8).unwrap()).collect();
        let _ninth = seats.take(&1, 8).unwrap();
        assert!(is_lost(&mut held[0]) && !is_lost(&mut held[1]));
        assert_eq!(seats.taken(), 8);
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_its_ipv4_one() {
        let of = |text: &str| source(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(of("192.0.2.1"), "192.0.2.1");
        assert!(descriptors() >= 64);
    }
}
