//! Kernel settings.

use std::fmt;

use flatnet_model::IfName;

/// A setting's path below `/proc/sys`, with `/` between its parts, because interface names may contain dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sysctl(String);

impl Sysctl {
    /// Wraps a path such as `net/ipv4/ip_forward`, which comes from this program's own code.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// The path of the setting that makes this host forward IPv6.
    pub const FORWARD_IPV6: &str = "net/ipv6/conf/all/forwarding";

    /// The value of [`Self::accept_ra`] with which router advertisements are accepted even if this host forwards.
    pub const ACCEPT_RA_ALWAYS: &str = "2";

    /// Returns true if a device whose setting for router advertisements has `value` hears none once this host forwards.
    #[must_use]
    pub fn is_deaf(value: &str) -> bool {
        value == "1"
    }

    /// Returns the setting for router advertisements on `device`: with 1 they are accepted while nothing is forwarded,
    /// with 2 always.
    #[must_use]
    pub fn accept_ra(device: IfName) -> Self {
        Self::new(format!("net/ipv6/conf/{device}/accept_ra"))
    }

    /// Returns the device that a setting below `net/ipv?/conf/` is for (`all` and `default` are not devices).
    #[must_use]
    pub fn device(&self) -> Option<IfName> {
        let rest = self.0.strip_prefix("net/ipv4/conf/").or_else(|| self.0.strip_prefix("net/ipv6/conf/"))?;
        let (name, _) = rest.split_once('/')?;
        IfName::new(name).ok().filter(|_| name != "all" && name != "default")
    }

    /// Returns the path below `/proc/sys`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As sysctl(8) writes it: dots between parts, and a slash for a dot inside one.
        let dotted: String = self
            .0
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect();
        f.write_str(&dotted)
    }
}
