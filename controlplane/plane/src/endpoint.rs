//! Endpoints of stores, an etcd's server or a control plane's, as people write them. This is the one reader of them,
//! for everybody.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::str::FromStr;

/// The kind of server at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    /// An etcd server.
    Etcd,
    /// A control plane's server.
    ControlPlane,
}

/// An endpoint: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The kind of server there.
    pub kind: EndpointKind,
    /// The endpoint in one form, whatever was written: `http://host:2379`, `grpcs://host:7443`; IPv6 in brackets.
    pub url: String,
    /// Host name or address; of a link-local one with its interface (`fe80::1%eth0`).
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Text that is no endpoint, and the reason. A password in it is not shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("endpoint {text:?}: {why}")]
pub struct InvalidEndpoint {
    text: String,
    why: String,
}

impl InvalidEndpoint {
    /// The examples of endpoints shown with an error.
    pub const HINT: &str = "an endpoint looks like http://192.168.33.10:2379, https://etcd.example:2379, \
                            http://[2001:db8::1]:2379 or grpcs://192.168.33.10:7443";
}

/// etcd's registered client port (IANA: etcd-client).
const ETCD_PORT: u16 = 2379;
/// The port a control plane listens on by default.
const CONTROL_PLANE_PORT: u16 = 7443;
/// The longest name (RFC 1035 §3.1, as text) and label in it, in bytes.
const NAME_LEN: usize = 253;
const LABEL_LEN: usize = 63;

impl Endpoint {
    /// Returns true if it is spoken to by TLS.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        !self.url.starts_with("http://")
    }

    /// Returns its addresses, as the resolver has them now; empty if it has none. Blocks on the resolver.
    #[must_use]
    pub fn resolve(&self) -> Vec<IpAddr> {
        (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map(|all| all.map(|address| address.ip()).collect())
            .unwrap_or_default()
    }

    /// Returns host and port as the authority of a request, without a link-local address's interface, which is this
    /// host's affair.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.host.split_once('%') {
            Some((address, _)) => format!("[{address}]:{}", self.port),
            None => format!("{}:{}", in_brackets(&self.host), self.port),
        }
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    /// Reads one endpoint; without a scheme it is http.
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let text = text.trim();
        read(text).map_err(|why| InvalidEndpoint { text: flatnet_model::text::excerpt(&without_password(text)), why })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

fn read(text: &str) -> Result<Endpoint, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => ("http".to_owned(), text),
    };
    let (kind, default_port) = match scheme.as_str() {
        "http" | "https" => (EndpointKind::Etcd, ETCD_PORT),
        "grpcs" => (EndpointKind::ControlPlane, CONTROL_PLANE_PORT),
        "grpc" => return Err("a control plane is spoken to over TLS only: grpcs://".to_owned()),
        _ => return Err("the scheme must be http, https or grpcs".to_owned()),
    };
    if let Some(odd) = rest.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("there is a {odd:?} in it"));
    }
    let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |at| rest.split_at(at));
    if authority.contains('@') {
        return Err("user and password do not belong here: --etcd-username and --etcd-password-file".to_owned());
    }
    if path.bytes().any(|byte| byte != b'/') {
        return Err(format!("it has a path ({path}), and only host and port count; the keys' prefix is --etcd-prefix"));
    }
    let (host, port) = host_and_port(authority)?;
    let host = host_name(host)?;
    let port = match port {
        None | Some("") => default_port,
        Some(port) => port_number(port)?,
    };
    Ok(Endpoint { kind, url: format!("{scheme}://{}:{port}", in_brackets(&host)), host, port })
}

fn host_and_port(authority: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']').ok_or("there is a '[' without ']'")?;
        if v6(host).is_none() {
            return Err(format!("{host:?} in brackets is no IPv6 address"));
        }
        return match rest.strip_prefix(':') {
            None if rest.is_empty() => Ok((host, None)),
            None => Err(format!("after ']' comes ':' and the port, not {rest:?}")),
            port => Ok((host, port)),
        };
    }
    match authority.matches(':').count() {
        0 => Ok((authority, None)),
        1 => Ok(authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)))),
        _ if v6(authority).is_some() => Ok((authority, None)),
        _ => Err("there are several ':' in it; an IPv6 address with a port is written [2001:db8::1]:2379".to_owned()),
    }
}

/// Reads an IPv6 address and its interface.
fn v6(text: &str) -> Option<(Ipv6Addr, Option<&str>)> {
    match text.split_once('%') {
        // In a URL the percent sign is itself escaped (RFC 6874).
        Some((address, zone)) => {
            let zone = zone.strip_prefix("25").filter(|zone| !zone.is_empty()).unwrap_or(zone);
            flatnet_model::IfName::new(zone).ok()?;
            Some((address.parse().ok()?, Some(zone)))
        }
        None => Some((text.parse().ok()?, None)),
    }
}

