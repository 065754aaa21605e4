//! Every parser of bytes that somebody else wrote, as functions of any bytes: for libFuzzer (`tests/fuzz`) and for the
//! short run of every test run. A target fails by panicking. Beside "no panic" each asserts what must be true of every
//! input: anything understood can be written, and reads back as the same.

use std::sync::LazyLock;

use clap::Command;
use flatnet_core::docker_opts::DockerOpts;
use flatnet_core::env_file::EnvFile;
use flatnet_kernel::fuzzing;
use flatnet_lab::subnet_env::SubnetEnv;
use flatnet_model::keys::NetworkKeys;
use flatnet_model::state::Change;
use flatnet_model::{NetworkName, SubnetKey};
use flatnet_plane::flannel::{decode_change, decode_config, decode_lease, encode_config, encode_lease};
use flatnet_plane::snapshot;
use flatnet_plane::store::{KeyValue, WatchEvent};

/// A parser with a name: that of its program in `tests/fuzz/fuzz_targets` and of its directory in `tests/fuzz/seeds`.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Kebab-free, as file names.
    pub name: &'static str,
    /// Panics if the parser does, or if what it understood is wrong.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 15] = [
    Target { name: "network_config", run: network_config },
    Target { name: "lease_value", run: lease_value },
    Target { name: "lease_key", run: lease_key },
    Target { name: "snapshot_file", run: snapshot_file },
    Target { name: "config_file", run: config_file },
    Target { name: "env_file", run: env_file },
    Target { name: "rtnetlink", run: rtnetlink },
    Target { name: "rtnetlink_notice", run: rtnetlink_notice },
    Target { name: "nfnetlink", run: nfnetlink },
    Target { name: "iptables_listing", run: iptables_listing },
    Target { name: "legacy_table", run: legacy_table },
    Target { name: "node_request", run: node_request },
    Target { name: "server_answer", run: server_answer },
    Target { name: "join_token", run: join_token },
    Target { name: "certificate", run: certificate },
];

fn keys() -> NetworkKeys {
    NetworkKeys::new(&NetworkName::default_network(), "/coreos.com/network")
}

fn key_value(key: &[u8], value: &[u8]) -> KeyValue {
    KeyValue { key: key.to_vec(), value: value.to_vec(), create_revision: 1, mod_revision: 2, lease: None }
}

/// Reads flannel's configuration of a network.
pub fn network_config(bytes: &[u8]) {
    let Ok((config, _)) = decode_config(bytes) else { return };
    for previous in [None, Some(bytes)] {
        let written = encode_config(&config, previous).expect("what was read can be written");
        let (again, _) =
            decode_config(&written).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&written)));
        assert_eq!(again, config, "{}", String::from_utf8_lossy(&written));
    }
}

/// Reads the value of a lease.
pub fn lease_value(bytes: &[u8]) {
    let subnets: SubnetKey = "10.0.40.0-24&fd00:0:0:28::-64".parse().expect("flannel's form");
    let Ok(lease) = decode_lease(subnets, &key_value(b"", bytes)) else { return };
    let written = encode_lease(&lease.publication(), lease.owner.as_ref());
    let again = decode_lease(subnets, &key_value(b"", &written))
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&written)));
    assert_eq!(again, lease, "{}", String::from_utf8_lossy(&written));
}

