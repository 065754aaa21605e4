//! A packet that must pass, and the test whether one match of an nftables rule (libnftables-json(5)) holds for it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

/// A packet of ours at a hook. Whatever is not given is not known: a match on it may hold or not.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    /// The description, for people.
    pub(super) what: String,
    /// The hook's name, as nftables has it.
    pub(super) hook: &'static str,
    /// The interface the packet came in by; empty: not known.
    pub(super) iif: String,
    /// The interface the packet leaves by; empty: not known.
    pub(super) oif: String,
    pub(super) source: IpAddr,
    pub(super) target: IpAddr,
    /// The UDP port, if the packet is known to be UDP.
    pub(super) udp_port: Option<u16>,
}

/// The answer to the question whether something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Yes,
    No,
    /// It depends on what is not known of the packet, or not understood of the rule.
    Perhaps,
}

impl From<bool> for Holds {
    fn from(truth: bool) -> Self {
        if truth { Self::Yes } else { Self::No }
    }
}

impl Holds {
    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Perhaps => Self::Perhaps,
        }
    }
}

impl Packet {
    /// Returns true if a family of tables (`ip`, `ip6`, `inet`) sees the packet.
    pub(super) fn is_seen_by(&self, family: &str) -> bool {
        matches!((family, self.source), ("inet", _) | ("ip", IpAddr::V4(_)) | ("ip6", IpAddr::V6(_)))
    }

    /// Tells whether the body of a `match` expression holds for the packet.
    pub(super) fn matches(&self, body: &Value) -> Holds {
        let (left, right) = (&body["left"], &body["right"]);
        let holds = match (left["meta"]["key"].as_str(), left["ct"]["key"].as_str(), &left["payload"]) {
            (Some("iifname" | "iif"), ..) => name(&self.iif, right),
            (Some("oifname" | "oif"), ..) => name(&self.oif, right),
            (Some("l4proto"), ..) if self.udp_port.is_some() => any(right, &|value| (value == "udp").into()),
            (Some("nfproto"), ..) => any(right, &|value| (value == self.family()).into()),
            // The first packet of a connection must pass too.
            (_, Some("state"), _) => any(right, &|value| (value == "new").into()),
            (_, _, payload) => self.payload(payload, right),
        };
        match body["op"].as_str() {
            Some("==" | "in") => holds,
            Some("!=") => holds.not(),
            _ => Holds::Perhaps,
        }
    }

    fn family(&self) -> &'static str {
        if self.source.is_ipv4() { "ipv4" } else { "ipv6" }
    }

    fn payload(&self, payload: &Value, right: &Value) -> Holds {
        let (protocol, field) = (payload["protocol"].as_str(), payload["field"].as_str());
        let address = match (protocol, field, self.source) {
            (Some("ip"), _, IpAddr::V6(_)) | (Some("ip6"), _, IpAddr::V4(_)) => return Holds::No,
            (Some("ip" | "ip6"), Some("saddr"), _) => self.source,
            (Some("ip" | "ip6"), Some("daddr"), _) => self.target,
            (Some("ip"), Some("protocol"), _) | (Some("ip6"), Some("nexthdr"), _) if self.udp_port.is_some() => {
                return any(right, &|value| (value == "udp").into());
            }
            (Some("tcp" | "icmp" | "icmpv6" | "sctp"), ..) if self.udp_port.is_some() => return Holds::No,
            (Some("udp" | "th"), Some("dport"), _) => {
                return self.udp_port.map_or(Holds::Perhaps, |port| port_in(port, right));
            }
            _ => return Holds::Perhaps,
        };
        any(right, &|value| within(address, value))
    }
}

/// Tells whether an element of a set, or the one value, satisfies `test`. A named set's elements are not looked at.
fn any(right: &Value, test: &dyn Fn(&Value) -> Holds) -> Holds {
    let elements = match (&right["set"], right) {
        (Value::Array(elements), _) | (_, Value::Array(elements)) => elements.as_slice(),
        (_, Value::String(text)) if text.starts_with('@') => return Holds::Perhaps,
        (_, value) => std::slice::from_ref(value),
    };
    let found = elements.iter().map(test);
    found.fold(Holds::No, |all, one| match (all, one) {
        (Holds::Yes, _) | (_, Holds::Yes) => Holds::Yes,
        (Holds::Perhaps, _) | (_, Holds::Perhaps) => Holds::Perhaps,
        (Holds::No, Holds::No) => Holds::No,
    })
}

/// Compares `name` with names, one of which may end in `*`.
fn name(name: &str, right: &Value) -> Holds {
    any(right, &|value| match value.as_str() {
        _ if name.is_empty() => Holds::Perhaps,
        Some(wanted) => match wanted.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning).into(),
            None => (name == wanted).into(),
        },
        None => Holds::Perhaps,
    })
}

fn port_in(port: u16, right: &Value) -> Holds {
    let port = u64::from(port);
    any(right, &|value| match (value.as_u64(), range(value)) {
        (Some(wanted), _) => (wanted == port).into(),
        (None, Some((first, last))) => match (first.as_u64(), last.as_u64()) {
            (Some(first), Some(last)) => (first..=last).contains(&port).into(),
            _ => Holds::Perhaps,
        },
        (None, None) => Holds::Perhaps,
    })
}

fn within(address: IpAddr, value: &Value) -> Holds {
    let parsed = |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    if let Some(wanted) = parsed(value) {
        return (wanted == address).into();
    }
    if let Some((first, last)) = range(value) {
        return match (parsed(first), parsed(last)) {
            (Some(first), Some(last)) => (first <= address && address <= last).into(),
            _ => Holds::Perhaps,
        };
    }
    prefix(value).map_or(Holds::Perhaps, |prefix| prefix.contains(&address).into())
}

fn range(value: &Value) -> Option<(&Value, &Value)> {
    match value["range"].as_array().map(Vec::as_slice) {
        Some([first, last]) => Some((first, last)),
        _ => None,
    }
}

/// Parses an address or prefix, as a rule's right side has it.
pub(super) fn prefix(value: &Value) -> Option<IpNet> {
    if let Some(text) = value.as_str() {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    }
    let prefix = &value["prefix"];
    let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
    IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()
}
