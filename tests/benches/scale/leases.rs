//! Synthetic leases as flannel writes them: /24s of 10.64.0.0/10, each with its own host and Ethernet address.

use std::net::Ipv4Addr;

use flatnet_model::WireguardKey;
use flatnet_plane::store::{Txn, Write};

/// The network's prefix.
pub const PREFIX: &str = "/coreos.com/network";
/// The most leases in one transaction: etcd refuses more than 128 operations.
pub const BATCH: u32 = 100;
/// Leases added and removed in one burst.
pub const BURST: u32 = 1_000;

/// Returns the network's configuration: room for 16,384 subnets.
pub fn config(backend: &str) -> String {
    format!(r#"{{"Network":"10.64.0.0/10","SubnetLen":24,"Backend":{{"Type":"{backend}"}}}}"#)
}

/// Returns subnet `number` of the synthetic ones, from 10.80.0.0.
pub fn subnet(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 80, 0, 0).to_bits() + (number << 8))
}

/// Returns the key of a subnet.
pub fn key(subnet: Ipv4Addr) -> String {
    format!("{PREFIX}/subnets/{subnet}-24")
}

/// Returns the host that synthetic lease `number` names.
pub fn public_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 1, 1).to_bits() + number)
}

/// Returns the Ethernet address that synthetic lease `number` publishes.
pub fn mac(number: u32) -> String {
    let [a, b, c, d] = number.to_be_bytes();
    format!("4e:f4:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Returns a lease's value, byte for byte as flannel writes it.
pub fn value(public_ip: Ipv4Addr, mac: &str) -> Vec<u8> {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#).into_bytes()
}

/// Returns the value of synthetic lease `number` under `backend`.
fn value_under(backend: &str, number: u32) -> Vec<u8> {
    let ip = public_ip(number);
    let data = match backend {
        "vxlan" => return value(ip, &mac(number)),
        "gre" => r#","BackendData":{"Key":0}"#.to_owned(),
        "wireguard" => {
            // Any 32 bytes are a key.
            let mut bytes = [0x5a; 32];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            format!(r#","BackendData":{{"PublicKey":"{}","Port":51820}}"#, WireguardKey::new(bytes).unwrap())
        }
        _ => String::new(),
    };
    format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"{backend}"{data}}}"#).into_bytes()
}

/// Transactions that write `count` leases under `backend`.
pub fn puts_under(backend: &str, count: u32) -> Vec<Txn> {
    batches(0, count, |number| Write::Put {
        key: key(subnet(number)),
        value: value_under(backend, number),
        lease: None,
    })
}

/// Transactions that write the leases `from..to`.
pub fn puts(from: u32, to: u32) -> Vec<Txn> {
    let put =
        |number| Write::Put { key: key(subnet(number)), value: value(public_ip(number), &mac(number)), lease: None };
    batches(from, to, put)
}

/// Transactions that remove the leases `from..to`.
pub fn deletes(from: u32, to: u32) -> Vec<Txn> {
    batches(from, to, |number| Write::Delete(key(subnet(number))))
}

fn batches(from: u32, to: u32, write: impl Fn(u32) -> Write) -> Vec<Txn> {
    let numbers: Vec<u32> = (from..to).collect();
    let chunks = numbers.chunks(usize::try_from(BATCH).unwrap());
    chunks.map(|chunk| Txn { when: Vec::new(), then: chunk.iter().copied().map(&write).collect() }).collect()
}
