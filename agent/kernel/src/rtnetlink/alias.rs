//! The alias of a TUN device of ours, which records what the device is for: the kernel has no other place for that, and
//! the next run must know.

use std::net::Ipv4Addr;

use flatnet_core::object::{Datapath, GreLink, Link, LinkKind};
use flatnet_model::GreKey;

/// Writes the alias of a device. For a device that the kernel itself describes, it is the plain mark.
pub(crate) fn write(kind: &LinkKind) -> String {
    match kind {
        LinkKind::Gre(GreLink { key, local, datapath: Datapath::Userspace }) => {
            format!("{} gre key {key} local {local}", Link::ALIAS)
        }
        LinkKind::Gre6(Datapath::Userspace) => format!("{} gre6", Link::ALIAS),
        LinkKind::Gre(_) | LinkKind::Gre6(_) | LinkKind::Wireguard(_) | LinkKind::Vxlan(_) | LinkKind::Bridge => {
            Link::ALIAS.to_owned()
        }
    }
}

/// Reads an alias that [`write`] made; `None`: it belongs to no TUN device of ours.
pub(crate) fn read(alias: &str) -> Option<LinkKind> {
    let words: Vec<&str> = alias.split(' ').collect();
    match words.as_slice() {
        [Link::ALIAS, "gre6"] => Some(LinkKind::Gre6(Datapath::Userspace)),
        [Link::ALIAS, "gre", "key", key, "local", local] => {
            let (key, local) = (GreKey::new(key.parse().ok()?), local.parse::<Ipv4Addr>().ok()?);
            Some(LinkKind::Gre(GreLink { key, local, datapath: Datapath::Userspace }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let gre = |key| GreLink { key: GreKey::new(key), local: [192, 0, 2, 1].into(), datapath: Datapath::Userspace };
        for kind in [LinkKind::Gre(gre(0)), LinkKind::Gre(gre(u32::MAX)), LinkKind::Gre6(Datapath::Userspace)] {
            assert_eq!(read(&write(&kind)), Some(kind));
        }
        for bad in
            ["", "flatnet", "flatnet gre", "flatnet gre key x local 192.0.2.1", "flatnet gre key 1 local fd00::1"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
