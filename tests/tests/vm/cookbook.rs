//! The cookbook where the kernel has everything, and its way into a machine.

use std::process::{Command, Stdio};
use std::time::Duration;

use flatnet_tests::agent::program;
use flatnet_tests::netns::run;
use flatnet_tests::suite::Test;
use flatnet_tests::vm::VmLab;

/// The time for two ways of a recipe, with hosts made and removed for each.
const RECIPE: Duration = Duration::from_secs(400);

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("the_cookbooks_gre_tunnel_works_by_hand_and_with_agents_on_debians_kernel", gre).in_vms(),
        Test::new("lab_cookbook_takes_a_recipe_into_a_virtual_machine", into_a_machine).in_vms(),
    ]
}

fn gre() {
    let lab = VmLab::up(1);
    let ran = lab.vm(1).sh_within("agent lab cookbook gre", RECIPE);
    assert_eq!(ran.rc, 0, "{}", ran.output);
    for way in ["By hand: it works", "With agent: it works"] {
        assert!(ran.output.contains(way), "{}", ran.output);
    }
    // Nothing is left in the machine's own namespace.
    assert_eq!(
        lab.vm(1).ok("ip netns list; ls /run/cookbook* 2>/dev/null; ip -o link show type bridge; pgrep etcd || true"),
        ""
    );
}

fn into_a_machine() {
    let mut command = Command::new(program());
    let ran = run(command.args(["lab", "cookbook", "--vm", "namespaces"]).stdin(Stdio::null()));
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("By hand: it works") && ran.stdout.contains("With agent: it works"), "{}", ran.stdout);
}
