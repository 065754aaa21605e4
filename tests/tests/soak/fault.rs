//! The faults: the harm that each does, and the host or store it is done to.

use std::time::Duration;

use flatnet_plane::random::{Random, SeededRandom};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::fleet::{Fleet, Undo, VETERANS};

/// One kind of harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    DeviceDeleted,
    DevicesDownAndUp,
    DeviceChanged,
    RoutesDeleted,
    NeighboursFlushed,
    ForwardingDeleted,
    NexthopsFlushed,
    AddressesDeleted,
    NftFlushed,
    NftTableDeleted,
    ForwardingOff,
    NicDownAndUp,
    CablePulled,
    AgentKilled,
    AgentEnded,
    LeaseDeleted,
    LeaseRevoked,
    PresenceDeleted,
    GarbageWritten,
    StoreCompacted,
    StoreStopped,
    StoreKilled,
}

/// The faults done to a host.
const ON_HOSTS: [Fault; 15] = [
    Fault::DeviceDeleted,
    Fault::DevicesDownAndUp,
    Fault::DeviceChanged,
    Fault::RoutesDeleted,
    Fault::NeighboursFlushed,
    Fault::ForwardingDeleted,
    Fault::NexthopsFlushed,
    Fault::AddressesDeleted,
    Fault::NftFlushed,
    Fault::NftTableDeleted,
    Fault::ForwardingOff,
    Fault::NicDownAndUp,
    Fault::CablePulled,
    Fault::AgentKilled,
    Fault::AgentEnded,
];

/// The faults done in or to a store that answers.
const ON_THE_STORE: [Fault; 7] = [
    Fault::LeaseDeleted,
    Fault::LeaseRevoked,
    Fault::PresenceDeleted,
    Fault::GarbageWritten,
    Fault::StoreCompacted,
    Fault::StoreStopped,
    Fault::StoreKilled,
];

impl Fault {
    /// Chooses a fault that can be done now.
    pub fn choose(random: &mut SeededRandom, fleet: &Fleet) -> Self {
        if fleet.paused || below(random, 3) > 0 { pick(random, &ON_HOSTS) } else { pick(random, &ON_THE_STORE) }
    }

    /// Does the fault; returns the number of the host it was done to.
    pub fn strike(self, random: &mut SeededRandom, fleet: &mut Fleet) -> Option<u8> {
        let index = below(random, fleet.agents.len());
        match self.script() {
            Some(script) => run(fleet, index, script),
            None if ON_HOSTS.contains(&self) => return self.strike_host(random, fleet, index),
            None => {
                self.strike_store(random, fleet);
                return None;
            }
        }
        Some(fleet.agents[index].number)
    }

