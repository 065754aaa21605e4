//! `agent lab`, as a user runs it: here inside the tests' own sandbox, so a sandbox in a sandbox.

use std::process::{Command, Stdio};
use std::time::Duration;

use flatnet_tests::agent::program;
use flatnet_tests::netns::run;
use flatnet_tests::suite::Test;
use flatnet_tests::wait::{pause, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("lab_demo_shows_all_pairs_and_cleans_up::vxlan", || demo("vxlan", 3)).on_backend("vxlan"),
        Test::new("lab_demo_shows_all_pairs_and_cleans_up::gre", || demo("gre", 2)).on_backend("gre"),
        Test::new("lab_demo_shows_all_pairs_and_cleans_up::wireguard", || demo("wireguard", 2)).on_backend("wireguard"),
        Test::new("lab_demo_shows_all_pairs_and_cleans_up::host_gw", || demo("host-gw", 2)),
        Test::new("lab_demo_interrupted_at_any_moment_leaves_nothing", interrupted).on_backend("vxlan"),
    ]
}

fn demo(backend: &str, hosts: usize) {
    let mut command = Command::new(program());
    command.args(["lab", "demo", "--ipv6", "--backend", backend, "--hosts", &hosts.to_string()]).stdin(Stdio::null());
    let ran = run(&mut command);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let pairs = hosts * (hosts - 1) * 2;
    assert!(ran.stdout.contains(&format!("all {pairs} pairs reachable")), "{}", ran.stdout);
    assert!(!ran.stdout.contains('\u{1b}'), "no colours into a pipe: {}", ran.stdout);
    assert_eq!(ran.stdout.matches("converged").count(), hosts, "{}", ran.stdout);
    assert!(ran.stdout.contains("cleaned up: "), "{}", ran.stdout);
}

fn interrupted() {
    for after_millis in [50, 400, 1_200, 2_000, 3_000] {
        // A shell starts what runs in the background with SIGINT ignored, which passes on to what that starts.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(program()).args(["lab", "demo", "--hosts", "2"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let directory = std::env::temp_dir().join(format!("flatnet-demo-{}", child.id()));
        pause(Duration::from_millis(after_millis));
        // On a busy machine the demo may be at its end by now: then it was not interrupted.
        if child.try_wait().unwrap().is_none() {
            kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
            let status = wait_until("the demo ends", Duration::from_secs(15), || {
                child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
            });
            // It takes two seconds; the signal may have come when all was done and cleaned up.
            assert!(!status.success() || after_millis >= 1_200, "interrupted after {after_millis} ms: {status}");
        }
        assert!(!directory.exists(), "{} is left after {after_millis} ms", directory.display());
    }
}
