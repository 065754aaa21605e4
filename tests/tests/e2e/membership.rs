//! Hosts come and go.

use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};
use flatnet_tests::{oracle, pinger};

use crate::for_each_shape;

pub fn tests() -> Vec<Test> {
    let mut tests = for_each_shape(3, "a_late_host_is_reached_and_a_leaving_one_forgotten", late_and_leaving);
    tests.push(Test::new("the_subnet_survives_the_loss_of_the_run_directory", keeps_its_subnet).on_backend("vxlan"));
    tests
}

fn late_and_leaving(shape: &Shape) {
    let lab = Lab::new(shape);
    let mut agents = vec![lab.join(1), lab.join(2)];
    agents.iter().for_each(|agent| drop(agent.wait_converged(1)));
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let with_two = oracle::own_routes(&lab.host(1));

    agents.push(lab.join(3));
    agents.iter().for_each(|agent| drop(agent.wait_converged(2)));
    lab.attach(&agents[2]);
    pinger::assert_all_pairs(&lab, &agents);

    let late = agents.pop().unwrap();
    let ran = late.command(&["leave"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for agent in &agents {
        agent.wait_converged(1);
    }
    wait_until("host1 has the routes that it had before", SOON, || {
        let routes = oracle::own_routes(&lab.host(1));
        if routes == with_two { Ok(()) } else { Err(format!("{routes:?}")) }
    });
    for device in
        oracle::own_links(&lab.host(1)).iter().filter(|name| name.starts_with("flat.") || name.starts_with("flat6."))
    {
        assert_eq!(oracle::fdb(&lab.host(1), device).len(), 1, "{device}");
        assert_eq!(oracle::neighbours(&lab.host(1), device).len(), 1, "{device}");
    }
    pinger::assert_all_pairs(&lab, &agents);
}

fn keeps_its_subnet() {
    let lab = Lab::new(&Shape::vxlan(1));
    let mut agent = lab.join(1);
    let subnet = agent.subnet();
    agent.end(nix::sys::signal::Signal::SIGTERM);
    // As after a reboot: /run is empty.
    std::fs::remove_dir_all(&agent.run_dir).unwrap();
    agent.start();
    assert_eq!(agent.subnet(), subnet);
    assert_eq!(lab.etcd.subnets().len(), 1);
}
