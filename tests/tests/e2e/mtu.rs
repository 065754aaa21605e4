//! The underlay's MTU changes under a running agent: devices and `subnet.env` follow.

use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::oracle;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};

use crate::for_each_shape;

pub fn tests() -> Vec<Test> {
    for_each_shape(2, "a_changed_underlay_mtu_is_followed", followed)
}

fn followed(shape: &Shape) {
    let lab = Lab::new(shape);
    let agents = lab.join_all();
    let host = &agents[0].host;
    let overhead = 1500 - agents[0].subnet().mtu;
    for underlay in [1400, 1500] {
        host.ok(&format!("ip link set eth0 mtu {underlay}"));
        let mtu = underlay - overhead;
        wait_until(&format!("the overlay's MTU is {mtu}"), SOON, || {
            let links: Vec<_> = oracle::own_links(host)
                .into_iter()
                .filter(|name| name.starts_with("flat"))
                .map(|name| (oracle::link(host, &name).map(|link| link["mtu"].clone()), name))
                .collect();
            let written = agents[0].subnet().mtu;
            // With two families the smaller one is written; each device has its own.
            let follow = links.iter().all(|(found, name)| {
                let expected = underlay
                    - match name.as_str() {
                        "flat.1" => 50,
                        "flat6.1" => 70,
                        "flatgre0" => 24,
                        "flat6gre" => 48,
                        "flatwg.51820" => 60,
                        "flatwg.51821" => 80,
                        other => panic!("{other}"),
                    };
                *found == Some(expected.into())
            });
            if written == mtu && follow { Ok(()) } else { Err(format!("subnet.env {written}, devices {links:?}")) }
        });
    }
    agents[0].wait_converged(1);
}
