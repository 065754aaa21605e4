//! Bad input: one clear error with a hint and the table's exit code, or a problem in `status`; nothing half-done.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::oracle;
use flatnet_tests::suite::Test;
use nix::sys::signal::Signal;

pub fn tests() -> Vec<Test> {
    let mut tests: Vec<Test> = REFUSED
        .iter()
        .map(|case| Test::new(format!("refused_at_once::{}", case.name), move || refused(case)))
        .collect();
    tests.extend(REPORTED.iter().map(|case| Test::new(format!("reported::{}", case.name), move || reported(case))));
    tests.extend([
        Test::new("refused_at_once::a_second_agent_in_the_namespace", second_agent).on_backend("vxlan"),
        Test::new("refused_at_once::no_right_to_change_the_network", no_right),
        Test::new("refused_at_once::no_nft_program_and_none_that_can_guard", no_nft),
        Test::new("refused_at_once::two_hosts_with_one_public_address", one_public_address).on_backend("vxlan"),
        Test::new("refused_at_once::a_copied_state_directory", copied_state).on_backend("vxlan"),
        Test::new("reported::no_network_configuration", no_config),
        Test::new("reported::no_store", no_store),
    ]);
    tests
}

/// A case of flags with which `join` ends at once.
struct Refused {
    name: &'static str,
    flags: &'static [&'static str],
    code: u8,
    says: &'static str,
}

const REFUSED: [Refused; 8] = [
    Refused { name: "a_bad_cidr", flags: &["--init", "10.100.0.0/99"], code: 2, says: "not a CIDR" },
    Refused { name: "a_cidr_with_host_bits", flags: &["--init", "10.100.0.1/16"], code: 2, says: "10.100.0.0/16" },
    Refused { name: "an_unknown_flag", flags: &["--no-such-flag"], code: 2, says: "--no-such-flag" },
    Refused { name: "an_unknown_interface", flags: &["--iface", "eth9"], code: 3, says: "eth9" },
    Refused { name: "a_name_that_is_none", flags: &["--node-name", "no name"], code: 3, says: "--node-name" },
    Refused { name: "a_public_ip_that_is_none", flags: &["--public-ip", "0.0.0.0"], code: 2, says: "other hosts" },
    Refused { name: "a_lease_too_short", flags: &["--lease-ttl", "1s"], code: 2, says: "10s" },
    Refused { name: "a_bridge_name_too_long", flags: &["--bridge", "sixteen-letters!"], code: 2, says: "interface" },
];

fn refused(case: &Refused) {
    let lab = Lab::without_network(&Shape::vxlan(1));
    let agent = lab.agent(1);
    // A flag given twice would be refused for that.
    let mut agent = agent.with(case.flags);
    if case.flags[0] == "--node-name" {
        agent.arguments.retain(|argument| !argument.starts_with("--node-name="));
    }
    assert_refused(&lab, &agent, case.code, case.says);
}

/// Returns what is in the store, except for nodes' presence, which goes by itself within 15 s.
fn lasting(lab: &Lab) -> Vec<(String, String)> {
    lab.etcd.list("/").into_iter().filter(|(key, _)| !key.starts_with("/flatnet/nodes/")).collect()
}

/// Asserts that it ends with the code, gives the reason and a hint, and has changed nothing; returns what it printed.
fn assert_refused(lab: &Lab, agent: &Agent, code: u8, says: &str) -> String {
    let before = oracle::everything(&agent.host);
    let stored = lasting(lab);
    let ran = agent.run();
    assert_eq!(ran.code, code, "stderr: {}", ran.stderr);
    assert!(ran.stdout.is_empty(), "stdout is for data: {}", ran.stdout);
    assert!(ran.stderr.contains("error:"), "{}", ran.stderr);
    assert!(ran.stderr.contains(says), "{says:?} is not in: {}", ran.stderr);
    // clap's own errors point to --help instead.
    assert!(ran.stderr.contains("hint:") || ran.stderr.contains("--help"), "no hint: {}", ran.stderr);
    oracle::assert_same(&before, &oracle::everything(&agent.host));
    assert_eq!(lasting(lab), stored, "the store is as it was");
    assert!(!agent.run_dir.join("agent.sock").exists());
    assert!(!agent.env_file().exists());
    ran.stderr
}

