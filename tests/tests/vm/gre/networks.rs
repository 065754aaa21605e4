//! Two networks of both families, told apart by key: over IPv4 a device each, over IPv6 one for both.

use std::net::IpAddr;

use flatnet_lab::subnet_env::SubnetEnv;
use flatnet_tests::vm::{Vm, VmLab};

/// The networks and their env files.
const NETWORKS: [(&str, &str); 2] = [("default", "subnet"), ("blue", "blue")];
const AGENTS: [u8; 2] = [1, 2];
const BY_HAND: u8 = 3;
/// The least number of the hand-made host's subnets in the network `blue`: it takes the first from there on that no
/// agent has drawn.
const ITS_NUMBER: u8 = 200;

pub fn two_by_key() {
    let lab = VmLab::up(3);
    lab.start_etcd(1);
    let endpoint = lab.endpoint();
    for (name, v4, v6) in [("default", "10.100.0.0/16", "fd00:100::/56"), ("blue", "10.200.0.0/16", "fd00:200::/56")] {
        lab.vm(1)
            .ok(&format!("agent network create {name} --cidr {v4} --cidr6 {v6} --backend gre --endpoint {endpoint}"));
    }
    let capture = lab.capture("ip proto 47 or ip6 proto 47");
    lab.each_of(&AGENTS, |vm| {
        vm.start("agent", &format!("agent join {endpoint} --network default --network blue --no-userspace"));
        vm.wait_converged(1);
        NETWORKS.iter().for_each(|(network, _)| attach(vm, network));
    });
    let key = key_of(lab.vm(1), "blue");
    assert_ne!(key, 0, "a second network has a key of its own");
    for (network, _) in NETWORKS {
        for (from, to) in [(1, 2), (2, 1)] {
            let (from, to) = (lab.vm(from), lab.vm(to));
            for address in subnet(to, network).container_addresses() {
                reaches(from, network, address, "");
                // As large as the network says it may be.
                reaches(from, network, address, &format!("-M do -s {}", payload(subnet(from, network).mtu, address)));
            }
        }
    }
    let seen = capture.stop();
    let keyed = format!("key={key:#x}");
    for (what, words) in
        [("IPv4", ["192.168.33.11 > 192.168.33.12", &keyed]), ("IPv6", ["fd33::11 > fd33::12", &keyed])]
    {
        assert!(words.iter().all(|word| seen.contains(word)), "no GRE with a key over {what}: {seen}");
    }
    for (from, to) in [("default", "blue"), ("blue", "default")] {
        for address in subnet(lab.vm(2), to).container_addresses() {
            let ran = lab.vm(1).sh(&format!("ip netns exec c{from} ping -nc 2 -W 1 {address}"));
            assert_ne!(ran.rc, 0, "{from} reaches {to}: {}", ran.output);
        }
    }
    let devices = lab.vm(1).ok("ip -o link show | grep -oE 'flat6?gre[0-9a-f]*' | sort");
    assert_eq!(devices, format!("flat6gre\nflatgre0\nflatgre{key:x}\n"));
    by_hand(&lab, key);
}