    /// Returns the script that is run with a shell on the host. Its target may be gone already, by an earlier fault.
    fn script(self) -> Option<&'static str> {
        Some(match self {
            Self::DeviceDeleted => "ip link del flat.1 || ip link del flat6.1",
            Self::DevicesDownAndUp => {
                "for d in flat.1 flat6.1; do ip link set $d down; done; for d in flat.1 flat6.1; do ip link set $d up; done"
            }
            Self::DeviceChanged => "ip link set flat.1 mtu 1400; ip link set flat6.1 address 02:00:00:00:00:97",
            Self::RoutesDeleted => {
                "for f in 4 6; do ip -$f route show proto 91 | sed 's/nhid [0-9]* //; s/ proto 91//; s/ pref medium//' | while read r; do ip -$f route del $r proto 91; done; done"
            }
            Self::NeighboursFlushed => {
                "ip neigh flush dev flat.1 nud permanent; ip -6 neigh flush dev flat6.1 nud permanent"
            }
            Self::ForwardingDeleted => {
                "for d in flat.1 flat6.1; do bridge fdb show dev $d | grep dst | cut -d' ' -f1 | while read m; do bridge fdb del $m dev $d; done; done"
            }
            Self::NexthopsFlushed => "ip nexthop flush proto 91",
            Self::AddressesDeleted => "ip addr flush dev flat.1; ip -4 addr flush dev flbr0",
            Self::NftFlushed => "nft flush ruleset",
            Self::NftTableDeleted => "nft delete table inet flatnet",
            Self::ForwardingOff => "sysctl -qw net.ipv4.ip_forward=0; sysctl -qw net.ipv6.conf.all.forwarding=0",
            _ => return None,
        })
    }

    fn strike_host(self, random: &mut SeededRandom, fleet: &mut Fleet, index: usize) -> Option<u8> {
        let number = fleet.agents[index].number;
        match self {
            // Addresses of one family and the default routes go with the link: the host's network manager brings them
            // back.
            Self::NicDownAndUp => {
                let v6 = fleet.lab.topology.host(number).v6;
                let script = format!(
                    "ip link set eth0 down; ip link set eth0 up; ip -6 addr replace {v6}/64 dev eth0 nodad; \
                     ip route replace default via 192.168.33.1 dev eth0; ip -6 route replace default via fd33::1 dev eth0"
                );
                run(fleet, index, &script);
            }
            Self::CablePulled => {
                let script = format!("ip link set {} down", fleet.lab.topology.host(number).port);
                fleet.lab.underlay().run(&["sh", "-c", &script]);
                let wait = seconds(random, 1, 8);
                fleet.later(wait, Undo::Plug(number));
            }
            _ => {
                let index = VETERANS + below(random, fleet.agents.len() - VETERANS);
                let agent = &mut fleet.agents[index];
                // Already down, and to be started soon.
                agent.pid()?;
                agent.end(if self == Self::AgentKilled { Signal::SIGKILL } else { Signal::SIGTERM });
                let number = agent.number;
                let wait = seconds(random, 0, 5);
                fleet.later(wait, Undo::Start(index));
                return Some(number);
            }
        }
        Some(number)
    }

    fn strike_store(self, random: &mut SeededRandom, fleet: &mut Fleet) {
        let etcd = &mut fleet.lab.etcd;
        match self {
            Self::LeaseDeleted => {
                let keys: Vec<String> = etcd.subnets().into_iter().map(|(key, _)| key).collect();
                delete_one(random, fleet, "/coreos.com/network/subnets/", &keys);
            }
            Self::PresenceDeleted => {
                let keys: Vec<String> = etcd.list("/flatnet/nodes/").into_iter().map(|(key, _)| key).collect();
                delete_one(random, fleet, "", &keys);
            }
            Self::LeaseRevoked => {
                // "found 40 leases", then one a line.
                let listed = etcd.ctl(&["lease", "list"]).stdout;
                let leases: Vec<&str> = listed.lines().skip(1).collect();
                if !leases.is_empty() {
                    etcd.ctl(&["lease", "revoke", leases[below(random, leases.len())]]);
                }
            }
            Self::GarbageWritten => {
                let key = format!("/coreos.com/network/subnets/garbage-{}", below(random, 1000));
                etcd.put(&key, "{\"PublicIP\":1e400", None);
                let wait = seconds(random, 1, 10);
                fleet.later(wait, Undo::Delete(key));
            }
            Self::StoreCompacted => {
                let status: Value = serde_json::from_str(&etcd.ctl(&["get", "/", "-w", "json"]).stdout).unwrap();
                etcd.ctl(&["compact", &status["header"]["revision"].to_string()]);
            }
            Self::StoreStopped => {
                etcd.pause();
                fleet.paused = true;
                let wait = seconds(random, 2, 12);
                fleet.later(wait, Undo::Resume);
            }
            _ => {
                etcd.end(Signal::SIGKILL);
                etcd.start_again();
            }
        }
    }
}

fn run(fleet: &Fleet, index: usize, script: &str) {
    fleet.agents[index].host.run(&["sh", "-c", script]);
}

fn delete_one(random: &mut SeededRandom, fleet: &Fleet, prefix: &str, keys: &[String]) {
    if !keys.is_empty() {
        fleet.lab.etcd.delete(&format!("{prefix}{}", keys[below(random, keys.len())]));
    }
}

fn below(random: &mut SeededRandom, limit: usize) -> usize {
    usize::try_from(random.next_u64() % u64::try_from(limit).unwrap()).unwrap()
}

fn pick(random: &mut SeededRandom, faults: &[Fault]) -> Fault {
    faults[below(random, faults.len())]
}

fn seconds(random: &mut SeededRandom, low: usize, high: usize) -> Duration {
    Duration::from_secs(u64::try_from(low + below(random, high - low)).unwrap())
}
