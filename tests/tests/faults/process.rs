//! The resources a process uses, according to the kernel.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use flatnet_tests::netns::run;

/// Ticks a second in `/proc/PID/stat` (`USER_HZ`; 100 on every architecture Linux has today).
const TICKS: u64 = 100;

/// Returns a `/proc` of the sandbox's own pid namespace: the one that is mounted knows other numbers.
fn proc() -> &'static PathBuf {
    static PROC: OnceLock<PathBuf> = OnceLock::new();
    PROC.get_or_init(|| {
        let path = PathBuf::from("/run/proc");
        fs::create_dir_all(&path).unwrap();
        let ran = run(Command::new("mount").args(["-t", "proc", "proc", "/run/proc"]));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        path
    })
}

/// Returns the processor time used so far, user and system, of the process and its threads.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(proc().join(pid.to_string()).join("stat")).unwrap();
    // proc(5): the name in parentheses may hold spaces; utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Returns a line of `/proc/PID/status` in KiB, such as `VmHWM`, the largest resident size so far.
pub fn memory_kib(pid: u32, what: &str) -> u64 {
    let status = fs::read_to_string(proc().join(pid.to_string()).join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("no {what} in {status}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Returns the number of open descriptors.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(proc().join(pid.to_string()).join("fd")).unwrap().count()
}
