//! Faults that somebody does to the kernel's tunnel, and the time until it is as it was.

use std::time::Duration;

use flatnet_tests::vm::VmLab;
use flatnet_tests::wait::pause;

use super::{DEVICE, container};
use crate::pings;

/// Name of the fault, and the command that does it.
const FAULTS: [(&str, &str); 7] = [
    ("device deleted", "ip link del flatgre0"),
    ("device down", "ip link set flatgre0 down"),
    ("our routes into it flushed", "ip route show dev flatgre0 | awk '{ print $1 }' | xargs -n 1 ip route del"),
    ("neighbour deleted", "ip neigh del $(ip neigh show dev flatgre0 | awk '{ print $1; exit }') dev flatgre0"),
    ("neighbours flushed", "ip neigh flush dev flatgre0 nud permanent"),
    ("nexthops flushed", "ip nexthop flush proto 91"),
    ("MTU changed", "ip link set flatgre0 mtu 1400"),
];

/// Does each fault to the first machine, under pings; each heals by itself.
pub fn all(lab: &VmLab) {
    for (name, harm) in FAULTS {
        pings::start(lab.vm(1), "fault", container(lab.vm(2)));
        let millis = lab.vm(1).ok(&script(harm));
        pause(Duration::from_millis(500));
        let (sent, lost, _) = pings::end(lab.vm(1), "fault");
        println!("figure: GRE (kernel), {name}: exact after {} ms, {lost} of {sent} pings lost", millis.trim());
    }
}

/// Makes a script that does it and waits until all that is in the tunnel is what it was; it prints how many
/// milliseconds that took.
fn script(harm: &str) -> String {
    // The number of a device is the kernel's own choice.
    format!(
        "state() {{ {{ ip -o -d link show {DEVICE} | cut -d: -f2-; ip neigh show dev {DEVICE} nud permanent; \
           ip route show dev {DEVICE}; ip nexthop show dev {DEVICE}; }} | sort; }}\n\
         before=$(state); began=$(date +%s%N); {{ {harm}; }} >/dev/null || exit 3\n\
         for i in $(seq 1200); do [ \"$(state)\" != \"$before\" ] || break; sleep 0.05; done 2>/dev/null\n\
         if [ \"$(state)\" != \"$before\" ]; then echo \"was: $before\"; echo \"is: $(state)\"; exit 4; fi\n\
         echo $((($(date +%s%N) - began) / 1000000))"
    )
}
