//! The README's first steps, as they are written there, on servers fresh from Debian.

use std::path::Path;

use flatnet_tests::suite::Test;
use flatnet_tests::vm::{Vm, VmLab, VmShape};

pub fn tests() -> Vec<Test> {
    vec![Test::new("the_quick_start_of_the_readme_works_as_written_with_docker", quick_start).in_vms()]
}

/// A line of the README: the host it is typed on, and its text.
#[derive(Debug, PartialEq)]
struct Step {
    host: u8,
    command: String,
}

fn quick_start() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let steps = steps(&std::fs::read_to_string(readme).unwrap());
    assert!(steps.len() >= 6, "the README's quick start has become short: {steps:?}");

    let lab = VmLab::new(VmShape::servers(2).with_master());
    // "Somewhere both can reach, an etcd listens, say at 192.168.33.10:2379."
    lab.start_etcd(0);
    for number in [1, 2] {
        prepare(lab.vm(number));
    }
    // The address that the first container prints stands in the README as an example.
    let mut address = None;
    for Step { host, command } in steps {
        let vm = lab.vm(host);
        if command.starts_with("agent join") {
            // In the foreground in the README.
            vm.start("agent", &command);
            let _ = vm.subnet();
        } else if command.contains("ip -4 addr show") {
            let name = "ip -4 addr show eth0";
            let command = command.replace("-it ", "").replace("--rm", "--rm --detach --name first");
            let stays = command.replace(name, "sleep 1000");
            vm.ok(&stays);
            let said = vm.ok(&format!("docker exec first {name}"));
            let inet = said.split("inet ").nth(1).and_then(|rest| rest.split('/').next());
            address = Some(inet.unwrap_or_else(|| panic!("no address: {said}")).to_owned());
        } else {
            let example = address.as_ref().map(|address| command.replace("10.100.36.2", address));
            vm.ok(&example.unwrap_or(command));
        }
    }
    let address = address.expect("no step shows the container's address");
    assert!(address.starts_with("10.100."), "{address}");
    lab.vm(2).wait_converged(1);
    lab.vm(1).ok("agent doctor");
}

/// Prepares what the text around the steps says: the program is in its place; and an image, as there is no registry
/// here.
fn prepare(vm: &Vm) {
    vm.ok("install -m 755 /lab/agent /usr/local/bin/agent");
    // An overlay on an overlay is refused by the kernel: the disk below is one.
    vm.ok("mkdir -p /var/lib/docker && mount -t tmpfs tmpfs /var/lib/docker && systemctl start docker");
    vm.ok("set -e; mkdir -p /tmp/image/bin; cp /bin/busybox /tmp/image/bin/; for applet in sh ip ping sleep; do \
         ln -s busybox /tmp/image/bin/$applet; done; tar -C /tmp/image -c . | docker import - alpine");
}

/// Returns the lines that begin with a host's prompt, without their remarks.
fn steps(readme: &str) -> Vec<Step> {
    let step = |line: &str| {
        let (host, command) = line.strip_prefix("host")?.split_once("# ")?;
        let command = command.split("   #").next().unwrap_or(command).trim();
        Some(Step { host: host.parse().ok()?, command: command.to_owned() })
    };
    readme.lines().filter_map(step).collect()
}
