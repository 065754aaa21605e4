//! A kernel under test, with the means to look at it from outside.

use std::net::IpAddr;
use std::pin::Pin;
use std::process::Command;

use flatnet_core::object::{
    AddressKey, Dump, FdbKey, KernelState, Link, LinkKind, NeighbourKey, NextHop, Nexthop, NexthopId, Route, RouteKey,
    RouteVia, Sysctl, VxlanLink,
};
use flatnet_core::op::{Action, Object, Op, OpOutcome};
use flatnet_kernel::fake::FakeKernel;
use flatnet_kernel::wireguard::{Keyring, PrivateKey};
use flatnet_kernel::{Kernel, NetlinkKernel, Scope, Wake};
use flatnet_model::{IfName, Mac, Mtu, Vni, WireguardKey};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use serde_json::Value;

/// The environment variable that names the test which already runs in its namespaces.
const MARKER: &str = "FLATNET_TEST_IN_NAMESPACE";

/// Runs `body` in user, mount and network namespaces of its own: this starts the test binary again under unshare(1).
/// Where that is not permitted, the test fails and says so.
pub fn in_namespace(name: &str, body: impl FnOnce()) {
    if std::env::var(MARKER).as_deref() == Ok(name) {
        return body();
    }
    let output = Command::new("unshare")
        .args(["-Urnm", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--include-ignored", "--test-threads=1"])
        .env(MARKER, name)
        .output()
        .unwrap_or_else(|error| panic!("unshare(1) of util-linux is needed: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{name} failed in its namespaces, or these are not permitted here (unshare -Urnm true):\n{out}\n{err}"
    );
    println!("{out}");
}

/// The kernel under test.
pub enum World {
    Fake(FakeKernel),
    Linux(tokio::runtime::Runtime),
}

/// The kernel under test, as it is used within its runtime.
pub enum Subject {
    Fake(FakeKernel),
    Linux(NetlinkKernel),
}

impl World {
    pub fn fake() -> Self {
        Self::Fake(FakeKernel::default())
    }

    pub fn linux() -> Self {
        Self::Linux(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
    }

    pub fn run(self, case: impl for<'a> FnOnce(&'a Subject) -> Pin<Box<dyn Future<Output = ()> + 'a>>) {
        match self {
            Self::Fake(kernel) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(case(&Subject::Fake(kernel)));
            }
            Self::Linux(runtime) => runtime.block_on(async {
                shell("ip link set lo up");
                case(&Subject::Linux(NetlinkKernel::with_keys(None, keyring()).unwrap())).await;
            }),
        }
    }
}

impl Subject {
    pub async fn apply(&self, ops: &[Op]) -> Vec<OpOutcome> {
        let outcomes = match self {
            Self::Fake(kernel) => kernel.apply(ops).await,
            Self::Linux(kernel) => kernel.apply(ops).await,
        };
        assert_eq!(outcomes.len(), ops.len());
        outcomes
    }

    /// Carries out `ops`, all of which must be done.
    pub async fn done(&self, ops: &[Op]) {
        for (op, outcome) in ops.iter().zip(self.apply(ops).await) {
            assert_eq!(outcome, OpOutcome::Done, "{op:?}");
        }
    }

    /// Carries out `op`, which must be refused with `errno`.
    pub async fn refused(&self, op: Op, errno: i32) {
        match self.apply(std::slice::from_ref(&op)).await.as_slice() {
            [OpOutcome::Failed(error)] => assert_eq!(error.errno, Some(errno), "{error}"),
            other => panic!("{op:?}: {other:?}"),
        }
    }

    pub async fn look_whole(&self, scope: &Scope) -> Dump {
        match self {
            Self::Fake(kernel) => kernel.dump(scope).await.unwrap(),
            Self::Linux(kernel) => kernel.dump(scope).await.unwrap(),
        }
    }

    pub async fn look(&self, scope: &Scope) -> Dump {
        let mut dump = self.look_whole(scope).await;
        // The firewall has its own suite.
        dump.state.ruleset = None;
        dump
    }

    pub async fn state(&self) -> KernelState {
        self.look(&Scope::default()).await.state
    }

    pub fn wakes(&self) -> BoxStream<'static, Wake> {
        match self {
            Self::Fake(kernel) => kernel.events().unwrap().boxed(),
            Self::Linux(kernel) => kernel.events().unwrap().boxed(),
        }
    }

    /// Does something behind the agent's back: a change of the fake, or a shell command.
    pub fn behind<T>(&self, fake: impl FnOnce(&FakeKernel) -> T, command: &str) {
        match self {
            Self::Fake(kernel) => {
                fake(kernel);
            }
            Self::Linux(_) => {
                shell(command);
            }
        }
    }

    /// Returns what a foreign tool says of the real kernel; `None` for the fake.
    pub fn oracle(&self, command: &str) -> Option<Value> {
        match self {
            Self::Fake(_) => None,
            Self::Linux(_) => {
                let text = shell(command);
                Some(if text.trim().is_empty() {
                    Value::Array(Vec::new())
                } else {
                    serde_json::from_str(&text).unwrap()
                })
            }
        }
    }
}

/// Returns true if a wake is pending after giving the kernel `millis` to report.
pub async fn wakes_within(stream: &mut BoxStream<'static, Wake>, millis: u64) -> bool {
    let wait = std::time::Duration::from_millis(millis);
    let woken = tokio::time::timeout(wait, stream.next()).await.is_ok();
    while stream.next().now_or_never().is_some() {}
    woken
}

/// Returns a keyring with one key, whose public half is [`public_key`].
fn keyring() -> Keyring {
    let ring = Keyring::default();
    ring.add(PrivateKey::from_base64("SGb+ojrRNDuMePufwtIYhXzA//k6wF3R21tEBgKlzlM=").unwrap()).unwrap();
    ring
}

/// Returns the public half, as `wg pubkey` prints it, of the private key that the kernel under test knows.
pub fn public_key() -> WireguardKey {
    "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=".parse().unwrap()
}

pub fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn vxlan(vni: u32, local: &str) -> Link {
    Link {
        kind: LinkKind::Vxlan(VxlanLink { vni: Vni::new(vni).unwrap(), port: 8472, local: address(local) }),
        mtu: Mtu::new(1450).unwrap(),
        mac: Some(Mac::new([2, 0, 0, 0, 0, 1])),
        up: true,
    }
}

pub fn bridge() -> Link {
    Link { kind: LinkKind::Bridge, ..vxlan(1, "192.0.2.1") }
}

pub fn op(action: Action, object: Object) -> Op {
    Op { action, object }
}

pub fn create(object: Object) -> Op {
    op(Action::Create, object)
}

pub fn link(device: &str, link: Link) -> Object {
    Object::Link(name(device), link)
}

pub fn on_device(device: &str, net: &str) -> Object {
    Object::Address(AddressKey { device: name(device), address: net.parse().unwrap() })
}

pub fn neighbour(device: &str, to: &str, mac: Mac) -> Object {
    Object::Neighbour(NeighbourKey { device: name(device), address: address(to) }, mac.into())
}

pub fn fdb(device: &str, mac: Mac, to: &str) -> Object {
    Object::Fdb(FdbKey { device: name(device), mac }, address(to))
}

pub fn hop(device: &str, gateway: &str) -> NextHop {
    NextHop { gateway: address(gateway), device: name(device), onlink: true }
}

pub fn nexthop(id: u32, device: &str, gateway: &str) -> Object {
    Object::Nexthop(NexthopId(id), Nexthop { via: hop(device, gateway) })
}

pub fn key(to: &str) -> RouteKey {
    RouteKey::to_peer(to.parse().unwrap())
}

pub fn route(to: &str, via: RouteVia) -> Object {
    Object::Route(key(to), Route { via, source: None })
}

pub fn sysctl(path: &str, value: &str) -> Object {
    Object::Sysctl(Sysctl::new(path), value.to_owned())
}

pub fn mac(n: u32) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    Mac::new([2, 1, a, b, c, d])
}