/// Reads the key of a lease, with a usable value, written and deleted.
pub fn lease_key(bytes: &[u8]) {
    let value = br#"{"PublicIP":"192.168.33.1","BackendType":"host-gw"}"#;
    let prefixed = [keys().subnets().as_bytes(), bytes].concat();
    for key in [bytes, &prefixed] {
        let put = decode_change(&keys(), &WatchEvent::Put(key_value(key, value)));
        let gone = decode_change(&keys(), &WatchEvent::Delete { key: key.to_vec(), revision: 3 });
        match (put, gone) {
            // One lease, one key: what is understood is spelt in one way only.
            (Some(Change::Lease(lease)), Some(Change::LeaseGone(subnets))) => {
                assert_eq!(lease.subnets, subnets);
                assert_eq!(keys().lease(&subnets).as_bytes(), key);
            }
            // What is shown to people is short, and nothing in it moves their cursor.
            (Some(Change::Rejected { key, reason }), Some(Change::RejectedGone { key: gone })) => {
                assert_eq!(key, gone);
                assert!(key.chars().count() <= 81 && reason.chars().count() <= 400, "{key:?} {reason:?}");
                assert!(!key.chars().chain(reason.chars()).any(char::is_control), "{key:?} {reason:?}");
            }
            (Some(Change::Config(_)), Some(Change::Config(_))) | (None, None) => {}
            (put, gone) => panic!("a key is one thing when it is written and another when it goes: {put:?} {gone:?}"),
        }
    }
}

/// Reads the snapshot on disk.
pub fn snapshot_file(bytes: &[u8]) {
    let Ok(view) = snapshot::decode(&keys(), bytes) else { return };
    let again = snapshot::decode(&keys(), &snapshot::encode(&keys(), &view)).expect("what was read can be written");
    assert_eq!((&again.state.leases, again.state.revision), (&view.state.leases, view.state.revision));
    assert_eq!((&again.usable_config, again.suspect.is_some()), (&view.usable_config, view.suspect.is_some()));
}

/// Reads the file of `agent join --config`.
pub fn config_file(bytes: &[u8]) {
    static AGENT: LazyLock<Command> = LazyLock::new(flatnet_agent::cli::command);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(command) = flatnet_agent::cli::config_file::apply(AGENT.clone(), "join", text) {
        let _ = command.try_get_matches_from(["agent", "join", "http://192.0.2.1:2379"]);
    }
}

/// Reads `subnet.env`, flannel's or ours.
pub fn env_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(env) = SubnetEnv::parse(text) {
        let _ = env.container_addresses().count();
    }
    let Ok(env) = EnvFile::parse(text) else { return };
    assert_eq!(EnvFile::parse(&env.to_string()).as_ref(), Ok(&env));
    let _ = env.subnets();
    let options = DockerOpts::default().render(&env).expect("the default key names a variable");
    // A shell sources it: nothing of the file's own text may be in it.
    assert!(!options.contains(['$', '`', ';', '&', '|', '\\', '(']), "{options}");
}

/// Reads answers of rtnetlink: datagrams, each after its length.
pub fn rtnetlink(bytes: &[u8]) {
    fuzzing::rtnetlink(bytes);
}

/// Reads a datagram of rtnetlink's notifications.
pub fn rtnetlink_notice(bytes: &[u8]) {
    fuzzing::rtnetlink_notice(bytes);
}

/// Reads answers of nf_tables: datagrams, each after its length.
pub fn nfnetlink(bytes: &[u8]) {
    fuzzing::nfnetlink(bytes);
}

/// Reads the output of `iptables -S`.
pub fn iptables_listing(bytes: &[u8]) {
    fuzzing::iptables_listing(&String::from_utf8_lossy(bytes));
}

/// Reads the entries of the older ip_tables.
pub fn legacy_table(bytes: &[u8]) {
    fuzzing::legacy_table(bytes);
}

/// Reads a message of a node or an administrator.
pub fn node_request(bytes: &[u8]) {
    flatnet_plane::fuzzing::requests(bytes);
}

/// Reads a message of a server.
pub fn server_answer(bytes: &[u8]) {
    flatnet_plane::fuzzing::answers(bytes);
}

/// Reads the token somebody joins with.
pub fn join_token(bytes: &[u8]) {
    flatnet_controlplane::fuzzing::token(bytes);
}

/// Reads a certificate, or a request for one.
pub fn certificate(bytes: &[u8]) {
    flatnet_plane::fuzzing::certificate(bytes);
}

#[cfg(test)]
mod tests;
