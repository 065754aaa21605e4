//! How to reach an etcd.

use std::sync::Arc;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use crate::store::CALL_TIMEOUT;

/// etcd's client port when none is written (IANA: etcd-client).
const DEFAULT_PORT: u16 = 2379;

/// What etcd answers to a password while its authentication is off; Go's client then goes on without, and so do we.
const AUTH_NOT_ENABLED: &str = "authentication is not enabled";

/// How to reach an etcd.
#[derive(Clone, Default)]
pub struct EtcdOptions {
    /// `http(s)://host:port`, without a scheme http; at least one. The first is tried first.
    pub endpoints: Vec<String>,
    /// PEM of the CA that signed the servers' certificates; enough on its own.
    pub ca: Option<Vec<u8>>,
    /// PEM of the client's certificate and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// User and password.
    pub user: Option<(String, String)>,
    /// Reads all of it again, before every connection that is made.
    pub again: Option<Again>,
}

/// Reads the options again from where they came: files are replaced while a client runs.
#[derive(Clone)]
pub struct Again(Arc<dyn Fn() -> Result<EtcdOptions, String> + Send + Sync>);

impl Again {
    /// By `read`; it says why it cannot.
    pub fn new(read: impl Fn() -> Result<EtcdOptions, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    pub(super) fn options(&self) -> Result<EtcdOptions, String> {
        (self.0)()
    }
}

/// Options that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidOptions(pub String);

/// One server and how to speak with it.
pub(super) struct Endpoint {
    /// Scheme, host and port.
    pub(super) url: String,
    tls: Option<TlsOptions>,
}

impl EtcdOptions {
    pub(super) fn endpoints(&self) -> Result<Vec<Endpoint>, InvalidOptions> {
        if self.endpoints.is_empty() {
            return Err(InvalidOptions("no etcd endpoint is given".to_owned()));
        }
        self.endpoints.iter().map(|text| self.endpoint(text)).collect()
    }

    fn endpoint(&self, text: &str) -> Result<Endpoint, InvalidOptions> {
        let url = normalise(text)?;
        let tls = if url.starts_with("https://") { Some(self.tls(&url)?) } else { None };
        if tls.is_none() && (self.ca.is_some() || self.identity.is_some()) {
            return Err(InvalidOptions(format!("certificates are given but {url} is not encrypted: write https://")));
        }
        Ok(Endpoint { url, tls })
    }

    fn tls(&self, url: &str) -> Result<TlsOptions, InvalidOptions> {
        let Some(ca) = &self.ca else {
            return Err(InvalidOptions(format!("{url} needs the CA that signed the server's certificate")));
        };
        must_be_pem(ca, "CERTIFICATE", "the CA")?;
        if let Some((certificate, key)) = &self.identity {
            must_be_pem(certificate, "CERTIFICATE", "the client's certificate")?;
            must_be_pem(key, "PRIVATE KEY", "the client's key")?;
        }
        let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
        Ok(match &self.identity {
            Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
            None => tls,
        })
    }
}

/// Refuses what has no PEM block (RFC 7468) with a label that ends in `label`: later it would look as if no server answered.
fn must_be_pem(bytes: &[u8], label: &str, what: &str) -> Result<(), InvalidOptions> {
    let text = String::from_utf8_lossy(bytes);
    let begins = |line: &str| {
        line.strip_prefix("-----BEGIN ")
            .and_then(|rest| rest.trim_end().strip_suffix("-----"))
            .is_some_and(|found| found.ends_with(label))
    };
    if text.lines().any(begins) {
        return Ok(());
    }
    Err(InvalidOptions(format!("the file with {what} has no PEM block \"{label}\"")))
}

/// Scheme, host and port of an endpoint.
fn normalise(text: &str) -> Result<String, InvalidOptions> {
    let invalid = || {
        let text = flatnet_model::keys::excerpt(text);
        InvalidOptions(format!("{text:?} is not an etcd endpoint such as http://192.168.33.10:2379"))
    };
    let (scheme, rest) = text.trim().split_once("://").unwrap_or(("http", text.trim()));
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| invalid())?),
        _ => (rest, DEFAULT_PORT),
    };
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let valid = match in_brackets {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
        }
    };
    if !valid || port == 0 || !matches!(scheme, "http" | "https") {
        return Err(invalid());
    }
    Ok(format!("{scheme}://{host}:{port}"))
}

impl Endpoint {
    /// A client of this server alone. Without a user nothing is sent yet.
    pub(super) async fn connect(&self, user: Option<&(String, String)>) -> Result<Client, etcd_client::Error> {
        match Client::connect([&self.url], Some(self.connect_options(user))).await {
            Err(etcd_client::Error::GRpcStatus(status)) if status.message().contains(AUTH_NOT_ENABLED) => {
                Client::connect([&self.url], Some(self.connect_options(None))).await
            }
            result => result,
        }
    }

    fn connect_options(&self, user: Option<&(String, String)>) -> ConnectOptions {
        // No HTTP/2 pings: an etcd server drops a client that pings more often than every 5 s
        // (`--grpc-keepalive-min-time`). Calls have their deadline, and a quiet watch is probed (`watch.rs`).
        let options = ConnectOptions::new()
            .with_connect_timeout(CALL_TIMEOUT)
            // A member cut off from the majority answers no one rather than staying silent.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        let options = match user {
            Some((name, password)) => options.with_user(name, password),
            None => options,
        };
        match &self.tls {
            Some(tls) => options.with_tls(tls.clone()),
            None => options,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(endpoint: &str, ca: Option<&str>) -> Result<Vec<String>, InvalidOptions> {
        let options = EtcdOptions {
            endpoints: vec![endpoint.to_owned()],
            ca: ca.map(|ca| ca.as_bytes().to_vec()),
            ..EtcdOptions::default()
        };
        Ok(options.endpoints()?.into_iter().map(|endpoint| endpoint.url).collect())
    }

    #[test]
    fn an_endpoint_needs_neither_scheme_nor_port() {
        for (text, url) in [
            ("10.0.0.1", "http://10.0.0.1:2379"),
            ("http://etcd-1.example:2379/", "http://etcd-1.example:2379"),
            ("[fd00::1]:2380", "http://[fd00::1]:2380"),
            ("[fd00::1]", "http://[fd00::1]:2379"),
        ] {
            assert_eq!(connect(text, None).unwrap(), [url]);
        }
    }

    #[test]
    fn what_is_not_an_endpoint_is_refused() {
        for bad in ["", "http://", "ftp://x:1", "x:0", "x:70000", "x:y", "a b", "http://x/y", "fd00::1", "[x]", "u@h"] {
            assert!(connect(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn certificates_are_never_given_to_a_plain_connection_nor_missing_on_an_encrypted_one() {
        assert!(connect("http://x:1", Some("pem")).unwrap_err().to_string().contains("write https://"));
        assert!(connect("https://x:1", None).unwrap_err().to_string().contains("needs the CA"));
        assert!(connect("https://x:1", Some("-----BEGIN CERTIFICATE-----\nMA==\n")).is_ok());
        assert!(connect("https://x:1", Some("-----BEGIN CERTIFICATE REQUEST-----")).is_err());
        assert!(connect("https://x:1", Some("pem")).unwrap_err().to_string().contains("PEM"));
    }
}
