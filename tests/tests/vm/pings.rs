//! Pings from a container in the background, while something is done to the hosts.

use std::net::IpAddr;
use std::time::Duration;

use flatnet_tests::vm::Vm;
use flatnet_tests::wait::pause;

/// Pings 20 times a second from the container of `vm`, in the background. An emulated machine takes a second for what
/// takes a real one 50 ms. The kernel keeps 128 packets for a WireGuard peer that has no session
/// (drivers/net/wireguard: `MAX_STAGED_PACKETS`), which two streams of 100 a second would fill.
pub fn start(vm: &Vm, name: &str, to: IpAddr) {
    vm.start(name, &format!("ip netns exec c1 ping -n -i 0.05 -W 2 {to}"));
    vm.wait_for("the first ping is answered", &format!("grep -q 'bytes from' /run/{name}.log"));
}

/// Ends it; returns how many were sent, how many never answered, and the longest an answer took, in milliseconds.
pub fn end(vm: &Vm, name: &str) -> (u64, u64, f64) {
    // Those on their way come in.
    pause(Duration::from_millis(500));
    vm.end(name, "INT");
    let log = vm.ok(&format!("cat /run/{name}.log; rm /run/{name}.log"));
    let summary = log.lines().find(|line| line.contains("packets transmitted")).unwrap_or_else(|| panic!("{log}"));
    let numbers: Vec<u64> = summary.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    let slowest = log.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok());
    // The last request may have been on its way when ping was ended.
    (numbers[0], (numbers[0] - numbers[1]).saturating_sub(1), slowest.fold(0.0, f64::max))
}
