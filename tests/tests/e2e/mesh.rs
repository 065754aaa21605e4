//! Three hosts, every backend and family: everybody reaches everybody, and the kernel has exactly what flannel's own
//! layout says, as foreign tools see it.

use flatnet_tests::Families;
use flatnet_tests::agent::Agent;
use flatnet_tests::lab::{Lab, Shape};
use flatnet_tests::netns::Namespace;
use flatnet_tests::suite::Test;
use flatnet_tests::{oracle, pinger};
use ipnet::IpNet;
use serde_json::Value;

use crate::for_each_shape;

pub fn tests() -> Vec<Test> {
    for_each_shape(3, "three_hosts_reach_each_other", three_hosts_reach_each_other)
}

fn three_hosts_reach_each_other(shape: &Shape) {
    let lab = Lab::new(shape);
    let agents = lab.join_all();
    lab.attach_all(&agents);
    pinger::assert_all_pairs(&lab, &agents);
    let leases = lab.etcd.subnets();
    assert_eq!(leases.len(), 3, "{leases:?}");
    for agent in &agents {
        let own = lab.topology.host(agent.number);
        let peers: Vec<&(String, Value)> = leases.iter().filter(|(_, lease)| !is_of(lease, &own.v4, &own.v6)).collect();
        assert_eq!(peers.len(), 2, "host{} has these peers: {peers:?}", agent.number);
        for family in ["v4", "v6"] {
            let wanted = match family {
                "v4" => shape.overlay != Families::V6,
                _ => shape.overlay != Families::V4,
            };
            if wanted && shape.backend == "vxlan" {
                assert_tunnel(&agent.host, family, &own_address(&lab, agent, family), &peers);
            } else if wanted && shape.backend == "gre" {
                assert_gre(&agent.host, family, &own_address(&lab, agent, family), &peers);
            } else if wanted && shape.backend == "wireguard" {
                assert_wireguard(agent, family, &peers);
            } else if wanted {
                assert_direct_routes(&agent.host, family, &peers);
            }
        }
        if shape.backend == "host-gw" {
            assert!(
                !oracle::own_links(&agent.host).iter().any(|name| name != "flbr0"),
                "host-gw needs no tunnel device"
            );
        }
        assert_eq!(agent.command(&["plan", "--json"]).code, 0);
        let log = agent.log();
        assert!(!log.contains("changed by somebody else"), "host{} did all of this by itself: {log}", agent.number);
    }
}

fn is_of(lease: &Value, v4: &std::net::Ipv4Addr, v6: &std::net::Ipv6Addr) -> bool {
    lease["PublicIP"] == v4.to_string() || lease["PublicIPv6"] == v6.to_string()
}

fn own_address(lab: &Lab, agent: &Agent, family: &str) -> String {
    let own = lab.topology.host(agent.number);
    if family == "v4" { own.v4.to_string() } else { own.v6.to_string() }
}

/// Returns the subnet of `family` in a lease's key.
fn subnet(key: &str, family: &str) -> IpNet {
    let (first, second) = key.split_once('&').unwrap_or((key, ""));
    let text = if family == "v4" { first } else { second };
    let (address, length) = text.rsplit_once('-').unwrap();
    let address = if family == "v4" { address.to_owned() } else { address.replace('-', ":") };
    format!("{address}/{length}").parse().unwrap_or_else(|error| panic!("{key}: {error}"))
}

fn assert_tunnel(host: &Namespace, family: &str, local: &str, peers: &[&(String, Value)]) {
    let (device, data, public_ip, local_key, mtu) = match family {
        "v4" => ("flat.1", "BackendData", "PublicIP", "local", 1450),
        _ => ("flat6.1", "BackendV6Data", "PublicIPv6", "local6", 1430),
    };
    let link = oracle::link(host, device).unwrap_or_else(|| panic!("{device} does not exist"));
    assert_eq!(link["linkinfo"]["info_kind"], "vxlan");
    let info = &link["linkinfo"]["info_data"];
    assert_eq!((&info["id"], &info["port"]), (&1.into(), &8472.into()), "{info}");
    assert_eq!(info["learning"], false, "{info}");
    assert_eq!(info[local_key], local, "{info}");
    assert_eq!(link["mtu"], mtu);
    assert!(link["flags"].as_array().unwrap().contains(&"UP".into()), "{link}");
    let (neighbours, fdb, routes) =
        (oracle::neighbours(host, device), oracle::fdb(host, device), oracle::own_routes(host));
    for (key, lease) in peers {
        let mac = lease[data]["VtepMAC"].as_str().unwrap();
        assert_eq!(fdb.get(mac).map(String::as_str), lease[public_ip].as_str(), "fdb {fdb:?}");
        let subnet = subnet(key, family);
        assert_eq!(neighbours.get(&subnet.addr().to_string()).map(String::as_str), Some(mac), "{neighbours:?}");
        let route = routes.get(&subnet.to_string()).unwrap_or_else(|| panic!("no route to {subnet}: {routes:?}"));
        assert_eq!(route["dev"], device, "{route}");
    }
    assert_eq!((neighbours.len(), fdb.len()), (peers.len(), peers.len()), "{neighbours:?} {fdb:?}");
}

