//! The stable codes of problems.

use std::fmt;

/// Declares the codes together with the table of all of them, so that no code can be missing from the table.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// The kind of a problem. Codes are stable and documented (`docs/operations.md`), and kebab-case in JSON:
        /// people alert on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ProblemCode {
            $($(#[$doc])* $variant,)*
        }

        impl ProblemCode {
            /// Every code, in alphabetical order of the texts.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the code as `status`, `/readyz` and the logs print it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

impl ProblemCode {
    /// Returns true if the problem is worth reporting but is no fault of this host: a stranger can cause it, or the
    /// host's owner intends it.
    #[must_use]
    pub fn is_note(self) -> bool {
        matches!(self, Self::BridgeInUse | Self::PacketsDropped | Self::SourceMismatch)
    }
}

codes! {
    /// This version does not implement the network's backend.
    BackendUnsupported = "backend-unsupported",
    /// A bridge of ours is no longer wanted, but stays because something is plugged into it.
    BridgeInUse = "bridge-in-use",
    /// The network's configuration in the store cannot be used.
    ConfigInvalid = "config-invalid",
    /// Two hosts publish one WireGuard key.
    DuplicateKey = "duplicate-key",
    /// Two peers publish one VTEP address.
    DuplicateMac = "duplicate-mac",
    /// A peer publishes this host's own address.
    DuplicatePublicIp = "duplicate-public-ip",
    /// An env file cannot be written.
    EnvFileUnwritable = "env-file-unwritable",
    /// A device that flanneld left holds the VNI we need.
    FlannelDevice = "flannel-device",
    /// A device, route or nexthop that is not ours is where ours belongs.
    ForeignObject = "foreign-object",
    /// Two joined networks have one GRE key.
    GreKeyConflict = "gre-key-conflict",
    /// A bug.
    Internal = "internal",
    /// The kernel refused an operation.
    KernelRefused = "kernel-refused",
    /// The kernel's state cannot be read.
    KernelUnreadable = "kernel-unreadable",
    /// A key in the store is no valid lease and is skipped.
    KeyRejected = "key-rejected",
    /// A valid lease contradicts an older one (overlap, duplicate) and is not programmed.
    LeaseRefused = "lease-refused",
    /// The store has no confirmed lease of this host: peers do not send to it, or soon will not.
    LeaseUnconfirmed = "lease-unconfirmed",
    /// The kernel lacks a module that the network needs, and user space cannot stand in for it.
    ModuleMissing = "module-missing",
    /// The configured MTU does not fit the underlay.
    MtuTooLarge = "mtu-too-large",
    /// The MTU is below 1280 bytes, which IPv6 needs.
    MtuTooSmall = "mtu-too-small",
    /// The configuration changed so that our subnet is outside the network.
    NetworkChanged = "network-changed",
    /// The network contains an address of this host, which would be cut off.
    NetworkCoversHost = "network-covers-host",
    /// Two joined networks overlap.
    NetworkOverlap = "network-overlap",
    /// The network is not in the store.
    NoConfig = "no-config",
    /// The lease has no subnet of a family the network has.
    NoSubnet = "no-subnet",
    /// Our lease is outside the network.
    OwnSubnetOutside = "own-subnet-outside",
    /// Our own rules dropped packets lately. This is a note: it may be a stranger's doing, and does not make the host
    /// degraded.
    PacketsDropped = "packets-dropped",
    /// A peer publishes an address that cannot be a host's.
    PeerBadAddress = "peer-bad-address",
    /// A peer publishes a VTEP address that is not a valid one.
    PeerBadMac = "peer-bad-mac",
    /// The kernel sends a peer's packets by another way than our route.
    PeerDetour = "peer-detour",
    /// A peer's underlay address is inside a network: its tunnel would run through itself.
    PeerInsideOverlay = "peer-inside-overlay",
    /// A peer publishes no address of a family we need.
    PeerNoAddress = "peer-no-address",
    /// A peer publishes no WireGuard key.
    PeerNoKey = "peer-no-key",
    /// A peer publishes no VTEP address.
    PeerNoVtep = "peer-no-vtep",
    /// Host-gw: a peer is not in this host's Layer 2 network.
    PeerOffLink = "peer-off-link",
    /// More peers have problems than are listed.
    PeersRefused = "peers-refused",
    /// Two joined networks listen on one UDP port.
    PortConflict = "port-conflict",
    /// The store has not confirmed yet that this node is the only one with its identity. If another one has it, its
    /// time is waited out.
    PresencePending = "presence-pending",
    /// Another node publishes our address.
    PublicIpConflict = "public-ip-conflict",
    /// Host-gw cannot send to a published address that is not the interface's.
    PublicIpHostGw = "public-ip-host-gw",
    /// The last view cannot be kept on disk.
    SnapshotUnwritable = "snapshot-unwritable",
    /// Packets that our rules dropped claimed to be a peer's, but came from elsewhere. This is a note, as
    /// `PacketsDropped` is.
    SourceMismatch = "source-mismatch",
    /// A container bridge has a subnet that is not this host's.
    StaleBridge = "stale-bridge",
    /// The store has not answered yet.
    StoreConnecting = "store-connecting",
    /// The store is there but refuses what it is asked: password, rights, quota, an alarm.
    StoreRefuses = "store-refuses",
    /// The store was wiped or restored from an old backup. Nothing is removed for one lease TTL, and live nodes claim
    /// what they hold.
    StoreSuspect = "store-suspect",
    /// The store does not answer.
    StoreUnreachable = "store-unreachable",
    /// `--subnet` asks for another subnet than this node holds.
    SubnetDiffers = "subnet-differs",
    /// Another node has our subnet.
    SubnetLost = "subnet-lost",
    /// The subnet asked for, or held, is not one that the network hands out.
    SubnetOutside = "subnet-outside",
    /// The subnet asked for is another node's.
    SubnetTaken = "subnet-taken",
    /// The subnet cannot be remembered on disk.
    SubnetUnwritable = "subnet-unwritable",
    /// No subnet is free.
    SubnetsExhausted = "subnets-exhausted",
    /// The network has a family that the underlay has no address of.
    UnderlayFamily = "underlay-family",
    /// No interface carries the tunnels.
    UnderlayMissing = "underlay-missing",
    /// The underlay's MTU is too small for anything.
    UnderlayMtu = "underlay-mtu",
    /// There is no guard and none can be loaded, so no tunnel is opened, and those that were open are closed.
    Unguarded = "unguarded",
    /// Two joined networks have one VNI.
    VniConflict = "vni-conflict",
    /// The file of this host's WireGuard key cannot be read or written, or others can read it.
    WireguardKeyFile = "wireguard-key-file",
    /// The WireGuard device has no key yet.
    WireguardNoKey = "wireguard-no-key",
    /// Neither the kernel nor this agent can carry WireGuard here.
    WireguardUnsupported = "wireguard-unsupported",
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codes_text_is_its_name_and_the_table_is_in_order() {
        for code in ProblemCode::ALL {
            let name = format!("{code:?}");
            assert!(name.eq_ignore_ascii_case(&code.as_str().replace('-', "")), "{name} is printed as {code}");
        }
        assert!(ProblemCode::ALL.is_sorted_by_key(|code| code.as_str()));
        assert!(ProblemCode::ALL.is_sorted());
    }
}
