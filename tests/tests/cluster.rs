//! A real etcd of three members behind two real servers, each in a namespace of its own. Nodes come and go, and
//! everything that members are known for happens to them. Nobody ever has another's subnet, nothing acknowledged is
//! lost, and soon after each fault every view is the store.
//!
//! `make cluster` runs it for `CLUSTER_SECS` (300) seconds, `make test` through every fault once. The figures are in
//! docs/reliability.md.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "this is test code: a failed assumption fails the test, with its message; figures are its output"
)]

#[path = "cluster/fault.rs"]
mod fault;
#[path = "cluster/nodes.rs"]
mod nodes;

use std::collections::BTreeMap;
use std::fs::File;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatnet_plane::store::etcd::{EtcdOptions, EtcdStore};
use flatnet_tests::control_plane::ControlPlane;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::members::{Members, Side};
use flatnet_tests::netns::Namespace;
use flatnet_tests::suite::{self, Test};
use flatnet_tests::wait::pause;
use nix::sched::{CloneFlags, setns};
use tokio::runtime::{Builder, Runtime};

use crate::fault::{Cluster, Fault};
use crate::nodes::Load;

/// The number of nodes that come and go.
const NODES: u8 = 12;
/// The time a fault lasts: longer than an election (1 to 2 s) and than a silent member is waited for (3 s).
const LASTS: Duration = Duration::from_secs(5);
/// The pause between two faults.
const BETWEEN: Duration = Duration::from_millis(500);
/// The time within which every view must be the store after etcd answers again.
const HEALED: Duration = Duration::from_secs(5);
/// The time within which everybody must have joined at the start, on a loaded machine.
const START: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let name = "nothing_is_lost_or_given_twice_whatever_happens_to_three_members";
    suite::main(vec![Test::new(name, || in_its_own_thread(harm))])
}

/// Runs `body` in a thread that may move to another network namespace.
fn in_its_own_thread(body: impl FnOnce() + Send + 'static) {
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Moves this thread to `namespace`.
fn enter(namespace: &Namespace) {
    let file = File::open(format!("/run/netns/{}", namespace.0)).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
}

/// Makes a runtime for nodes whose threads are all in `namespace`.
fn runtime_in(namespace: &Namespace) -> Runtime {
    let namespace = namespace.clone();
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().on_thread_start(move || enter(&namespace)).build().unwrap()
}

/// The measurements of one kind of fault.
#[derive(Default)]
struct Measured {
    times: u32,
    /// The longest time until etcd answered, from when the fault was undone.
    answers: Duration,
    /// The longest time until every view was the store, from when the fault was undone.
    exact: Duration,
    /// The number of nodes that joined while it lasted.
    joins: u32,
}

fn harm() {
    let secs = std::env::var("CLUSTER_SECS").map_or(0, |text| text.parse().expect("CLUSTER_SECS is a number"));
    let mut lab = Lab::without_network(&Shape::vxlan(5));
    // The lab's own etcd is not used; the nodes and the test's own clients live in its namespace.
    lab.etcd.end_if_running();
    let place = Side { namespace: Namespace(lab.topology.store().namespace), address: lab.topology.store().v4 };
    enter(&place.namespace);
    let members = Members::start_with_a_small_disk(&lab, 1);
    let endpoints = members.endpoints();
    let flags = [&format!("--endpoints={}", endpoints.join(",")), "--store=etcd", "--init=10.50.0.0/16"];
    let first = ControlPlane::start_on(&lab, 4, &flags);
    let second = first.replica_on(&lab, 5);
    let runtime = runtime_in(&place.namespace);
    let options = EtcdOptions { endpoints, ..EtcdOptions::default() };
    let operator = Arc::new(EtcdStore::connect(options.clone()).unwrap());
    let load = runtime.block_on(async { Load::start(NODES, &[&first, &second], &lab.directory) });
    load.until_everybody_joined(START);
    let watching = load.look_for_two_owners(&runtime, EtcdStore::connect(options).unwrap());

    let server = |number: u8| Side { namespace: lab.host(number), address: lab.topology.host(number).v4 };
    let mut cluster = Cluster { members, place, servers: [server(4), server(5)] };
    let mut measured: BTreeMap<Fault, Measured> = BTreeMap::new();
    let began = Instant::now();
    for fault in Fault::ALL.into_iter().cycle() {
        if began.elapsed().as_secs() >= secs && measured.len() == Fault::ALL.len() {
            break;
        }
        cluster.strike(fault);
        let joins = load.joins();
        pause(LASTS);
        let joins = load.joins() - joins;
        cluster.members.heal();
        let (answers, exact) = load.until_exact(&runtime, &operator, HEALED);
        load.go_on();
        println!(
            "cluster: {:>5.1} s {fault}: {joins} joined meanwhile; undone, etcd answers after {} ms, every view is the store after {} ms",
            began.elapsed().as_secs_f64(),
            answers.as_millis(),
            exact.as_millis()
        );
        let of = measured.entry(fault).or_default();
        of.times += 1;
        of.answers = of.answers.max(answers);
        of.exact = of.exact.max(exact);
        of.joins += joins;
        cluster.members.wait_until_all_answer();
        if let Some(found) = watching.found() {
            panic!("{found}");
        }
        pause(BETWEEN);
    }
    for (fault, of) in &measured {
        println!(
            "figure: etcd of three: {fault}: {} times, {} nodes joined meanwhile; undone, etcd answers after at most {} ms, every view is the store after at most {} ms",
            of.times,
            of.joins,
            of.answers.as_millis(),
            of.exact.as_millis()
        );
    }
    println!(
        "figure: etcd of three: {} faults in {} s, {} joins, {} leaves: no subnet twice, nothing lost",
        measured.values().map(|of| of.times).sum::<u32>(),
        began.elapsed().as_secs(),
        load.joins(),
        load.leaves()
    );
    assert!(load.joins() > 50 && load.leaves() > 50, "there was hardly any load");
    for (fault, of) in &measured {
        // Where two members and a server speak with each other, the network goes on. On a busy machine, a fault that
        // was done only once may be over before everybody has gone over.
        assert!(!fault.leaves_a_majority() || of.joins > 0 || of.times == 1, "{fault}: nobody joined while it lasted");
    }
    runtime.shutdown_background();
}