/// Asserts what `wg` sees: each peer of the store with its key, its address and its subnet, and nobody else.
fn assert_wireguard(agent: &Agent, family: &str, peers: &[&(String, Value)]) {
    let (device, data, public_ip, port, mtu) = match family {
        "v4" => ("flatwg.51820", "BackendData", "PublicIP", 51820, 1440),
        _ => ("flatwg.51821", "BackendV6Data", "PublicIPv6", 51821, 1420),
    };
    let link = oracle::link(&agent.host, device).unwrap_or_else(|| panic!("{device} does not exist"));
    assert_eq!(link["mtu"], mtu);
    assert!(link["flags"].as_array().unwrap().contains(&"UP".into()), "{link}");
    let routes = oracle::own_routes(&agent.host);
    let shown = crate::wireguard::peers(agent, device);
    assert_eq!(shown.len(), peers.len(), "{shown:?}");
    for (key, lease) in peers {
        let public_key = lease[data]["PublicKey"].as_str().unwrap();
        assert_eq!(lease[data]["Port"], port, "{lease}");
        let subnet = subnet(key, family).to_string();
        let address = lease[public_ip].as_str().unwrap();
        let endpoint = if family == "v4" { format!("{address}:{port}") } else { format!("[{address}]:{port}") };
        assert_eq!(shown.get(public_key), Some(&(endpoint, subnet.clone())), "{shown:?}");
        let route = routes.get(&subnet).unwrap_or_else(|| panic!("no route to {subnet}: {routes:?}"));
        assert_eq!(route["dev"], device, "{route}");
    }
}

/// Asserts that there is one device, and to each peer a route that names the tunnel's ends, or in the kernel's IPv4
/// tunnel a neighbour that does.
fn assert_gre(host: &Namespace, family: &str, local: &str, peers: &[&(String, Value)]) {
    let (device, flag, kind, public_ip, mtu) = match family {
        "v4" => ("flatgre0", "-4", "ip", "PublicIP", 1476),
        _ => ("flat6gre", "-6", "ip6", "PublicIPv6", 1452),
    };
    let link = oracle::link(host, device).unwrap_or_else(|| panic!("{device} does not exist"));
    assert_eq!(link["mtu"], mtu);
    assert!(link["flags"].as_array().unwrap().contains(&"UP".into()), "{link}");
    let by_neighbour = link["linkinfo"]["info_kind"] == "gre";
    let neighbours = oracle::neighbours(host, device);
    // As text: `ip -j` says `dst` of the route and of the tunnel under one name.
    let routes = host.ok(&format!("ip {flag} route show dev {device} proto {}", oracle::PROTOCOL));
    for (key, lease) in peers {
        assert_eq!(lease["BackendType"], "gre", "{lease}");
        let (subnet, outer) = (subnet(key, family), lease[public_ip].as_str().unwrap());
        let route = routes.lines().find(|line| line.starts_with(&format!("{subnet} ")));
        let route = route.unwrap_or_else(|| panic!("no route to {subnet}: {routes}"));
        if by_neighbour {
            assert_eq!(neighbours.get(&subnet.addr().to_string()).map(String::as_str), Some(outer), "{neighbours:?}");
        } else {
            assert!(route.contains(&format!("encap {kind} ")), "{route}");
            assert!(route.contains(&format!(" src {local} dst {outer} ")), "{route}");
        }
    }
    assert_eq!(routes.lines().count(), peers.len(), "{routes}");
}

fn assert_direct_routes(host: &Namespace, family: &str, peers: &[&(String, Value)]) {
    let routes = oracle::own_routes(host);
    for (key, lease) in peers {
        let subnet = subnet(key, family);
        let route = routes.get(&subnet.to_string()).unwrap_or_else(|| panic!("no route to {subnet}: {routes:?}"));
        let public_ip = &lease[if family == "v4" { "PublicIP" } else { "PublicIPv6" }];
        assert_eq!((&route["gateway"], &route["dev"]), (public_ip, &"eth0".into()), "{route}");
    }
}
