//! A whole overlay on one machine: hosts as network namespaces on an underlay bridge, a real control plane or etcd, one
//! real `agent join` process per host, and a container per host.
//!
//! Who owns what: one *supervisor* process owns everything. It is process 1 of a pid namespace of its own, with a
//! network, a mount and (for those who are not root) a user namespace. That is what makes the lab disappear whole. When
//! process 1 ends, by `lab down`, Ctrl-C or `kill -9`, the kernel kills every process of the pid namespace, whoever
//! started it. With the last process go the namespaces, devices, rules and the private `/run`. `PR_SET_PDEATHSIG` would
//! not do: it reaches direct children only, and it fires when the *thread* that forked ends.
//!
//! The wiring is done with the `ip` tool and kept as data ([`topology`]), so that it can be read, printed and repeated
//! by hand. Nothing outside the sandbox is touched except the lab's directory (a lock, a record, logs).
//!
//! The lab knows nothing of what agents do. It starts them as a user would and believes only pings.

pub mod command_line;
pub mod sandbox;
pub mod subnet_env;
pub mod topology;

pub mod cookbook;
pub mod demo;
pub mod directory;
pub mod down;
pub mod enter;
pub mod host_state;
pub mod launch;
pub mod measure;
pub mod ping;
pub mod processes;
pub mod progress;
pub mod render;
pub mod store;
pub mod supervisor;
pub mod tools;
pub mod up;
pub mod vm;

use flatnet_model::IpFamily;

pub use cookbook::cookbook;
pub use demo::demo;
pub use directory::default_directory;
pub use down::down;
pub use enter::enter;
pub use up::up;

/// The plan that a lab is built from.
#[derive(Clone, Debug)]
pub struct LabPlan {
    /// The number of hosts, each with one container: 2 to [`LabPlan::MAX_HOSTS`].
    pub hosts: u8,
    /// The network's backend.
    pub backend: LabBackend,
    /// The store through which the agents meet.
    pub store: LabStore,
    /// The families of the overlay.
    pub overlay: Families,
    /// True if every wiring command is printed.
    pub verbose: bool,
}

impl LabPlan {
    /// The most hosts: more on one machine show nothing new, and pinging all pairs is quadratic.
    pub const MAX_HOSTS: u8 = 50;
    /// The overlay's IPv4 network, as in the README's first example.
    pub const NETWORK: &'static str = "10.100.0.0/16";
    /// The overlay's IPv6 network: unique local (RFC 4193), large enough for 256 subnets of /64.
    pub const NETWORK_V6: &'static str = "fd00:100::/56";
    /// The bridge that each agent owns for its containers.
    pub const BRIDGE: &'static str = "flbr0";
}

/// Backends that the lab can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LabBackend {
    /// VXLAN tunnels.
    Vxlan,
    /// WireGuard tunnels; carried by the agents where the kernel has no module.
    Wireguard,
    /// GRE tunnels: the kernel's, or in user space where it has none.
    Gre,
    /// Plain routes through the peers' underlay addresses.
    HostGw,
}

impl LabBackend {
    /// Returns the `Type` in the network's configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Wireguard => "wireguard",
            Self::Gre => "gre",
            Self::HostGw => "host-gw",
        }
    }
}

/// The stores that a lab can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LabStore {
    /// A control plane with its own store, beside this program or from `PATH`.
    Embedded,
    /// An etcd server from `PATH`.
    Etcd,
}

/// The address families that an underlay or overlay has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both.
    Dual,
}

impl Families {
    /// Returns the families, in the order in which they are shown.
    #[must_use]
    pub fn families(self) -> &'static [IpFamily] {
        match self {
            Self::V4 => &[IpFamily::V4],
            Self::V6 => &[IpFamily::V6],
            Self::Dual => &[IpFamily::V4, IpFamily::V6],
        }
    }

    /// Returns true if `family` is among them.
    #[must_use]
    pub fn has(self, family: IpFamily) -> bool {
        self.families().contains(&family)
    }
}
