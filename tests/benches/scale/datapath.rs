//! The datapath that packets get: containers across two hosts, against the bare hosts, alternating.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use flatnet_tests::Families;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::Namespace;
use flatnet_tests::wait::pause;
use serde_json::Value;

use crate::Plan;
use crate::host::netns;
use crate::table::{Figures, Table, short};

/// Round trips of the ping-pong.
const ROUNDS: usize = 20_000;
/// The ping-pong's port: any that is free.
const PORT: u16 = 7_007;

/// flannel's ratios to the bare underlay, overlay over underlay: backend, one stream, four, packets, latency.
const FLANNEL: [(&str, [&str; 4]); 2] = [
    ("vxlan", ["25.1 (0.82 of the underlay)", "15.6 (0.61)", "111 kpps (0.71)", "9.6 µs (1.66)"]),
    ("host-gw", ["30.2 (1.11 of the underlay)", "23.6 (0.89)", "142 kpps (0.83)", "8.3 µs (1.35)"]),
];

/// Measures streams, packets and latency under `backend`.
pub fn measure(backend: &'static str, families: Families, plan: &Plan, table: &mut Table) {
    let lab = Lab::new(&Shape { backend, overlay: families, underlay: families, ..Shape::vxlan(2) });
    let agents = lab.join_all();
    lab.attach_all(&agents);
    let v4 = families == Families::V4;
    let quoted = FLANNEL.iter().find(|quoted| v4 && quoted.0 == backend).map(|quoted| quoted.1).unwrap_or_default();
    let over = Way {
        from: lab.container(1),
        to: lab.container(2),
        target: agents[1].subnet().container_addresses().next().unwrap(),
    };
    let under = bare(&lab, families);
    let status = agents[0].status().unwrap();
    let carrier = status["networks"][0]["datapath"].as_str().unwrap_or_default().to_owned();
    let what = format!("{backend} ({carrier}, {})", if v4 { "IPv4" } else { "IPv6" });
    all(&what, plan, &over, &under, quoted, table);
}

/// Returns the way from host to host past any tunnel.
fn bare(lab: &Lab, families: Families) -> Way {
    let host = lab.topology.host(2);
    let target = if families == Families::V4 { host.v4.into() } else { host.v6.into() };
    Way { from: lab.host(1), to: lab.host(2), target }
}

/// Measures Debian's wireguard-go, set up by hand between two hosts: what a tunnel in user space can do elsewhere.
pub fn wireguard_go(plan: &Plan, table: &mut Table) {
    if ["wireguard-go", "wg"].iter().any(|tool| flatnet_lab::tools::find(tool).is_none()) {
        table.row("wireguard-go", "NOT MEASURED: it is not installed", "", "");
        return;
    }
    let lab = Lab::without_network(&Shape::vxlan(2));
    let shell = |number: u8, script: &str| {
        let ran = lab.host(number).run(&["sh", "-ec", script]);
        assert_eq!(ran.code, 0, "{script}: {}{}", ran.stdout, ran.stderr);
        ran.stdout.trim().to_owned()
    };
    let files = [1, 2].map(|number| lab.directory.join(format!("key{number}")).display().to_string());
    let keys = files.each_ref().map(|file| shell(1, &format!("wg genkey > {file}; wg pubkey < {file}")));
    for (number, other) in [(1, 2), (2, 1)] {
        let (file, peer) = (&files[usize::from(number) - 1], &keys[usize::from(other) - 1]);
        let endpoint = lab.topology.host(other).v4;
        shell(
            number,
            &format!(
                "wireguard-go wgo{number} >/dev/null 2>&1; wg set wgo{number} listen-port 51820 private-key {file} peer {peer} \
                 endpoint {endpoint}:51820 allowed-ips 10.99.0.{other}/32; ip addr add 10.99.0.{number}/24 dev wgo{number}; \
                 ip link set wgo{number} up mtu 1440"
            ),
        );
    }
    let over = Way { from: lab.host(1), to: lab.host(2), target: Ipv4Addr::new(10, 99, 0, 2).into() };
    all("wireguard-go, host to host (IPv4)", plan, &over, &bare(&lab, Families::V4), Default::default(), table);
    for number in 1..=2 {
        // It ends with its device.
        lab.host(number).ok(&format!("ip link del wgo{number}"));
    }
}

