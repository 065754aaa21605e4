//! The input of the checks: files of this host, and what was asked of the kernel and of the agent beforehand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flatnet_core::claims::Sighting;
use flatnet_core::drops::DropCount;
use flatnet_core::facts::HostFacts;
use flatnet_core::object::{KernelState, LinkKind, RouteVia};
use flatnet_core::way::Detour;
use flatnet_model::{IfName, IpFamily, SubnetKey};
use flatnet_proto::agent::v1::{Network, Status};
use ipnet::IpNet;

/// The directories in which the agent keeps its files.
#[derive(Clone, Debug)]
pub struct Places {
    /// The directory of `--state-dir`.
    pub state_dir: PathBuf,
    /// The directory of `--run-dir`.
    pub run_dir: PathBuf,
}

/// The files of a host.
#[derive(Clone, Debug)]
pub(super) struct Files(PathBuf);

impl Files {
    /// Returns the files below `root`: `/`, or a test's directory.
    pub(super) fn below(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// Returns the text of the file at the absolute `path`, if it can be read.
    pub(super) fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        std::fs::read_to_string(self.at(path.as_ref())).ok()
    }

    pub(super) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.at(path.as_ref()).exists()
    }

    /// Returns the permissions of a file, if it exists.
    pub(super) fn mode(&self, path: impl AsRef<Path>) -> Option<u32> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::symlink_metadata(self.at(path.as_ref())).ok().map(|metadata| metadata.permissions().mode())
    }

    /// Returns the texts of all files in a directory.
    pub(super) fn read_all(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.at(Path::new(directory))).into_iter().flatten().flatten();
        entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect()
    }

    /// Returns a kernel setting, without its newline.
    pub(super) fn setting(&self, path: &str) -> Option<String> {
        Some(self.read(format!("/proc/sys/{path}"))?.trim().to_owned())
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Everything that the checks look at.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) files: Files,
    pub(super) places: Places,
    /// The kernel's facts; empty if it could not be asked.
    pub(super) facts: HostFacts,
    /// The objects that are ours.
    pub(super) ours: KernelState,
    /// The devices that are not ours, with a word on what they are.
    pub(super) devices: BTreeMap<IfName, String>,
    /// The packets that our own rules have dropped.
    pub(super) drops: Vec<DropCount>,
    /// The kernel's memory of who sent the dropped packets.
    pub(super) sightings: Vec<Sighting>,
    /// The peers' packets that take another way than ours.
    pub(super) detours: Vec<Detour>,
    /// The agent's status, if it answers.
    pub(super) status: Option<Status>,
    pub(super) now: SystemTime,
}

impl Host {
    /// Returns the joined networks.
    pub(super) fn networks(&self) -> &[Network] {
        self.status.as_ref().map(|status| status.networks.as_slice()).unwrap_or_default()
    }

    /// Returns the ranges of all networks.
    pub(super) fn ranges(&self) -> Vec<IpNet> {
        self.prefixes(|network| [&network.cidr, &network.cidr6])
    }

    /// Returns what the networks take of their ranges on this host: what they hand out, as far as that is programmed,
    /// else the whole range.
    pub(super) fn taken(&self) -> Vec<IpNet> {
        let refused = self.ours.routes.iter().filter(|(_, route)| route.via == RouteVia::Unreachable);
        let refused: Vec<IpNet> = refused.map(|(key, _)| key.destination).collect();
        let of = |range: IpNet| {
            let inside: Vec<IpNet> = refused.iter().filter(|net| range.contains(*net)).copied().collect();
            if inside.is_empty() { vec![range] } else { inside }
        };
        self.ranges().into_iter().flat_map(of).collect()
    }

    /// Returns this host's subnets.
    pub(super) fn subnets(&self) -> Vec<IpNet> {
        self.prefixes(|network| [&network.subnet, &network.subnet6])
    }

    fn prefixes(&self, of: impl Fn(&Network) -> [&Option<String>; 2]) -> Vec<IpNet> {
        let texts = self.networks().iter().flat_map(of).flatten();
        texts.filter_map(|text| text.parse().ok()).collect()
    }

    /// Returns true if one of our devices is called `device`.
    pub(super) fn is_ours(&self, device: &str) -> bool {
        self.ours.links.keys().any(|name| name.as_str() == device)
    }

    /// Returns our VXLAN devices: name, VNI, UDP port, local underlay address.
    pub(super) fn tunnels(&self) -> impl Iterator<Item = (IfName, u32, u16, IpAddr)> {
        self.ours.links.iter().filter_map(|(name, link)| {
            let LinkKind::Vxlan(vxlan) = &link.kind else { return None };
            Some((*name, vxlan.vni.get(), vxlan.port, vxlan.local))
        })
    }

    /// Returns the interface that has `address`.
    pub(super) fn interface_with(&self, address: IpAddr) -> Option<IfName> {
        let has = |prefix: &IpNet| prefix.addr() == address;
        self.facts.interfaces.iter().find(|interface| interface.addresses.iter().any(has)).map(|found| found.name)
    }

    /// Returns true if `device` has an address in `subnets`.
    pub(super) fn is_in(&self, device: IfName, subnets: SubnetKey) -> bool {
        let found = self.facts.interfaces.iter().find(|interface| interface.name == device);
        let has = |address: &IpNet| subnets.iter().any(|subnet| subnet.contains(&address.addr()));
        found.is_some_and(|interface| interface.addresses.iter().any(has))
    }

    /// Returns true if any network has addresses of `family`.
    pub(super) fn uses(&self, family: IpFamily) -> bool {
        self.ranges().iter().any(|range| IpFamily::of(range.addr()) == family)
    }
}