/// A network configuration that nobody can use: the agent stays and reports it.
struct Reported {
    name: &'static str,
    config: &'static str,
    code: &'static str,
    says: &'static str,
}

const REPORTED: [Reported; 5] = [
    Reported {
        name: "a_network_too_small",
        config: r#"{"Network":"10.100.0.0/30","Backend":{"Type":"vxlan"}}"#,
        code: "config-invalid",
        says: "10.100.0.0/30",
    },
    Reported {
        name: "an_unknown_backend",
        config: r#"{"Network":"10.100.0.0/16","Backend":{"Type":"carrier-pigeon"}}"#,
        code: "backend-unsupported",
        says: "vxlan",
    },
    Reported { name: "a_configuration_that_is_no_json", config: "{{{", code: "config-invalid", says: "default" },
    Reported {
        name: "a_vni_out_of_range",
        config: r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
        code: "config-invalid",
        says: "VNI",
    },
    Reported {
        name: "a_network_that_covers_the_underlay",
        config: r#"{"Network":"192.168.0.0/16","Backend":{"Type":"vxlan"}}"#,
        code: "network-covers-host",
        says: "192.168",
    },
];

fn reported(case: &Reported) {
    let lab = Lab::without_network(&Shape::vxlan(1));
    lab.etcd.put("/coreos.com/network/config", case.config, None);
    let mut agent = lab.agent(1);
    agent.start();
    let problem = agent.wait_for_problem(case.code);
    assert!(problem.to_string().contains(case.says), "{:?} is not in {problem}", case.says);
    assert!(!problem["hint"].as_str().unwrap().is_empty(), "{problem}");
    assert_eq!(agent.command(&["status"]).code, 8);
    assert!(oracle::own_links(&agent.host).is_empty());
    assert!(oracle::own_routes(&agent.host).is_empty());
    // It goes on by itself once the configuration is right, unless containers may have got addresses of the old one.
    if lab.etcd.subnets().is_empty() {
        lab.etcd.put("/coreos.com/network/config", &Shape::vxlan(1).config().to_string(), None);
        agent.subnet();
        agent.wait_converged(0);
    }
    assert_eq!(agent.end(Signal::SIGTERM), 0, "SIGTERM is a clean end");
}

fn second_agent() {
    let lab = Lab::new(&Shape::vxlan(1));
    let first = lab.join(1);
    first.subnet();
    first.wait_converged(0);
    let directory = lab.directory.join("second");
    let second = Agent::new(1, lab.host(1), &lab.topology.endpoint(), &directory);
    assert_refused(&lab, &second, 6, "another agent");
}

fn no_right() {
    let lab = Lab::new(&Shape::vxlan(1));
    let agent = lab.agent(1);
    let before = oracle::everything(&agent.host);
    let mut argv = vec!["setpriv", "--inh-caps=-all", "--bounding-set=-net_admin", "--"];
    let program = flatnet_tests::agent::program().display().to_string();
    argv.push(&program);
    argv.extend(agent.arguments.iter().map(String::as_str));
    let ran = agent.host.run(&argv);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("CAP_NET_ADMIN") && ran.stderr.contains("hint:"), "{}", ran.stderr);
    oracle::assert_same(&before, &oracle::everything(&agent.host));
}

/// Stand-ins for nft: the version of each, and its answer to the agent's text, which it does not read.
const UNFIT_NFTS: [(&str, &str); 4] = [
    ("0.9.3 (Topsy)", "/dev/stdin:12:21-21: Error: syntax error, unexpected &"),
    ("1.0.2 (Lester Gooch)", "/dev/stdin:12:3-8: Error: concatenation not supported with raw payload"),
    // This one is new enough by its number, and good for nothing.
    ("1.1.3 (Commodore Bullmoose)", "Error: cache initialization failed: Operation not supported"),
    ("1.1.3 (Commodore Bullmoose)", "/dev/stdin:7:9-11: Error: Could not process rule: Operation not supported"),
];

