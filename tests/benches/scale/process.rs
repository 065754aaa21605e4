//! A process seen from outside: its memory, its processor time, its metrics pages. Also a description of the machine.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use flatnet_tests::agent::program;
use flatnet_tests::netns::{Namespace, run};

use crate::host::netns;

/// Returns the number under which `/proc`, which is the caller's and not the sandbox's, shows our child `pid`.
fn outer(pid: u32) -> String {
    let own = fs::read_link("/proc/self").unwrap().display().to_string();
    let field = |status: &str, name: &str| {
        let values = status.lines().find_map(|line| line.strip_prefix(name))?;
        values.split_whitespace().next_back().map(str::to_owned)
    };
    let inner = pid.to_string();
    let ours = |entry: &fs::DirEntry| {
        // A process may end while it is looked at.
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        field(&status, "PPid:").as_ref() == Some(&own) && field(&status, "NSpid:").as_ref() == Some(&inner)
    };
    let mut entries = fs::read_dir("/proc").unwrap().flatten();
    entries.find(ours).expect("/proc shows the agent").file_name().display().to_string()
}

/// Reads a line of `/proc/PID/status` in KiB: `VmRSS` (resident now), `RssAnon` (the part of it not backed by a file),
/// `VmHWM` (the most).
pub fn memory_kib(pid: u32, line: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", outer(pid))).unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    found.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

/// Returns the processor time so far in seconds, user and system, with that of ended children.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", outer(pid))).unwrap();
    // proc_pid_stat(5): fields 14 to 17, counted after the name's closing parenthesis as field 2; 100 ticks a second.
    let after = stat.rsplit_once(')').unwrap().1;
    let ticks: f64 = after.split_whitespace().skip(11).take(4).map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}

/// Fetches a page over HTTP, from inside `namespace`; returns the code and the body, or `None` if nothing answers.
pub fn page(namespace: &Namespace, port: u16, path: &str) -> Option<(u16, String)> {
    let get = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let code = text.split_whitespace().nth(1)?.parse().ok()?;
        Some((code, text))
    };
    netns(namespace).run(get).unwrap()
}

/// Returns the sum of a counter's values over those label sets that hold `label`.
pub fn counter(page: &str, name: &str, label: &str) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// Describes the machine in a line.
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let etcd = run(Command::new("etcd").arg("--version")).stdout;
    let etcd = etcd.lines().next().unwrap_or_default().to_lowercase();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let model = model.map_or("?", |(_, model)| model);
    format!("{model}, {cores} cores, Linux {}, {etcd}, load at the start {load}", kernel.trim())
}

/// Describes the agent's program in a line.
pub fn binary() -> String {
    let bytes = fs::metadata(program()).map_or(0, |metadata| metadata.len());
    format!("{}.{} MB on disk", bytes / 1_000_000, bytes / 100_000 % 10)
}