fn host_name(host: &str) -> Result<String, String> {
    match v6(host) {
        Some((address, None)) if address.is_unicast_link_local() => {
            return Err(format!("a link-local address needs its interface: [{address}%eth0]"));
        }
        Some((address, Some(zone))) => return Ok(format!("{address}%{zone}")),
        Some((address, None)) => return Ok(address.to_string()),
        None => {}
    }
    if host.is_empty() {
        return Err("there is no host name or address".to_owned());
    }
    if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && host.parse::<Ipv4Addr>().is_err() {
        return Err(format!("{host} is no IPv4 address"));
    }
    // By RFC 952 no host name has underscores, but every one that a compose project makes does.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if let Some(odd) = host.chars().find(|c| !plain(*c)) {
        return Err(format!("there is a {odd:?} in the host name; an international one is written as xn--…"));
    }
    let labels = || host.strip_suffix('.').unwrap_or(host).split('.');
    if host.len() > NAME_LEN || labels().any(|label| label.is_empty() || label.len() > LABEL_LEN) {
        return Err("the host name has an empty part, or one that is too long".to_owned());
    }
    Ok(host.to_owned())
}

fn port_number(port: &str) -> Result<u16, String> {
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let number = port.parse().ok().filter(|number| digits && *number != 0);
    number.ok_or_else(|| format!("{port:?} is no port: a number in 1..=65535"))
}

fn in_brackets(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn without_password(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    match rest.rsplit_once('@') {
        Some((_, host)) if scheme.is_empty() => format!("…@{host}"),
        Some((_, host)) => format!("{scheme}://…@{host}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        for (text, url, host) in [
            ("10.0.0.1", "http://10.0.0.1:2379", "10.0.0.1"),
            (" 10.0.0.1:2380\n", "http://10.0.0.1:2380", "10.0.0.1"),
            ("http://etcd-1.example:2379/", "http://etcd-1.example:2379", "etcd-1.example"),
            ("https://etcd.example.", "https://etcd.example.:2379", "etcd.example."),
            ("http://proj_etcd_1:2379", "http://proj_etcd_1:2379", "proj_etcd_1"),
            ("tasks.my_stack_etcd", "http://tasks.my_stack_etcd:2379", "tasks.my_stack_etcd"),
            ("HTTPS://Etcd.Example:4001", "https://Etcd.Example:4001", "Etcd.Example"),
            ("Http://localhost", "http://localhost:2379", "localhost"),
            ("localhost:", "http://localhost:2379", "localhost"),
            ("2001:db8::1", "http://[2001:db8::1]:2379", "2001:db8::1"),
            ("::1", "http://[::1]:2379", "::1"),
            ("http://2001:DB8::1", "http://[2001:db8::1]:2379", "2001:db8::1"),
            ("[fd00::1]:2380", "http://[fd00::1]:2380", "fd00::1"),
            ("https://[fd00::1]/", "https://[fd00::1]:2379", "fd00::1"),
            ("http://[fe80::1%eth0]:2379", "http://[fe80::1%eth0]:2379", "fe80::1%eth0"),
            ("http://[fe80::1%25eth0]", "http://[fe80::1%eth0]:2379", "fe80::1%eth0"),
            ("fe80::1%eth0.100", "http://[fe80::1%eth0.100]:2379", "fe80::1%eth0.100"),
            ("grpcs://vm0", "grpcs://vm0:7443", "vm0"),
            ("GRPCS://[fd00::1]:1", "grpcs://[fd00::1]:1", "fd00::1"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((endpoint.url.as_str(), endpoint.host.as_str()), (url, host), "{text}");
            let again: Endpoint = url.parse().unwrap();
            assert_eq!(again, endpoint, "{text}: one form, read again");
        }
        let scoped: Endpoint = "fe80::1%eth0".parse().unwrap();
        assert_eq!((scoped.authority().as_str(), scoped.is_encrypted()), ("[fe80::1]:2379", false));
    }

    #[test]
    fn what_is_no_endpoint_says_what_is_wrong_with_it() {
        for (text, said) in [
            ("", "no host"),
            ("http://", "no host"),
            (":2379", "no host"),
            ("ftp://a", "the scheme must be"),
            ("grpc://a:7443", "grpcs://"),
            ("a:0", "is no port"),
            ("a:70000", "is no port"),
            ("a:etcd", "\"etcd\" is no port"),
            ("a:+80", "is no port"),
            ("http://a:2379/v3", "path (/v3)"),
            ("http://a/path", "path (/path)"),
            ("a?x=1", "path (?x=1)"),
            ("http://root:geheim@a:2379", "--etcd-password-file"),
            ("root:geheim@a", "--etcd-password-file"),
            ("[::1", "'[' without ']'"),
            ("[x]", "no IPv6 address"),
            ("[::1]x", "after ']'"),
            ("fe80::1", "needs its interface"),
            ("http://[fe80::1]:2379", "needs its interface"),
            ("a:1:2", "several ':'"),
            ("a b", "there is a ' '"),
            ("192.168.33.300", "no IPv4 address"),
            ("192.168.33", "no IPv4 address"),
            ("a..b", "empty part"),
            ("etcd.exämple", "'ä'"),
            ("$ETCD", "'$'"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