fn no_nft() {
    let lab = Lab::new(&Shape::vxlan(1));
    let mut agent = lab.agent(1);
    // `ip netns exec` gives whatever it starts its own mounts: there no nft is a program, wherever it is.
    let program = std::mem::replace(&mut agent.program, lab.directory.join("without-nft"));
    let script = format!(
        "#!/bin/sh\nfor nft in /usr/local/sbin/nft /usr/sbin/nft /sbin/nft /usr/bin/nft; do\n\
         [ ! -e $nft ] || mount --bind /dev/null $nft || exit 99\ndone\nexec {} \"$@\"\n",
        program.display()
    );
    write_program(&agent.program, &script);
    assert_refused(&lab, &agent, 4, "nftables");
    agent.program = program;

    let bin = lab.directory.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    for program in ["ip", "timeout", "cat"] {
        let path = flatnet_lab::tools::find(program).unwrap();
        std::os::unix::fs::symlink(path, bin.join(program)).unwrap();
    }
    agent.environment.push(("PATH".to_owned(), bin.display().to_string()));
    // An nft that is there and cannot read what guards the tunnels is named with its version, its words and what is
    // needed.
    for (version, words) in UNFIT_NFTS {
        let script = format!(
            "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo \"nftables v{version}\"; exit 0; }}\n\
             cat > /dev/null\necho \"{words}\" >&2\nexit 1\n"
        );
        write_program(&bin.join("nft"), &script);
        let said = assert_refused(&lab, &agent, 4, &format!("nft {}", version.split(' ').next().unwrap()));
        assert!(said.contains(words) && said.contains("nft 1.0.3 or later"), "{version}: {said}");
    }
    assert_eq!(lab.etcd.subnets(), [], "no lease was taken");

    // The directories of system programs, which users' PATH often lacks, are looked at too.
    agent.environment.push(("PATH".to_owned(), "/usr/bin:/bin".to_owned()));
    agent.start();
    agent.wait_converged(0);
}

fn write_program(path: &Path, script: &str) {
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn one_public_address() {
    let lab = Lab::new(&Shape::vxlan(2));
    let first = lab.join(1);
    first.wait_converged(0);
    let second = lab.agent(2).with(&["--public-ip", "192.168.33.11"]);
    assert_refused(&lab, &second, 6, "192.168.33.11");
    assert_eq!(lab.etcd.subnets().len(), 1, "the second one leases nothing");
    first.wait_converged(0);
}

fn copied_state() {
    let lab = Lab::new(&Shape::vxlan(2));
    let mut first = lab.join(1);
    first.wait_converged(0);
    first.end(Signal::SIGTERM);
    let second = lab.agent(2);
    std::fs::create_dir_all(second.state_dir.parent().unwrap()).unwrap();
    let from = first.state_dir.display().to_string();
    let copied = flatnet_tests::netns::run(std::process::Command::new("cp").args(["-a", &from]).arg(&second.state_dir));
    assert_eq!(copied.code, 0, "{}", copied.stderr);
    first.start();
    first.wait_converged(0);
    let leases = lab.etcd.subnets();
    let kernel = oracle::everything(&first.host);
    let ran = second.run();
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    assert!(ran.stderr.contains("copy") && ran.stderr.contains("hint:"), "{}", ran.stderr);
    assert_eq!((leases.len(), &leases), (1, &lab.etcd.subnets()), "the first host's lease is untouched");
    first.wait_converged(0);
    oracle::assert_same(&kernel, &oracle::everything(&first.host));
}

fn no_config() {
    let lab = Lab::without_network(&Shape::vxlan(1));
    let mut agent = lab.agent(1);
    agent.start();
    let problem = agent.wait_for_problem("no-config");
    assert!(problem["hint"].as_str().unwrap().contains("agent network create"), "{problem}");
    assert_eq!(agent.status().unwrap()["state"], "starting");
}

fn no_store() {
    let mut lab = Lab::new(&Shape::vxlan(1));
    lab.etcd.end(Signal::SIGKILL);
    let mut agent = lab.agent(1);
    agent.start();
    let status = agent.wait_for_status("a problem with the store", |status| {
        status["problems"].as_array().is_some_and(|problems| {
            problems.iter().any(|problem| problem["code"].as_str().is_some_and(|code| code.starts_with("store-")))
        })
    });
    assert_eq!(status["state"], "starting");
    lab.etcd.start_again();
    agent.wait_converged(0);
}
