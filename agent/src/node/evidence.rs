//! The kernel's evidence of packets that do not arrive: counters of our own rules that drop, and the way it would send
//! a peer's packets. The kernel is looked at now and then; status, doctor and metrics read what was found.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flatnet_core::claims::{ClaimLog, Holder, News};
use flatnet_core::drops::DropLog;
use flatnet_core::problem::{Problem, ProblemCode};
use flatnet_core::way::{Detour, WayQuery};
use flatnet_kernel::{Kernel, Questions};
use flatnet_model::{IfName, IpFamily, NetworkName, Owner, SubnetKey};
use ipnet::IpNet;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::wiring::context::Context;
use crate::wiring::metrics::Gauges;
use crate::wiring::networks::NetworkPort;
use crate::wiring::outcome::{Outcome, PeerState};
use crate::wiring::part::{Changed, Part, Report, Stop};

/// The interval between looks. A look is one dump of some tens of rules, and [`PEERS`] route look-ups of a few
/// microseconds. Only where counters have moved does it also read what the kernel remembers of senders, which is
/// bounded.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The number of peers whose way is asked in one look; the next look goes on with the next ones. Whatever turns packets
/// away mostly does so with every peer's.
const PEERS: usize = 32;

/// The evidence found so far.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The packets that our rules dropped.
    pub drops: DropLog,
    /// The peers that the dropped packets claimed to be from.
    pub claims: ClaimLog,
    /// Peers whose packets go astray.
    pub detours: Vec<Detour>,
}

impl Evidence {
    /// Returns the problems. Detours are many or none, so a few show what the matter is.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        /// The number of detours worth reading.
        const SHOWN: usize = 4;
        let detours = self.detours.iter().take(SHOWN).map(Detour::problem);
        self.drops.problems().into_iter().chain(self.claims.problems()).chain(detours).collect()
    }
}

/// Evidence is reported as it is found.
impl Report for watch::Receiver<Evidence> {
    fn problems(&self, _now: Instant) -> Vec<Problem> {
        self.borrow().problems()
    }

    fn gauges(&self, gauges: &mut Gauges) {
        let evidence = self.borrow();
        let mut dropped: BTreeMap<(String, String), u64> = BTreeMap::new();
        for (reason, packets) in evidence.drops.totals() {
            *dropped.entry((reason.network.clone(), reason.text.clone())).or_default() += packets;
        }
        gauges.dropped.extend(dropped.into_iter().map(|((network, reason), packets)| (network, reason, packets)));
        let claimed = evidence.claims.totals();
        gauges.claimed.extend(
            claimed.map(|(network, flaw, peer, packets)| (network.to_owned(), flaw.as_str(), peer.to_owned(), packets)),
        );
    }

    fn changes(&self) -> Vec<Box<dyn Changed>> {
        // The log looks often enough for what is found every few seconds.
        Vec::new()
    }
}

/// Makes the part that looks.
pub fn part<P, K: Kernel>(context: &Context<P, K>) -> Part {
    let (sender, evidence) = watch::channel(Evidence::default());
    let kernel = Arc::clone(&context.setup.kernel);
    let looking = keep(kernel, context.networks.clone(), context.outcome.clone(), sender);
    Part::new("evidence", Stop::Observer, looking).reporting(evidence)
}

