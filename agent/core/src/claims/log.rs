//! Claims over time: what came lately, what is to be said of it once, and how many there were in all.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::{Claim, Flaw, Holder, Sighting, are_cut, others};
use crate::drops::{MANY, WINDOW};
use crate::problem::Problem;

/// Claims that are listed at once: as many as are worth reading; whoever makes up sources would make a list of any length.
const SHOWN: usize = 4;
/// Claims that are put into the log in an hour, so that made-up sources fill no disk.
const SAID: usize = 16;
const HOUR: Duration = Duration::from_secs(3600);
/// Claims that are known to have been said, so that none is said twice; the oldest is forgotten first. Two and a half days'
/// worth at the rate above.
const REMEMBERED: usize = 1024;
/// Totals kept: made-up inner sources can name every peer there is, and every series is kept by who scrapes them.
const TOTALS: usize = 256;
/// The peer of what is beyond.
const OTHERS: &str = "others";

/// What tells totals apart: network, kind of flaw, peer.
type Label = (String, Flaw, String);
/// What tells elements of sets apart: table, chain, interface, source outside and inside.
type Element = (&'static str, String, String, Option<IpAddr>, IpAddr);
/// What is new: who claims to be whom from where, by whichever interface.
type Pair = (Flaw, Option<Holder>, Option<IpAddr>, String);

/// Something to be put into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A claim that was not seen before.
    Claim(Problem),
    /// There are more than are said.
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
    /// When it was last said that there are more.
    hushed: Option<Duration>,
}

impl ClaimLog {
    /// Takes note of all that the sets have at `now`, a clock that never goes back. What the first look finds was there before.
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

    /// Time has gone on and nothing was dropped.
    pub fn pass(&mut self, now: Duration) {
        self.last.get_or_insert_default();
        self.late.retain(|_, late| {
            late.retain(|(when, _)| now.saturating_sub(*when) < WINDOW);
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

    /// Network, flaw, peer and packets since the first look.
    pub fn totals(&self) -> impl Iterator<Item = (&str, Flaw, &str, u64)> {
        self.totals.iter().map(|((network, flaw, peer), packets)| (network.as_str(), *flaw, peer.as_str(), *packets))
    }

    /// What claimed to be somebody lately, more than a stray packet, most packets first.
    fn lately(&self) -> Vec<(&Claim, u64)> {
        let sum = |late: &VecDeque<(Duration, u64)>| late.iter().map(|(_, packets)| packets).sum::<u64>();
        let mut lately: Vec<(&Claim, u64)> = self.late.iter().map(|(claim, late)| (claim, sum(late))).collect();
        lately.retain(|(_, packets)| *packets >= MANY);
        // Those that name a peer before those that name nobody.
        lately.sort_by_key(|(claim, packets)| (claim.of.is_none(), Reverse(*packets)));
        lately
    }

    /// What was dropped lately, as of the last look, and whose it claimed to be.
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
                claim.problem(*packets, WINDOW, if is_last(index) { others.as_str() } else { "" })
            })
            .collect()
    }

    /// What of it is to be put into the log: each once, and not too many.
    pub fn news(&mut self, now: Duration) -> Vec<News> {
        let mut news = Vec::new();
        let lately: Vec<(Claim, u64)> =
            self.lately().into_iter().map(|(claim, packets)| (claim.clone(), packets)).collect();
        for (claim, packets) in lately {
            // By interface only where nothing else tells where it came from.
            let interface = if claim.from.is_none() { claim.interface.clone() } else { String::new() };
            let pair: Pair = (claim.flaw, claim.of.clone(), claim.from, interface);
            if self.said.iter().any(|(_, said)| *said == pair) {
                continue;
            }
            let is_late = |when: Duration| now.saturating_sub(when) < HOUR;
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
            news.push(News::Claim(claim.problem(packets, WINDOW, "")));
        }
        news
    }
}
