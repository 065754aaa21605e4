//! The scene with which every fault's test begins, and its measurements: hosts that reach each other, a picture of a
//! host's whole state taken by foreign tools, and the time until that picture is back.

use std::time::{Duration, Instant};

use flatnet_tests::agent::{Agent, BRIDGE};
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::Namespace;
use flatnet_tests::pinger::{self, Pinger};
use flatnet_tests::wait::{SOON, pause};
use serde_json::Value;

/// The longest time that most rows allow.
pub const SECOND: Duration = Duration::from_secs(1);
/// The port of every agent's pages, each in its own host.
pub const HTTP_PORT: u16 = 9191;
/// The pause between two pictures of a host.
const LOOK: Duration = Duration::from_millis(15);
/// The time for which a state must stay exact to count as such in the end: longer than a quick pass waits for its
/// check.
const STAYS: Duration = Duration::from_millis(700);

/// Prints one row's figure, in one line that scripts collect.
pub fn figure(row: &str, text: impl AsRef<str>) {
    println!("figure: {row}: {}", text.as_ref());
}

/// Returns a time in milliseconds, for figures.
pub fn ms(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

/// Hosts with agents and containers that all reach each other. The agents are dropped before the lab.
pub struct Scene {
    pub agents: Vec<Agent>,
    pub lab: Lab,
}

impl Scene {
    /// Makes a scene in which all reach each other.
    pub fn new(shape: &Shape) -> Self {
        Self::with(shape, &[])
    }

    /// Makes a scene as [`Self::new`] does, with further flags for every agent.
    pub fn with(shape: &Shape, flags: &[&str]) -> Self {
        let lab = Lab::new(shape);
        let mut agents = Vec::new();
        for number in 1..=shape.hosts {
            let mut agent = agent(&lab, number, flags);
            agent.start();
            agents.push(agent);
        }
        for agent in &agents {
            agent.wait_converged(agents.len() - 1);
        }
        lab.attach_all(&agents);
        pinger::assert_all_pairs(&lab, &agents);
        Self { agents, lab }
    }

    /// Starts a stream from the first container to the second.
    pub fn stream(&self) -> Pinger {
        let address = self.agents[1].subnet().container_addresses().next().unwrap();
        Pinger::start(&self.lab, &self.lab.container(1), address)
    }
}

/// Makes an agent with a bridge and its pages; not started.
pub fn agent(lab: &Lab, number: u8, flags: &[&str]) -> Agent {
    let listen = format!("127.0.0.1:{HTTP_PORT}");
    lab.agent(number).with(&["--bridge", BRIDGE, "--http-listen", &listen]).with(flags)
}

/// Takes a picture of a host's whole state, except for what changes by itself: counters, timers, what a bridge learnt,
/// whose packets were dropped (the sets `seen…` of our table), interface indexes and the order they bring, link-local
/// addresses under duplicate address detection.
pub fn picture(host: &Namespace) -> String {
    let script = r#"
        s() { echo "== $*"; "$@" 2>/dev/null; }
        s ip -o -d link show; s ip -o addr show; s ip -4 -d -o route show table all; s ip -6 -d -o route show table all
        s ip -4 rule show; s ip -6 rule show; s ip -d nexthop show; s ip neigh show nud permanent
        s bridge fdb show
        echo "== nft -s list ruleset"
        nft -s list ruleset | awk '/set seen[46]_/ { ours = 1 } ours && /elements = / { skip = 1 }
          skip { if (/}$/) skip = ours = 0; next } /^\t}/ { ours = 0 } { print }'
        s grep -sH . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv4/conf/*/rp_filter \
          /proc/sys/net/ipv6/conf/*/forwarding /proc/sys/net/ipv6/conf/*/accept_ra /proc/sys/net/ipv4/conf/*/send_redirects \
          /proc/sys/net/ipv6/conf/*/addr_gen_mode
        for v in iptables-legacy ip6tables-legacy; do
          if [ -s /proc/net/$(echo $v | sed 's/tables-legacy/_tables_names/') ]; then s $v -S; fi
        done
    "#;
    let ran = host.run(&["sh", "-c", script]);
    let mut section = String::new();
    let mut lines: Vec<(String, String)> = Vec::new();
    for (number, line) in ran.stdout.lines().enumerate() {
        if let Some(name) = line.strip_prefix("== ") {
            section = name.split(" /proc").next().unwrap_or(name).to_owned();
            continue;
        }
        let Some(line) = stable(&section, line) else { continue };
        // A ruleset's order means something, that of the kernel's other lists does not.
        let ordered = section.starts_with("nft") || section.contains("tables-legacy");
        let key = if ordered { format!("{section} {number:06}") } else { format!("{section} {line}") };
        lines.push((key, format!("{section}: {line}")));
    }
    lines.sort();
    lines.into_iter().map(|(_, line)| line + "\n").collect()
}

/// Returns the part of a line that somebody set; `None` if nobody did.
fn stable(section: &str, line: &str) -> Option<String> {
    let line_local = ["fe80:", "33:33:", "01:00:5e:", "ff00::/8", "tentative"];
    if !section.starts_with("nft")
        && !section.starts_with("ip -o -d link")
        && line_local.iter().any(|what| line.contains(what))
    {
        return None;
    }
    if section.starts_with("bridge fdb") && !["permanent", "dst", "static"].iter().any(|word| line.contains(word)) {
        return None;
    }
    // The program that owns a table may be another binary of ours.
    let line = if section.starts_with("nft") { line.split(" # progname").next().unwrap_or(line) } else { line };
    let mut words: Vec<&str> = Vec::new();
    let mut skip = false;
    for word in line.split_whitespace() {
        if !skip && word != "dynamic" {
            words.push(word);
        }
        skip = word.ends_with("_timer") || word == "topology_change" || word == "topology_change_detected";
    }
    if section.starts_with("ip -o") {
        // "7: flat.1: …": the index goes with a device made anew.
        words.remove(0);
    }
    Some(words.join(" "))
}

/// Waits until `host` is as it was in `before`; returns the time since `since` until it was seen so.
pub fn until_exact(what: &str, host: &Namespace, before: &str, since: Instant) -> Duration {
    loop {
        let now = picture(host);
        let took = since.elapsed();
        if now == before {
            return took;
        }
        assert!(took < SOON, "{what}: {} is not as before after {took:?}:\n{}", host.0, differences(before, &now));
        pause(LOOK);
    }
}

/// Asserts that the state is exact now and stays so.
pub fn assert_exact(host: &Namespace, before: &str) {
    until_exact("at the end", host, before, Instant::now());
    pause(STAYS);
    let now = picture(host);
    assert!(now == before, "{} did not stay as it was:\n{}", host.0, differences(before, &now));
}

/// Returns a picture that no longer changes.
pub fn settled(host: &Namespace) -> String {
    let mut last = picture(host);
    let began = Instant::now();
    loop {
        pause(Duration::from_millis(1200));
        let now = picture(host);
        if now == last {
            return now;
        }
        assert!(began.elapsed() < SOON, "{} does not settle:\n{}", host.0, differences(&last, &now));
        last = now;
    }
}

pub fn differences(before: &str, now: &str) -> String {
    let gone = before.lines().filter(|line| !now.lines().any(|other| other == *line)).map(|line| format!("- {line}"));
    let new = now.lines().filter(|line| !before.lines().any(|other| other == *line)).map(|line| format!("+ {line}"));
    let lines: Vec<String> = gone.chain(new).collect();
    if lines.is_empty() { "the same lines in another order or number".to_owned() } else { lines.join("\n") }
}

/// Fetches a page of the agent on `host`.
pub fn page(host: &Namespace, path: &str) -> String {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{HTTP_PORT} && printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3 && timeout 5 cat <&3"
    );
    host.run(&["bash", "-c", &script]).stdout
}

/// Returns the sum of all series of `metric` whose labels contain each of `labels` (`kind="route"`).
pub fn metric(host: &Namespace, metric: &str, labels: &[&str]) -> u64 {
    let page = page(host, "/metrics");
    let value = |line: &str| -> Option<u64> {
        let rest = line.strip_prefix(metric)?;
        if !rest.starts_with([' ', '{']) || !labels.iter().all(|label| rest.contains(label)) {
            return None;
        }
        rest.rsplit(' ').next()?.parse().ok()
    };
    page.lines().filter_map(value).sum()
}

/// Returns the number of objects of `kind` repaired so far.
pub fn drift(host: &Namespace, kind: &str) -> u64 {
    metric(host, "flatnet_drift_repairs_total", &[&format!("kind=\"{kind}\"")])
}

/// Returns the number of changes made to the kernel by this run of the agent, except for swaps of the ruleset.
pub fn kernel_writes(host: &Namespace) -> u64 {
    metric(host, "flatnet_reconcile_ops_total", &[])
        - metric(host, "flatnet_reconcile_ops_total", &["kind=\"ruleset\""])
}

/// Runs a script in `host` that must succeed.
pub fn shell(host: &Namespace, script: &str) -> String {
    let ran = host.run(&["sh", "-ec", script]);
    assert_eq!(ran.code, 0, "`{script}` in {} failed: {}{}", host.0, ran.stdout, ran.stderr);
    ran.stdout
}

/// Returns true if a status lists a problem with `code`.
pub fn has_problem(status: &Value, code: &str) -> bool {
    status["problems"].as_array().is_some_and(|problems| problems.iter().any(|problem| problem["code"] == code))
}