/// Looks at the kernel for ever.
async fn keep<K: Kernel>(
    kernel: Arc<K>,
    networks: watch::Receiver<Vec<NetworkPort>>,
    outcome: watch::Receiver<Outcome>,
    evidence: watch::Sender<Evidence>,
) {
    let started = Instant::now();
    let mut from = 0;
    loop {
        let ports = networks.borrow().clone();
        let names: Vec<NetworkName> = ports.iter().map(|port| port.name.clone()).collect();
        let ways = ways(&ports, &outcome.borrow());
        let asked: Vec<WayQuery> = ways.iter().cycle().skip(from).take(PEERS.min(ways.len())).cloned().collect();
        from = if ways.is_empty() { 0 } else { (from + asked.len()) % ways.len() };
        // A reading that fails is reported by the reconciler, which reads the same.
        let counts = kernel.facts(&Questions { drops: true, ..Questions::default() }).await.map(|facts| facts.drops);
        let detours = Questions { ways: asked.clone(), ..Questions::default() };
        let detours = kernel.facts(&detours).await.map(|facts| facts.detours);
        let has_grown = counts.as_ref().is_ok_and(|counts| evidence.borrow().drops.has_grown(counts));
        let remembered = Questions { sightings: true, ..Questions::default() };
        let sightings =
            if has_grown { kernel.facts(&remembered).await.ok().map(|facts| facts.sightings) } else { None };
        let now = started.elapsed();
        let mut news = Vec::new();
        evidence.send_modify(|evidence| {
            if let Ok(counts) = counts {
                evidence.drops.observe(now, &counts, &names);
            }
            match sightings {
                Some(sightings) => evidence.claims.observe(now, &sightings, &holders(&ports)),
                None => evidence.claims.pass(now),
            }
            news = evidence.claims.news(now);
            if let Ok(detours) = detours {
                let is_there = |detour: &Detour| ways.iter().any(|way| way.to == detour.to);
                let is_old = |detour: &Detour| !asked.iter().any(|way| way.to == detour.to);
                evidence.detours.retain(|detour| is_there(detour) && is_old(detour));
                evidence.detours.extend(detours);
                evidence.detours.sort_by_key(|detour| detour.to);
            }
        });
        news.iter().for_each(say);
        sleep(LOOK_EVERY).await;
    }
}

/// Logs who claims to be whom. This is logged here and not with the other problems because senders choose what is new
/// in it.
fn say(news: &News) {
    match news {
        News::Claim(problem) => {
            let (code, object, hint) = (problem.code.as_str(), &problem.object, &problem.hint);
            tracing::warn!(code, object, hint, "{}", problem.message);
        }
        News::TooMany => tracing::warn!(
            code = ProblemCode::SourceMismatch.as_str(),
            "more senders than are logged claim to be others' hosts: for an hour no new ones are; `agent status` and `agent doctor` go on naming them"
        ),
    }
}

/// Returns who has which subnet, including this host.
fn holders(ports: &[NetworkPort]) -> Vec<Holder> {
    let mut holders = Vec::new();
    for port in ports {
        let network = port.name.to_string();
        let own = port.holding.borrow().held.as_ref().map(|held| held.subnets);
        for lease in port.view.borrow().state.leases.values().filter(|lease| Some(lease.subnets) != own) {
            let owner = lease.owner.as_ref();
            let name = |owner: &Owner| if owner.name.is_empty() { owner.node.to_string() } else { owner.name.clone() };
            holders.extend(lease.subnets.iter().map(|subnet| Holder {
                network: network.clone(),
                node: owner.map(name).unwrap_or_default(),
                subnet,
                published: lease.public_address(IpFamily::of(subnet.addr())),
                is_here: false,
            }));
        }
        holders.extend(own.iter().flat_map(SubnetKey::iter).map(|subnet| Holder {
            network: network.clone(),
            node: String::new(),
            subnet,
            published: None,
            is_here: true,
        }));
    }
    holders
}

/// Returns the ways to each peer that is programmed.
fn ways(ports: &[NetworkPort], outcome: &Outcome) -> Vec<WayQuery> {
    let mut ways = Vec::new();
    for port in ports {
        let Some(own) = port.holding.borrow().held.as_ref().map(|held| held.subnets) else { continue };
        let Some(network) = outcome.networks.iter().find(|network| network.name == port.name) else { continue };
        let good = network.peers.iter().filter(|peer| outcome.peer_state(peer) == PeerState::Programmed);
        for peer in good {
            ways.extend(of_peer(peer.subnets, own, port.bridge));
        }
    }
    ways
}

/// Returns the way to the first container of each of a peer's subnets.
pub(crate) fn of_peer(peer: SubnetKey, own: SubnetKey, bridge: Option<IfName>) -> Vec<WayQuery> {
    let query = |subnet: IpNet| {
        let to = container(subnet)?;
        let own = own.iter().find(|own| own.addr().is_ipv4() == to.is_ipv4()).and_then(container);
        Some(WayQuery { peer, to, from: own.zip(bridge) })
    };
    peer.iter().filter_map(query).collect()
}

/// Returns the address after the gateway's: the first that a container gets.
fn container(subnet: IpNet) -> Option<IpAddr> {
    match subnet {
        IpNet::V4(net) => u32::from(net.network()).checked_add(2).map(|number| IpAddr::V4(number.into())),
        IpNet::V6(net) => u128::from(net.network()).checked_add(2).map(|number| IpAddr::V6(number.into())),
    }
}
