//! A host for tests: files in a directory of its own, one network joined.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use flatnet_core::facts::{HostFacts, Interface};
use flatnet_core::object::{KernelState, Link, LinkKind, VxlanLink};
use flatnet_model::{IfName, Mtu, Vni};
use flatnet_proto::agent::v1::{Network, Status};

use super::host::{Files, Host, Places};

/// A host whose files go when it is dropped.
pub(super) struct Fixture {
    pub(super) host: Host,
    root: PathBuf,
}

impl Fixture {
    /// Makes a host with `files`: path and text.
    pub(super) fn with(files: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("flatnet-doctor-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        for (path, text) in files {
            let path = root.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let network = Network {
            name: "default".to_owned(),
            cidr: Some("10.100.0.0/16".to_owned()),
            subnet: Some("10.100.7.0/24".to_owned()),
            backend: "vxlan".to_owned(),
            mtu: 1450,
            ..Network::default()
        };
        let interface = |name: &str, mtu: u32, address: &str, ours| Interface {
            name: IfName::new(name).unwrap(),
            up: true,
            loopback: false,
            mtu: Mtu::new(mtu).ok(),
            addresses: vec![address.parse().unwrap()],
            ours,
        };
        let interfaces =
            vec![interface("eth1", 1500, "192.0.2.1/24", false), interface("flat.1", 1450, "10.100.7.0/32", true)];
        let tunnel = VxlanLink { vni: Vni::new(1).unwrap(), port: 8472, local: "192.0.2.1".parse().unwrap() };
        let link = Link { kind: LinkKind::Vxlan(tunnel), mtu: Mtu::new(1450).unwrap(), mac: None, up: true };
        let links = BTreeMap::from([(IfName::new("flat.1").unwrap(), link)]);
        let host = Host {
            files: Files::below(&root),
            places: Places { state_dir: "/var/lib/flatnet".into(), run_dir: "/run/flatnet".into() },
            facts: HostFacts { interfaces, ..HostFacts::default() },
            ours: KernelState { links, ..KernelState::default() },
            drops: Vec::new(),
            sightings: Vec::new(),
            detours: Vec::new(),
            devices: BTreeMap::new(),
            status: Some(Status { networks: vec![network], ..Status::default() }),
            now: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        };
        Self { host, root }
    }

    /// Gives one of the host's files these permissions.
    pub(super) fn chmod(&self, path: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.root.join(path.trim_start_matches('/'));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Returns the host's one network.
    pub(super) fn network(&mut self) -> &mut Network {
        &mut self.host.status.as_mut().unwrap().networks[0]
    }

    /// Adds a device that is not ours.
    pub(super) fn device(&mut self, name: &str, what: &str) {
        self.host.devices.insert(IfName::new(name).unwrap(), what.to_owned());
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}
