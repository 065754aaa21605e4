//! VXLAN over lines that delay and lose packets: hosts join, the store fails over and restarts, and the datapath goes
//! on.

use std::time::Duration;

use flatnet_tests::suite::Test;
use flatnet_tests::vm::{Vm, VmLab};
use flatnet_tests::wait::{pause, wait_until};
use serde_json::Value;

/// A ping each way is lost with the square of what one way keeps; so many in a row are not chance (below 10⁻⁹ each).
const NOT_CHANCE: [(u8, usize); 2] = [(1, 6), (20, 45)];
/// The time for an election (3 s) and an agent's turn to another endpoint, on slow machines over a slow line.
const FAILOVER: Duration = Duration::from_secs(20);

pub fn tests() -> Vec<Test> {
    let one = || join_through_a_failover(1);
    let twenty = || join_through_a_restart(20);
    vec![
        Test::new("hosts_join_over_50_ms_and_1_percent_loss_while_the_stores_leader_dies", one).in_vms(),
        Test::new("hosts_join_over_50_ms_and_20_percent_loss_while_the_store_restarts", twenty).in_vms(),
    ]
}

fn join_through_a_failover(loss: u8) {
    let lab = VmLab::up(3);
    spoil_lines(&lab, loss);
    lab.start_etcd_cluster();
    lab.configure(r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let endpoints: Vec<String> = lab.machines().iter().map(|vm| format!("http://{}:2379", vm.address())).collect();
    let endpoints = endpoints.join(" ");
    for number in [1, 2] {
        lab.vm(number).join(&endpoints, &[]);
    }
    for number in [1, 2] {
        lab.vm(number).wait_converged(1);
        lab.vm(number).attach();
    }
    let pings = Pings::start(lab.vm(1), lab.vm(2));

    let leader = leader(&lab);
    lab.vm(leader).end("etcd", "KILL");
    // In the middle of it a host joins that does not know which of the three is left.
    lab.vm(3).join(&endpoints, &[]);
    lab.each(|vm| drop(vm.wait_converged(2)));
    lab.vm(3).attach();
    lab.assert_all_pairs();
    pause(FAILOVER);
    lab.each(|vm| drop(vm.wait_converged(2)));
    pings.assert_no_gap(loss);
}

fn join_through_a_restart(loss: u8) {
    let lab = VmLab::up(3);
    spoil_lines(&lab, loss);
    lab.start_etcd(1);
    lab.configure(r#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let endpoint = lab.endpoint();
    for number in [1, 2] {
        lab.vm(number).join(&endpoint, &[]);
    }
    for number in [1, 2] {
        lab.vm(number).wait_converged(1);
        lab.vm(number).attach();
    }
    let pings = Pings::start(lab.vm(1), lab.vm(2));
    let before: Vec<_> = [1, 2].map(|number| lab.vm(number).subnet().container_addresses().collect::<Vec<_>>()).into();

    lab.vm(1).end("etcd", "KILL");
    // It starts while the store is away.
    lab.vm(3).join(&endpoint, &[]);
    pause(FAILOVER);
    lab.start_etcd(1);
    lab.each(|vm| drop(vm.wait_converged(2)));
    lab.vm(3).attach();
    lab.assert_all_pairs();
    let after: Vec<_> = [1, 2].map(|number| lab.vm(number).subnet().container_addresses().collect::<Vec<_>>()).into();
    assert_eq!(before, after, "a host got another subnet");
    pings.assert_no_gap(loss);
}

/// Adds 50 ms and `loss` percent on all that a machine sends: twice that on a round trip.
fn spoil_lines(lab: &VmLab, loss: u8) {
    lab.each(|vm| {
        vm.ok(&format!("tc qdisc add dev eth0 root netem delay 50ms loss {loss}%"));
    });
    lab.vm(1).wait_for("the line answers", "ping -nc 1 -W 1 192.168.33.12");
    let rtt = lab.vm(1).wait_for("the line's round trip", "ping -nc 1 -W 1 192.168.33.12 | grep -o 'time=[0-9]*'");
    let millis: u32 = rtt.trim().trim_start_matches("time=").parse().unwrap();
    assert!(millis >= 100, "netem does nothing: {millis} ms");
}

/// Returns the number of the machine with etcd's leader.
fn leader(lab: &VmLab) -> u8 {
    wait_until("etcd has a leader", Duration::from_secs(60), || {
        let ask = "ETCDCTL_API=3 etcdctl --dial-timeout=10s --command-timeout=20s endpoint status --cluster -w json";
        let said = lab.vm(2).sh(ask).output;
        let status: Value = serde_json::from_str(&said).map_err(|_| said.clone())?;
        let leads = |member: &&Value| {
            let header = &member["Status"]["header"]["member_id"];
            !header.is_null() && *header == member["Status"]["leader"]
        };
        let endpoint =
            status.as_array().and_then(|all| all.iter().find(leads)).map(|member| member["Endpoint"].clone());
        let last =
            endpoint.as_ref().and_then(Value::as_str).and_then(|endpoint| endpoint.split(['.', ':']).nth_back(1));
        last.and_then(|last| last.parse::<u8>().ok()).and_then(|last| last.checked_sub(10)).ok_or(said)
    })
}

/// Ten pings a second from a container to another.
struct Pings<'a> {
    from: &'a Vm,
}

impl<'a> Pings<'a> {
    fn start(from: &'a Vm, to: &Vm) -> Self {
        let address = to.subnet().container_addresses().next().unwrap();
        from.assert_container_reaches(address);
        from.start("ping", &format!("ip netns exec c1 ping -n -O -i 0.1 {address}"));
        Self { from }
    }

    /// Asserts that lost pings were lost by chance.
    fn assert_no_gap(&self, loss: u8) {
        self.from.end("ping", "INT");
        let output = self.from.ok("cat /run/ping.log");
        let sequence = |line: &str| -> Option<u64> {
            line.contains("bytes from")
                .then(|| line.split("icmp_seq=").nth(1)?.split_whitespace().next()?.parse().ok())?
        };
        let mut answered: Vec<u64> = output.lines().filter_map(sequence).collect();
        answered.sort_unstable();
        assert!(answered.len() > 20, "{output}");
        let longest = answered.windows(2).map(|pair| pair[1] - pair[0] - 1).max().unwrap();
        let (_, not_chance) = NOT_CHANCE.iter().find(|(percent, _)| *percent == loss).unwrap();
        let sent = answered.last().unwrap() - answered.first().unwrap() + 1;
        println!(
            "figure: VXLAN, 50 ms and {loss} % each way: of {sent} pings {} lost, at most {longest} in a row",
            sent - u64::try_from(answered.len()).unwrap()
        );
        assert!(longest < u64::try_from(*not_chance).unwrap(), "{longest} pings in a row were lost:\n{output}");
    }
}
