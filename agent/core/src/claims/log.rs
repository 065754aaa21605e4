//! Claims over time: those that came lately, those still to be logged once, and the totals.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::{Claim, Flaw, Holder, Sighting, are_cut, others};
use crate::drops::{LATE_WINDOW, MANY};
use crate::problem::Problem;

/// The number of claims that are listed at once. It is as many as are worth reading; somebody who makes up sources
/// could make the list any length.
const SHOWN: usize = 4;
/// The number of claims that are logged per hour at most, so that made-up sources do not fill a disk.
const SAID: usize = 16;
const SAID_WINDOW: Duration = Duration::from_secs(3600);
/// The number of claims that are remembered as logged, so that none is logged twice. The oldest is forgotten first.
/// This is two and a half days' worth at the rate above.
const REMEMBERED: usize = 1024;
/// The number of totals that are kept. Made-up inner sources can name every peer there is, and whoever scrapes the
/// metrics keeps every series.
const TOTALS: usize = 256;
/// The name that all further peers share in the totals.
const OTHERS: &str = "others";

/// The label of a total: network, kind of flaw, peer.
type Label = (String, Flaw, String);
/// The key of an element of the sets: table, chain, interface, outer and inner source.
type Element = (&'static str, String, String, Option<IpAddr>, IpAddr);
/// The part of a claim that makes it new: the flaw, the peer it names, where it came from, and the interface.
type Pair = (Flaw, Option<Holder>, Option<IpAddr>, String);

/// Something to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A claim that was not seen before.
    Claim(Problem),
    /// There are more claims than are logged.
    TooMany,
}

/// Claims over time.
#[derive(Clone, Debug, Default)]
pub struct ClaimLog {
    last: Option<BTreeMap<Element, u64>>,
    pub(super) late: BTreeMap<Claim, VecDeque<(Duration, u64)>>,
    totals: BTreeMap<Label, u64>,
    is_cut: bool,
    said: VecDeque<(Duration, Pair)>,
    /// The time at which the log last said that there are more.
    hushed: Option<Duration>,
}

impl ClaimLog {
    /// Records the contents of the sets at `now`, a clock that never goes back. What the first look finds was there
    /// before, so it is not counted.
    pub fn observe(&mut self, now: Duration, sightings: &[Sighting], holders: &[Holder]) {
        let mut seen: BTreeMap<Element, u64> = BTreeMap::new();
        for sighting in sightings {
            let Sighting { table, chain, interface, outer, inner, packets } = sighting;
            let element = (*table, chain.clone(), interface.clone(), *outer, *inner);
            let before = self.last.as_ref().map(|last| last.get(&element).copied().unwrap_or_default());
            let new = match before {
                None => 0,
                // It was forgotten, or the table was swapped, and it came again.
                Some(before) if *packets < before => *packets,
                Some(before) => packets - before,
            };
            seen.insert(element, *packets);
            let claim = Claim::of(sighting, holders);
            if new > 0 && !claim.is_settled() {
                self.count(&claim, new);
                self.late.entry(claim).or_default().push_back((now, new));
            }
        }
        self.is_cut = are_cut(sightings);
        self.last = Some(seen);
        self.pass(now);
    }

    /// Records that time has gone on and nothing was dropped.
    pub fn pass(&mut self, now: Duration) {
        self.last.get_or_insert_default();
        self.late.retain(|_, late| {
            late.retain(|(when, _)| now.saturating_sub(*when) < LATE_WINDOW);
            !late.is_empty()
        });
        self.is_cut &= !self.late.is_empty();
    }

    fn count(&mut self, claim: &Claim, packets: u64) {
        let label = |peer| (claim.network().to_owned(), claim.flaw, peer);
        let own = label(claim.label());
        let is_kept = self.totals.contains_key(&own) || self.totals.len() < TOTALS;
        let key = if is_kept { own } else { (String::new(), claim.flaw, OTHERS.to_owned()) };
        *self.totals.entry(key).or_default() += packets;
    }

    /// Returns network, flaw, peer and packets since the first look.
    pub fn totals(&self) -> impl Iterator<Item = (&str, Flaw, &str, u64)> {
        self.totals.iter().map(|((network, flaw, peer), packets)| (network.as_str(), *flaw, peer.as_str(), *packets))
    }

    /// Returns the claims that came lately with more than a stray packet, most packets first.
    fn lately(&self) -> Vec<(&Claim, u64)> {
        let sum = |late: &VecDeque<(Duration, u64)>| late.iter().map(|(_, packets)| packets).sum::<u64>();
        let mut lately: Vec<(&Claim, u64)> = self.late.iter().map(|(claim, late)| (claim, sum(late))).collect();
        lately.retain(|(_, packets)| *packets >= MANY);
        // Claims that name a peer come before those that name nobody.
        lately.sort_by_key(|(claim, packets)| (claim.of.is_none(), Reverse(*packets)));
        lately
    }

    /// Returns the packets that were dropped lately, as of the last look, and whose they claimed to be.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let lately = self.lately();
        let more = lately.len().saturating_sub(SHOWN);
        let others = others(more, self.is_cut).map(|others| format!("; {others}")).unwrap_or_default();
        let shown = &lately[..lately.len().min(SHOWN)];
        let is_last = |index: usize| index + 1 == shown.len();
        let problems = shown.iter().enumerate();
        problems
            .map(|(index, (claim, packets))| {
                claim.problem(*packets, LATE_WINDOW, if is_last(index) { others.as_str() } else { "" })
            })
            .collect()
    }

    /// Returns what is to be logged: each claim once, and not too many.
    pub fn news(&mut self, now: Duration) -> Vec<News> {
        let mut news = Vec::new();
        let lately: Vec<(Claim, u64)> =
            self.lately().into_iter().map(|(claim, packets)| (claim.clone(), packets)).collect();
        for (claim, packets) in lately {
            // The interface counts only where nothing else tells where the packets came from.
            let interface = if claim.from.is_none() { claim.interface.clone() } else { String::new() };
            let pair: Pair = (claim.flaw, claim.of.clone(), claim.from, interface);
            if self.said.iter().any(|(_, said)| *said == pair) {
                continue;
            }
            let is_late = |when: Duration| now.saturating_sub(when) < SAID_WINDOW;
            if self.said.iter().filter(|(when, _)| is_late(*when)).count() >= SAID {
                if !self.hushed.is_some_and(is_late) {
                    self.hushed = Some(now);
                    news.push(News::TooMany);
                }
                break;
            }
            self.said.push_back((now, pair));
            while self.said.len() > REMEMBERED {
                self.said.pop_front();
            }
            news.push(News::Claim(claim.problem(packets, LATE_WINDOW, "")));
        }
        news
    }
}
