//! The reference: equal kernel objects made by the kernel's own tools in batches, with `ip -batch`, `bridge -batch` and
//! `nft -f`.

use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use flatnet_tests::netns::Namespace;

use crate::host::World;
use crate::leases::{mac, public_ip, subnet};

/// The time the tools took.
pub struct Took {
    /// The time of `ip` and `bridge`.
    pub ip: Duration,
    /// The time of `nft`, for the same table with the same elements.
    pub nft: Duration,
}

/// Makes the objects that `leases` peers take on `host`, which has nothing yet. `ruleset` is what `nft list` printed of
/// an agent's table.
pub fn program(world: &World, host: &Namespace, leases: u32, ruleset: &str) -> Took {
    let file = |name: &str, text: &str| {
        let path = world.lab.directory.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let device = "flat.1";
    let local = world.lab.topology.host(1).v4;
    let mut first = format!(
        "link add {device} type vxlan id 1 local {local} dstport 8472 nolearning\n\
         link set {device} mtu 1450 up\naddress add 10.15.0.0/32 dev {device}\n"
    );
    let (mut forwarding, mut last) = (String::new(), String::new());
    for number in 0..leases {
        let (subnet, mac, outer) = (subnet(number), mac(number), public_ip(number));
        let id = number + 1;
        writeln!(first, "neigh add {subnet} lladdr {mac} dev {device} nud permanent protocol 91").unwrap();
        writeln!(forwarding, "fdb add {mac} dev {device} dst {outer} self permanent").unwrap();
        writeln!(last, "nexthop add id {id} via {subnet} dev {device} onlink protocol 91").unwrap();
        writeln!(last, "route add {subnet}/24 nhid {id} protocol 91").unwrap();
    }
    let commands = [
        ("ip", "-batch", file("first", &first)),
        ("bridge", "-batch", file("fdb", &forwarding)),
        ("ip", "-batch", file("last", &last)),
    ];
    let nft = file("ruleset", ruleset);
    let timed = |argv: &[&str]| {
        let mut command = host.command(argv);
        let began = Instant::now();
        let ran = flatnet_tests::netns::run(&mut command);
        assert_eq!(ran.code, 0, "{argv:?}: {}", ran.stderr);
        began.elapsed()
    };
    let ip = commands.iter().map(|(program, flag, path)| timed(&[program, flag, path])).sum();
    Took { ip, nft: timed(&["nft", "-f", &nft]) }
}