/// Returns the `n`th peer over IPv4: subnet 10.x.y.0/24 behind its first address.
pub fn peer(device: &str, n: u32) -> [Object; 4] {
    let subnet = std::net::Ipv4Addr::from_bits(0x0a00_0000 + (n << 8));
    let underlay = std::net::Ipv4Addr::from_bits(0xac10_0000 + n);
    let id = NexthopId::of_subnet(subnet);
    [
        neighbour(device, &subnet.to_string(), mac(n)),
        fdb(device, mac(n), &underlay.to_string()),
        nexthop(id.0, device, &subnet.to_string()),
        route(&format!("{subnet}/24"), RouteVia::Object(id)),
    ]
}

/// Returns peers as the planner orders them: all neighbours and forwarding entries, then nexthops, then routes.
pub fn peers(device: &str, count: u32) -> Vec<Op> {
    let mut objects: Vec<Object> = (1..=count).flat_map(|n| peer(device, n)).collect();
    objects.sort_by_key(Object::kind);
    objects.into_iter().map(create).collect()
}

/// Returns the state that `ops`, which are all creations, make.
pub fn made(ops: &[Op]) -> KernelState {
    let mut state = KernelState::default();
    for op in ops {
        match op.object.clone() {
            Object::Link(name, link) => state.links.extend([(name, link)]),
            Object::Address(key) => state.addresses.extend([key]),
            Object::Neighbour(key, mac) => state.neighbours.extend([(key, mac)]),
            Object::Fdb(key, to) => state.fdb.extend([(key, to)]),
            Object::Nexthop(id, nexthop) => state.nexthops.extend([(id, nexthop)]),
            Object::Route(key, route) => state.routes.extend([(key, route)]),
            Object::Rule(rule) => state.rules.extend([rule]),
            other => panic!("{other:?}"),
        }
    }
    state
}
