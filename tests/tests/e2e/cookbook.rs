//! `agent lab cookbook`: every recipe, as a user runs it.

use std::process::{Command, Stdio};

use flatnet_tests::agent::program;
use flatnet_tests::netns::{Ran, run};
use flatnet_tests::suite::Test;

pub fn tests() -> Vec<Test> {
    let listed = Test::new("the_cookbook_lists_its_recipes_and_refuses_others", lists);
    let recipe = |name: &'static str| {
        Test::new(format!("a_recipe_of_the_cookbook_works_here_or_says_why_not::{name}"), move || works(name))
            .on_backend("vxlan")
    };
    [listed].into_iter().chain(["gre", "flannel", "bridge", "pipework", "namespaces"].map(recipe)).collect()
}

fn cookbook(arguments: &[&str]) -> Ran {
    let mut command = Command::new(program());
    run(command.args(["lab", "cookbook"]).args(arguments).stdin(Stdio::null()))
}

fn lists() {
    let ran = cookbook(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let names: Vec<&str> = ran.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["gre", "flannel", "bridge", "pipework", "namespaces"]);
    assert_eq!(cookbook(&["soup"]).code, 9);
}

fn works(name: &str) {
    let ran = cookbook(&[name]);
    // What each way came to stands at the end; a way that failed would have ended it before.
    let (_, result) = ran.stdout.split_once("=== Result\n").unwrap_or_else(|| panic!("{}{}", ran.stdout, ran.stderr));
    let by_hand = if matches!(name, "gre" | "flannel") { "By hand: NOT RUN here: " } else { "By hand: it works" };
    let kernel_has_gre = result.contains("By hand: it works");
    assert!(result.contains(by_hand) || kernel_has_gre, "{result}");
    if result.contains("With agent: NOT RUN here: ") {
        assert!(result.contains("this agent has no backend"), "{result}");
        assert_eq!(ran.code, if kernel_has_gre { 0 } else { 4 }, "{result}");
    } else {
        assert!(result.contains("With agent: it works"), "{result}");
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        assert!(ran.stdout.contains("host1# agent join"), "the lines are shown as they run: {}", ran.stdout);
    }
}
