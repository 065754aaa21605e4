//! Kernel settings that make our devices and this host forward, and keep anybody beyond a device of ours from
//! configuring this host.

use std::collections::BTreeSet;

use flatnet_model::{IfName, IpFamily, Mtu};

use crate::facts::HostFacts;
use crate::object::Sysctl;

/// A device of ours, as far as its settings depend on it.
pub(super) struct Device {
    pub name: IfName,
    /// The families of the overlay that it carries.
    pub families: BTreeSet<IpFamily>,
    /// True if it leads to other hosts, false if it leads to containers.
    pub tunnel: bool,
    pub mtu: Mtu,
}

/// Returns the settings of one device. They are made for each device: a setting for all of a host's devices reaches
/// only those that exist at that moment, and a device made later has whatever the host's owner gives to new ones.
pub(super) fn of_device(facts: &HostFacts, device: &Device) -> Vec<(Sysctl, String)> {
    let Device { name, families, tunnel, mtu } = device;
    let mut settings = Vec::new();
    let v4 = |setting: &str, value: &str| (Sysctl::new(format!("net/ipv4/conf/{name}/{setting}")), value.to_owned());
    let v6 = |setting: &str, value: &str| (Sysctl::new(format!("net/ipv6/conf/{name}/{setting}")), value.to_owned());
    if families.contains(&IpFamily::V4) {
        settings.extend([v4("forwarding", "1"), v4("accept_redirects", "0")]);
    }
    // Below this MTU the kernel takes IPv6 and its settings from a device (net/ipv6/addrconf.c: `addrconf_notify`).
    if !facts.features.ipv6 || mtu.get() < Mtu::MIN_IPV6 {
        return settings;
    }
    settings.extend([v6("accept_ra", "0"), v6("accept_redirects", "0")]);
    match families.contains(&IpFamily::V6) {
        true => settings.extend([v6("disable_ipv6", "0"), v6("forwarding", "1")]),
        false if *tunnel => settings.push(v6("disable_ipv6", "1")),
        // For a bridge, its owner decides what else is to pass there.
        false => {}
    }
    settings
}

/// Returns the settings that this host needs once a network of `families` is programmed.
pub(super) fn of_host(facts: &HostFacts, families: &BTreeSet<IpFamily>) -> Vec<(Sysctl, String)> {
    let mut settings = Vec::new();
    if families.contains(&IpFamily::V4) {
        settings.push((Sysctl::new("net/ipv4/ip_forward"), "1".to_owned()));
    }
    if families.contains(&IpFamily::V6) {
        settings.push((Sysctl::new(Sysctl::FORWARD_IPV6), "1".to_owned()));
        settings.extend(facts.accept_ra.iter().map(|sysctl| (sysctl.clone(), Sysctl::ACCEPT_RA_ALWAYS.to_owned())));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{device, facts};

    fn settings(families: &[IpFamily], tunnel: bool, mtu: u32) -> Vec<String> {
        let families = families.iter().copied().collect();
        let device = Device { name: device("d"), families, tunnel, mtu: Mtu::new(mtu).unwrap() };
        let settings = of_device(&facts(), &device).into_iter();
        settings.map(|(sysctl, value)| format!("{}={value}", sysctl.path().replace("/conf/d/", " "))).collect()
    }

    #[test]
    fn each_device_forwards_what_it_carries_and_takes_nobodys_advice() {
        let v4 = ["net/ipv4 forwarding=1", "net/ipv4 accept_redirects=0"];
        let quiet = ["net/ipv6 accept_ra=0", "net/ipv6 accept_redirects=0"];
        let v6 = ["net/ipv6 disable_ipv6=0", "net/ipv6 forwarding=1"];
        assert_eq!(settings(&[IpFamily::V4], false, 1450), [v4, quiet].concat(), "a bridge may have IPv6 of its own");
        assert_eq!(settings(&IpFamily::BOTH, false, 1450), [v4, quiet, v6].concat());
        assert_eq!(settings(&[IpFamily::V6], true, 1430), [quiet, v6].concat());
        let off = [&v4[..], &quiet, &["net/ipv6 disable_ipv6=1"]].concat();
        assert_eq!(settings(&[IpFamily::V4], true, 1450), off);
        assert_eq!(settings(&[IpFamily::V4], true, 1279), v4, "the kernel gives it no IPv6");
    }
}
