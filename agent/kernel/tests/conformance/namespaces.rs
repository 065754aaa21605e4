//! Network namespaces, and the facts about the host inside one.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use flatnet_kernel::netns::{self, NamedNetns, Netns, NetnsError};
use flatnet_kernel::{Kernel, NetlinkKernel, Questions};
use flatnet_model::IpFamily;

use crate::world::{address, in_namespace, name, shell};

#[test]
fn a_named_namespace_is_seen_by_ip_netns_and_gone_when_dropped() {
    in_namespace("namespaces::a_named_namespace_is_seen_by_ip_netns_and_gone_when_dropped", || {
        shell("mount -t tmpfs tmpfs /run");
        let named = NamedNetns::create("host1").unwrap();
        named.netns().run(|| shell("ip link add only-here type bridge")).unwrap();
        assert!(shell("ip -n host1 -o link show only-here").contains("only-here"));
        let inside = named.netns().command(Command::new("ip").args(["-o", "link"])).unwrap().output().unwrap();
        assert!(String::from_utf8(inside.stdout).unwrap().contains("only-here"));
        assert!(!shell("ip -o link").contains("only-here"), "it was made outside");
        assert!(NamedNetns::create("host1").is_err(), "the name is taken");
        assert!(shell("ip -n host1 -o link show only-here").contains("only-here"), "the refusal unbound it");
        let path = named.path().to_owned();
        drop(named);
        assert!(!path.exists());
        NamedNetns::unbind(&path).unwrap();
        for bad in ["", "..", "a/b"] {
            assert!(NamedNetns::create(bad).is_err(), "{bad:?}");
        }
        let error = Netns::open(Path::new("/run/netns/none")).unwrap_err();
        assert!(error.to_string().contains("/run/netns/none"));
    });
}

/// Runs `enter` between fork and exec, where the process has one thread, and then `command` under sh.
#[expect(unsafe_code, reason = "pre_exec is the only way to run something in a process of one thread")]
fn after(enter: impl Fn() -> Result<(), NetnsError> + Send + Sync + 'static, user: u32, command: &str) -> Command {
    let mut sh = Command::new("sh");
    sh.args(["-ec", command]).current_dir("/").stdout(Stdio::piped()).stdin(Stdio::piped());
    if nix::unistd::geteuid().is_root() {
        sh.uid(user).gid(user);
    }
    // SAFETY: it allocates between fork and exec, which glibc's allocator allows; nothing else of this process is used.
    unsafe {
        sh.pre_exec(move || {
            // Having changed its user without exec, it could not write its own /proc/self/uid_map.
            nix::sys::prctl::set_dumpable(true)?;
            enter().map_err(|error| {
                eprintln!("{error}: {} ({})", error.source, error.hint);
                error.source
            })
        });
    }
    sh
}

#[test]
fn any_user_becomes_root_in_namespaces_of_its_own_and_can_be_followed_there() {
    for user in [0, 65_534] {
        let make = "id -u; ip link add flbr type bridge; ip netns add inner; ip netns list; echo made; read wait";
        let mut lab = after(netns::unshare_rootless, user, make).spawn().unwrap();
        let lines = BufReader::new(lab.stdout.take().unwrap()).lines().map(Result::unwrap);
        let made: Vec<String> = lines.take_while(|line| line != "made").collect();
        assert_eq!(made, ["0", "inner"], "as user {user}");
        let pid = lab.id();
        let look = "id -u; ip -br link show flbr; ip netns list";
        let output = after(move || netns::enter_process(pid), user, look).output().unwrap();
        drop(lab.stdin.take());
        lab.wait().unwrap();
        let seen = String::from_utf8(output.stdout).unwrap();
        assert!(seen.starts_with("0\nflbr") && seen.ends_with("inner\n"), "as user {user}: {seen}");
    }
    assert!(netns::unshare_rootless().unwrap_err().hint.contains("threads"), "a process with threads cannot");
}

#[test]
fn facts_tell_interfaces_routes_and_features() {
    in_namespace("namespaces::facts_tell_interfaces_routes_and_features", || {
        shell(
            "ip link set lo up; ip link add up0 type veth peer name up1; ip link set up1 up; ip link set up0 up mtu 9000
             ip addr add 192.0.2.1/24 dev up0; ip addr add 192.0.2.7/24 dev up0
             ip addr add 2001:db8::1/64 dev up0 nodad; ip addr add 2001:db8::2/64 dev up0 nodad preferred_lft 0
             ip route add default via 192.0.2.254 metric 100; ip route add 198.51.100.0/24 via 192.0.2.9 mtu 1400
             ip route add default via 192.0.2.253 dev up0 metric 5; ip route add unreachable 203.0.113.0/24
             ip link add gone type bridge",
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let asked =
            ["198.51.100.7", "8.8.8.8", "203.0.113.5", "192.0.2.1", "2001:db8:5::1", "2001:db8::77"].map(address);
        let facts = runtime
            .block_on(async { NetlinkKernel::new().unwrap().facts(&Questions::host(asked)).await.unwrap().host });
        let up = facts.interface(name("up0")).unwrap();
        assert_eq!((up.up, up.loopback, up.ours, up.mtu.unwrap().get()), (true, false, false, 9000));
        let addresses: Vec<String> = up.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.1/24", "192.0.2.7/24", "2001:db8::1/64", "2001:db8::2/64"], "deprecated last");
        assert!(facts.interface(name("lo")).unwrap().loopback && !facts.interface(name("gone")).unwrap().up);
        assert_eq!(facts.default_route, [(IpFamily::V4, name("up0"))]);
        let [limited, default, refused, own, none, link] = &facts.routes[..] else { panic!("{:?}", facts.routes) };
        let limited_route = limited.1.unwrap();
        assert_eq!((limited_route.device, limited_route.mtu.unwrap().get()), (name("up0"), 1400));
        assert_eq!((limited_route.source, default.1.unwrap().mtu), (Some(address("192.0.2.1")), None));
        assert_eq!((refused.1, none.1), (None, None));
        assert_eq!((own.1.unwrap().device, link.1.unwrap().device), (name("lo"), name("up0")));
        assert!(facts.features.nexthop_objects && facts.features.ipv6);
        assert!(facts.uplinks.is_empty(), "a veth may be a container's: {:?}", facts.uplinks);
        // Router advertisements count on an interface where a default route was learnt, as long as nobody forwards.
        assert_eq!(facts.accept_ra, []);
        let heard = || {
            let facts = runtime
                .block_on(async { NetlinkKernel::new().unwrap().facts(&Questions::host([])).await.unwrap().host });
            facts.accept_ra.iter().map(|setting| setting.path().to_owned()).collect::<Vec<_>>()
        };
        shell("ip -6 route add default via 2001:db8::9 dev up0 proto ra");
        assert_eq!(heard(), ["net/ipv6/conf/up0/accept_ra"]);
        shell("echo 0 > /proc/sys/net/ipv6/conf/up0/accept_ra");
        assert!(heard().is_empty(), "its owner wants none");
        shell("echo 1 > /proc/sys/net/ipv6/conf/up0/accept_ra; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        assert!(heard().is_empty(), "its owner made it a router");
    });
}
