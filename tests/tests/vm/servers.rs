//! Servers as people have them: systemd, a disk, the installed package, reboots.

use flatnet_tests::suite::Test;
use flatnet_tests::vm::{Vm, VmLab, VmShape};

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("the_installed_package_starts_is_restarted_and_comes_back_after_reboot_and_power_cut", package)
            .of_package(),
    ]
}

fn package() {
    let lab = VmLab::new(VmShape::servers(2).with_disks());
    lab.start_etcd(1);
    let endpoint = lab.endpoint();
    lab.each(|vm| install(vm, &endpoint));
    lab.each(|vm| drop(vm.wait_converged(1)));
    lab.attach_all();
    lab.assert_all_pairs();
    let before = lab.vm(2).subnet();

    let pid = "systemctl show -p MainPID --value flatnet-agent";
    let first = lab.vm(2).ok(pid);
    lab.vm(2).ok(&format!("kill -9 {first}"));
    lab.vm(2).wait_for("systemd starts it again", &format!("[ $({pid}) != 0 ] && [ $({pid}) != {} ]", first.trim()));
    lab.vm(2).wait_converged(1);
    lab.assert_all_pairs();

    lab.vm(2).reboot();
    comes_back(&lab, &before);
    // What was not on its disk is gone: also what the agent has to have there.
    lab.vm(2).power_cycle();
    comes_back(&lab, &before);

    // No trace, once its container is gone.
    lab.vm(2).ok("ip link del c1; agent leave --purge && dpkg --purge flatnet-agent");
    lab.vm(2).ok("! ip link show flat.1 && ! nft list table inet flatnet && [ ! -e /var/lib/flatnet ] && [ -z \"$(ip route show proto 91)\" ]");
    lab.vm(1).wait_converged(0);
}

/// Installs the package as docs/operations.md has it.
fn install(vm: &Vm, endpoint: &str) {
    vm.ok("dpkg -i /lab/flatnet-agent.deb");
    let settings = format!(
        "endpoint = [\"{endpoint}\"]\ninit = [\"10.100.0.0/16\"]\nbridge = \"flbr0\"\nlog-format = \"journald\"\n"
    );
    vm.put("/etc/flatnet/agent.toml", 0o644, settings.as_bytes());
    vm.ok("systemctl enable --now flatnet-agent");
}

/// Asserts that the machine comes back although nobody logs in: with the same subnet, converged, and its containers are
/// reached once they are there again.
fn comes_back(lab: &VmLab, before: &flatnet_lab::subnet_env::SubnetEnv) {
    let vm = lab.vm(2);
    vm.wait_converged(1);
    assert_eq!(&vm.subnet(), before, "another subnet after a reboot");
    vm.attach();
    lab.assert_all_pairs();
}
