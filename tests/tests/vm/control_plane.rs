//! The control plane's package on a server, and hosts that join it with theirs.

use flatnet_tests::suite::Test;
use flatnet_tests::vm::{Vm, VmLab, VmShape};

pub fn tests() -> Vec<Test> {
    let name = "the_control_planes_package_serves_hosts_is_restarted_comes_back_after_reboot_and_goes_without_a_trace";
    vec![Test::new(name, package).of_both_packages()]
}

/// The command that prints the id of the service's process.
const PID: &str = "systemctl show -p MainPID --value flatnet-controlplane";
/// Makes a script that succeeds if a unit's limits are in force: 1 GiB of memory, and so many tasks.
fn limits(unit: &str, tasks: u32) -> String {
    format!(
        "[ \"$(systemctl show -p MemoryMax -p TasksMax --value {unit} | sort | xargs)\" = \"$(printf '1073741824\\n{tasks}\\n' | sort | xargs)\" ]"
    )
}

/// The directory of its data, through the link that systemd makes for a user of the moment.
const DATA: &str = "/var/lib/flatnet-controlplane";
const READY: &str = "[ $(systemctl is-active flatnet-controlplane) = active ] && curl -sf http://127.0.0.1:9470/readyz";

fn package() {
    let lab = VmLab::new(VmShape::servers(2).with_disks());
    let server = lab.vm(1);
    server.ok("dpkg -i /lab/flatnet-controlplane.deb && systemd-analyze verify flatnet-controlplane.service");
    server.ok("! systemctl is-enabled flatnet-controlplane && ! systemctl is-active flatnet-controlplane");
    // As docs/operations.md has it: what the package brought, with three lines in force.
    server.ok("sed -i 's/^#\\(FLATNET_INIT\\|FLATNET_HTTP_LISTEN\\)=/\\1=/; s/^#FLATNET_ADVERTISE=.*/FLATNET_ADVERTISE=192.168.33.11/' \
               /etc/flatnet/controlplane.env && systemctl enable --now flatnet-controlplane");
    server.wait_for("the control plane is ready", READY);
    server.ok("curl -sf http://127.0.0.1:9470/healthz && curl -sf http://127.0.0.1:9470/metrics | grep -q flatnet");
    // Its sandbox: no root, no capability, a filter, and its key is nobody else's.
    for held in [
        format!("! grep -E '^(CapEff|CapPrm):.*[1-9a-f]' /proc/$({PID})/status"),
        format!("grep 'Seccomp:.*2' /proc/$({PID})/status"),
        format!("[ $(stat -c %u /proc/$({PID})) != 0 ]"),
        format!("grep -E '^Max open files +65536 +65536 ' /proc/$({PID})/limits"),
        limits("flatnet-controlplane", 1024),
        format!("[ $(stat -Lc %a {DATA}/) = 700 ]"),
        format!("ls -l {DATA}/pki/; [ -z \"$(find {DATA}/pki/ -name '*.key' -perm /077)\" ]"),
    ] {
        server.ok(&held);
    }

    let said = server.ok("controlplane token create --uses 2");
    let (token, hash) = read(&said);
    server.ok(&format!("! journalctl -u flatnet-controlplane --no-pager | grep -F '{}'", secret(token)));
    lab.each(|vm| join(vm, token, hash));
    lab.each(|vm| drop(vm.wait_converged(1)));
    lab.each(|vm| drop(vm.ok(&limits("flatnet-agent", 512))));
    lab.attach_all();
    lab.assert_all_pairs();
    let nodes = server.ok("controlplane node ls");
    assert_eq!(nodes.matches(" present ").count(), 2, "{nodes}");
    let before = lab.vm(2).subnet();

    // Killed: systemd starts it again, on the same store and with the same authority.
    let first = server.ok(PID);
    server.ok(&format!("kill -9 {first}"));
    server.wait_for("systemd starts it again", &format!("[ $({PID}) != {} ] && {READY}", first.trim()));
    // An upgrade restarts it.
    let second = server.ok(PID);
    server.ok("dpkg -i /lab/flatnet-controlplane.deb");
    server.wait_for("the new one serves", &format!("[ $({PID}) != {} ] && {READY}", second.trim()));
    lab.each(|vm| drop(vm.wait_converged(1)));
    server.ok(
        "grep -q '^FLATNET_INIT=' /etc/flatnet/controlplane.env && controlplane network ls | grep -q 10.100.0.0/16",
    );
    // A copy goes where root says, though the service may write nowhere there, and comes back as the service's own.
    server.ok("controlplane backup /root/copy.redb && [ $(stat -c %a /root/copy.redb) = 600 ]");
    server.ok(&format!("! controlplane backup /root/copy.redb && [ -z \"$(ls {DATA}/backup-* 2>/dev/null)\" ]"));
    server.ok("systemctl stop flatnet-controlplane && controlplane restore /root/copy.redb");
    server.ok("systemctl start flatnet-controlplane");
    server.wait_for("it serves what was put back", READY);
    lab.each(|vm| drop(vm.wait_converged(1)));
    server.reboot();
    server.wait_for("it serves after a reboot", READY);
    lab.each(|vm| drop(vm.wait_converged(1)));
    assert_eq!(lab.vm(2).subnet(), before);
    // Its container went with the reboot.
    server.attach();
    let nodes = server.ok("controlplane node ls");
    assert_eq!(nodes.lines().filter(|line| line.contains("host")).count(), 2, "{nodes}");

    // Removed: it ends, its store and its authority stay, and the hosts go on.
    server.ok("dpkg -r flatnet-controlplane");
    server.ok(&format!("! pgrep -x controlplane && [ -e {DATA}/store.redb ] && [ -e {DATA}/pki ]"));
    lab.assert_all_pairs();
    server.ok("dpkg --purge flatnet-controlplane");
    server.ok(&format!(
        "[ ! -e {DATA} ] && [ ! -e /var/lib/private/flatnet-controlplane ] && [ ! -e /etc/flatnet/controlplane.env ] && \
         [ ! -e /usr/bin/controlplane ] && [ ! -e /lib/systemd/system/flatnet-controlplane.service ] && \
         [ -e /etc/flatnet/agent.toml ]"
    ));
}

/// Reads `--token T --ca-hash H`, as printed.
fn read(said: &str) -> (&str, &str) {
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!((words[0], words[2]), ("--token", "--ca-hash"), "{said}");
    (words[1], words[3])
}

fn secret(token: &str) -> &str {
    token.split_once('.').unwrap().1
}

/// Joins with the token in a file: nobody sees it in a list of processes.
fn join(vm: &Vm, token: &str, hash: &str) {
    vm.ok("dpkg -i /lab/flatnet-agent.deb");
    vm.put("/etc/flatnet/token", 0o600, format!("{token}\n").as_bytes());
    let settings = format!(
        "endpoint = [\"grpcs://192.168.33.11:7443\"]\ntoken-file = \"/etc/flatnet/token\"\nca-hash = \"{hash}\"\n\
         bridge = \"flbr0\"\nlog-format = \"journald\"\n"
    );
    vm.put("/etc/flatnet/agent.toml", 0o644, settings.as_bytes());
    vm.ok("systemctl enable --now flatnet-agent");
}