/// Makes a host with tunnels of its own, to the network with the key, over both families.
fn by_hand(lab: &VmLab, key: u32) {
    let vm = lab.vm(BY_HAND);
    let taken = AGENTS.map(|number| subnet(lab.vm(number), "blue"));
    let is_taken = |number: u8| {
        let (v4, v6) = (format!("10.200.{number}.0/24"), format!("fd00:200:0:{number:x}::/64"));
        taken.iter().any(|subnet| {
            subnet.v4.unwrap().trunc() == v4.parse().unwrap() || subnet.v6.unwrap().trunc() == v6.parse().unwrap()
        })
    };
    let number = (ITS_NUMBER..).find(|number| !is_taken(*number)).unwrap();
    let its_subnets = format!("10.200.{number}.0/24,fd00:200:0:{number:x}::/64");
    let its_addresses = [format!("10.200.{number}.2"), format!("fd00:200:0:{number:x}::2")];
    let mut script = String::from("set -e\n");
    for address in &its_addresses {
        script += &format!("ip addr add {address} dev lo\n");
    }
    for number in AGENTS {
        let peer = lab.vm(number);
        let theirs = subnet(peer, "blue");
        script += &format!(
            "ip tunnel add foo{number} mode gre local {} remote {} key {key}\nip link set foo{number} up\n\
             ip route add {} dev foo{number} src {}\n\
             ip -6 tunnel add bar{number} mode ip6gre local {} remote {} key {key} encaplimit none\nip link set bar{number} up\n\
             ip -6 route add {} dev bar{number} src {}\n",
            vm.address(),
            peer.address(),
            theirs.v4.unwrap().trunc(),
            its_addresses[0],
            vm.address_v6(),
            peer.address_v6(),
            theirs.v6.unwrap().trunc(),
            its_addresses[1],
        );
    }
    vm.ok(&script);
    // Nobody has named it: what it sends comes out nowhere.
    for address in subnet(lab.vm(1), "blue").container_addresses() {
        let ran = vm.sh(&format!("ping -nc 2 -W 1 {address}"));
        assert_ne!(ran.rc, 0, "a stranger is answered: {}", ran.output);
    }
    let counted = "nft list table inet flatnet | grep 'not a peer sending from its own subnet' | grep -cv 'packets 0 '";
    assert_eq!(lab.vm(1).ok(counted).trim(), "2", "{}", lab.vm(1).ok("nft list table inet flatnet"));
    let endpoint = lab.endpoint();
    lab.vm(1).ok(&format!(
        "agent network peer add blue --subnet {its_subnets} --public-ip {} --public-ipv6 {} --endpoint {endpoint}",
        vm.address(),
        vm.address_v6()
    ));
    for number in AGENTS {
        for address in &its_addresses {
            reaches(lab.vm(number), "blue", address.parse().unwrap(), "");
        }
        for address in subnet(lab.vm(number), "blue").container_addresses() {
            vm.wait_for(&format!("reaches {address}"), &format!("ping -nc 1 -W 2 {address}"));
        }
    }
}

fn reaches(vm: &Vm, network: &str, address: IpAddr, flags: &str) {
    vm.wait_for(
        &format!("its container in {network} reaches {address} {flags}"),
        &format!("ip netns exec c{network} ping -nc 1 -W 2 {flags} {address}"),
    );
}

/// Returns the bytes that ping may send in a packet of `mtu` bytes: less the headers of IP and of ICMP.
fn payload(mtu: u32, to: IpAddr) -> u32 {
    mtu - if to.is_ipv4() { 28 } else { 48 }
}

fn subnet(vm: &Vm, network: &str) -> SubnetEnv {
    let (_, file) = NETWORKS.iter().find(|(name, _)| *name == network).unwrap();
    let text = vm.wait_for("its env file is written", &format!("cat /run/flatnet/{file}.env"));
    SubnetEnv::parse(&text).unwrap_or_else(|| panic!("{}: {text}", vm.name))
}

/// Makes a container of the network on a cable of its own, `c<network>`.
fn attach(vm: &Vm, network: &str) {
    let found = subnet(vm, network);
    let (name, mtu) = (format!("c{network}"), found.mtu);
    let mut script = format!(
        "set -e\nip netns add {name}\nip -n {name} link set lo up\n\
         ip link add v{network} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}\n\
         ip link set v{network} up\nip -n {name} link set eth0 up\n"
    );
    for (gateway, address) in found.gateways().zip(found.container_addresses()) {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        script += &format!("ip addr add {gateway} dev v{network}{nodad}\n");
        script += &format!("ip -n {name} addr add {address}/{} dev eth0{nodad}\n", gateway.prefix_len());
        script += &format!("ip -n {name} route add default via {}\n", gateway.addr());
    }
    vm.ok(&script);
}

fn key_of(vm: &Vm, network: &str) -> u32 {
    let config = vm.ok(&format!("ETCDCTL_API=3 etcdctl get --print-value-only /flatnet/networks/{network}/config"));
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    u32::try_from(config["Backend"]["Key"].as_u64().unwrap()).unwrap()
}
