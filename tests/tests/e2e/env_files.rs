//! `subnet.env` and `docker-opts`: what container engines are configured with, exactly as flannel writes it.

use std::os::unix::fs::PermissionsExt;

use flatnet_tests::Families;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{SOON, wait_until};

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("subnet_env_and_docker_opts_are_flannels::ipv4", ipv4).on_backend("vxlan"),
        Test::new("subnet_env_is_flannels::dual_stack", dual_stack).on_backend("vxlan"),
        Test::new("a_removed_subnet_env_is_written_again", written_again).on_backend("vxlan"),
    ]
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

fn ipv4() {
    let lab = Lab::new(&Shape::vxlan(1));
    let mut agent = lab.agent(1).with(&["--subnet", "10.100.42.0/24"]);
    agent.start();
    agent.subnet();
    let text = std::fs::read_to_string(agent.env_file()).unwrap();
    assert_eq!(
        lines(&text),
        ["FLANNEL_NETWORK=10.100.0.0/16", "FLANNEL_SUBNET=10.100.42.1/24", "FLANNEL_MTU=1450", "FLANNEL_IPMASQ=true"]
    );
    assert_eq!(std::fs::metadata(agent.env_file()).unwrap().permissions().mode() & 0o777, 0o644);
    let printed = agent.command(&["docker-opts"]);
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    assert_eq!(
        lines(&printed.stdout),
        [
            r#"DOCKER_OPT_BIP="--bip=10.100.42.1/24""#,
            r#"DOCKER_OPT_IPMASQ="--ip-masq=false""#,
            r#"DOCKER_OPT_MTU="--mtu=1450""#,
            r#"DOCKER_OPTS=" --bip=10.100.42.1/24 --ip-masq=false --mtu=1450""#,
        ]
    );
    let combined = agent.command(&["docker-opts", "--combined", "--key", "OPTS"]);
    assert_eq!(lines(&combined.stdout), [r#"OPTS=" --bip=10.100.42.1/24 --ip-masq=false --mtu=1450""#]);
}

fn dual_stack() {
    let shape = Shape { hosts: 1, backend: "vxlan", overlay: Families::Dual, underlay: Families::Dual };
    let lab = Lab::new(&shape);
    let mut agent =
        lab.agent(1).with(&["--subnet", "10.100.42.0/24", "--subnet", "fd00:100:0:7::/64", "--ip-masq=false"]);
    agent.start();
    agent.subnet();
    let text = std::fs::read_to_string(agent.env_file()).unwrap();
    assert_eq!(
        lines(&text),
        [
            "FLANNEL_NETWORK=10.100.0.0/16",
            "FLANNEL_SUBNET=10.100.42.1/24",
            "FLANNEL_IPV6_NETWORK=fd00:100::/56",
            "FLANNEL_IPV6_SUBNET=fd00:100:0:7::1/64",
            "FLANNEL_MTU=1430",
            "FLANNEL_IPMASQ=false"
        ]
    );
}

fn written_again() {
    let lab = Lab::new(&Shape::vxlan(2));
    let agent = lab.join(1);
    let before = agent.subnet();
    std::fs::remove_file(agent.env_file()).unwrap();
    // Any change makes it look again.
    let _other = lab.join(2);
    wait_until("subnet.env is there again", SOON, || {
        let text = std::fs::read_to_string(agent.env_file()).map_err(|error| error.to_string())?;
        if text.contains("FLANNEL_SUBNET=") { Ok(()) } else { Err(text) }
    });
    assert_eq!(agent.subnet(), before);
}