/// Takes every measure of one way.
fn all(backend: &str, plan: &Plan, over: &Way, under: &Way, quoted: [&str; 4], table: &mut Table) {
    flatnet_tests::pinger::assert_reaches(&over.from, over.target);
    if flatnet_lab::tools::find("iperf3").is_none() {
        table.row(format!("{backend}: streams and packets"), "NOT MEASURED: iperf3 is not installed", "", "");
    } else {
        let sum = |report: &Value| report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e9;
        let received = |report: &Value| {
            let sum = &report["end"]["sum"];
            let (packets, lost) = (sum["packets"].as_f64().unwrap(), sum["lost_packets"].as_f64().unwrap());
            (packets - lost) / sum["seconds"].as_f64().unwrap() / 1e3
        };
        #[expect(clippy::type_complexity, reason = "a table of three, used once")]
        let flags: [(&str, &[&str], &str, &dyn Fn(&Value) -> f64); 3] = [
            ("TCP, one stream", &["-P1"], "Gbit/s", &sum),
            ("TCP, four streams", &["-P4"], "Gbit/s", &sum),
            ("UDP of 64 bytes", &["-u", "-b0", "-l64"], "kpps delivered", &received),
        ];
        for ((what, flags, unit, read), quoted) in flags.into_iter().zip(quoted) {
            let run = |way: &Way| read(&way.iperf(flags));
            compare(&format!("{backend}: {what}"), unit, plan, over, under, run, quoted, table);
        }
    }
    let what = format!("{backend}: TCP ping-pong, median round trip");
    compare(&what, "µs", plan, over, under, Way::ping_pong, quoted[3], table);
}

#[expect(clippy::too_many_arguments, reason = "one measure, both ways, and where it goes")]
fn compare(
    what: &str,
    unit: &str,
    plan: &Plan,
    over: &Way,
    under: &Way,
    run: impl Fn(&Way) -> f64,
    quoted: &str,
    table: &mut Table,
) {
    let (mut overlay, mut underlay, mut ratio) = (Figures::default(), Figures::default(), Figures::default());
    for _ in 0..plan.runs {
        let (below, above) = (run(under), run(over));
        overlay.0.push(above);
        underlay.0.push(below);
        ratio.0.push(above / below);
    }
    let reference = format!("bare hosts {}; ratio {}", underlay.text(unit), short(ratio.median()));
    table.row(what, overlay.text(unit), reference, quoted);
}

/// A way through the network: its two ends.
struct Way {
    from: Namespace,
    to: Namespace,
    target: IpAddr,
}

impl Way {
    /// Runs iperf3 for two seconds; returns its report.
    fn iperf(&self, flags: &[&str]) -> Value {
        let mut server = Server::start(&self.to);
        let target = self.target.to_string();
        let base = ["iperf3", "-J", "-t2", "-c", &target];
        let argv: Vec<&str> = base.iter().chain(flags).copied().collect();
        let mut said = String::new();
        for _ in 0..20 {
            let ran = self.from.run(&argv);
            let report: Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
            // It may end well and have failed: its report says so.
            if ran.code == 0 && report["end"]["sum_received"].is_object() {
                return report;
            }
            said = format!("{}{}", ran.stdout, ran.stderr);
            // The server may not listen yet.
            pause(Duration::from_millis(50));
            server.check();
        }
        panic!("iperf3 to {target} does not work: {said}");
    }

    /// Returns the time of one byte there and back over TCP, in microseconds.
    fn ping_pong(&self) -> f64 {
        let any: IpAddr = match self.target {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let listener = netns(&self.to).run(|| TcpListener::bind((any, PORT)).unwrap()).unwrap();
        let target = (self.target, PORT);
        let mut client = netns(&self.from).run(|| TcpStream::connect(target).unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let mut micros = Figures::default();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut byte = [0];
                while server.read_exact(&mut byte).is_ok() && server.write_all(&byte).is_ok() {}
            });
            let mut byte = [1];
            for _ in 0..ROUNDS {
                let began = Instant::now();
                client.write_all(&byte).unwrap();
                client.read_exact(&mut byte).unwrap();
                micros.0.push(began.elapsed().as_secs_f64() * 1e6);
            }
            client.shutdown(std::net::Shutdown::Both).unwrap();
        });
        micros.median()
    }
}

/// An iperf3 that serves one client.
struct Server(Child);

impl Server {
    fn start(host: &Namespace) -> Self {
        let mut command = host.command(&["iperf3", "-s", "-1"]);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn check(&mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "iperf3's server ended");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ended after its client, as a rule.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
