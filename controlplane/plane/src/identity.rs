//! Identities: the names in certificates, requests for certificates, and their texts.
//!
//! A certificate names its holder by one URI (as SPIFFE ids do): `spiffe://flatnet/node/<id>`,
//! `spiffe://flatnet/admin/<name>`, `spiffe://flatnet/controlplane`. Servers also carry one DNS name, [`SERVER_NAME`].
//! Every client looks for them under it, whatever address they are reached at.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flatnet_model::NodeId;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;

/// The DNS name in every server's certificate. `.internal` is nobody's on the Internet (ICANN, 2024).
pub const SERVER_NAME: &str = "controlplane.flatnet.internal";
/// Certificates begin this much before now: clocks of hosts differ by minutes.
pub const CLOCK_SKEW: Duration = Duration::from_secs(600);
/// The largest request for a certificate taken, in bytes: one with a P-256 key has about 300.
pub const CSR_LIMIT: usize = 8 * 1024;

/// The holder of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A node.
    Node(NodeId),
    /// An administrator, by name.
    Admin(String),
    /// A control plane's server.
    Server,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => write!(f, "spiffe://flatnet/node/{node}"),
            Self::Admin(name) => write!(f, "spiffe://flatnet/admin/{name}"),
            Self::Server => f.write_str("spiffe://flatnet/controlplane"),
        }
    }
}

impl Identity {
    /// Reads the URI.
    fn parse(uri: &str) -> Option<Self> {
        let path = uri.strip_prefix("spiffe://flatnet/")?;
        match path.split_once('/') {
            Some(("node", id)) => id.parse().ok().map(Self::Node),
            Some(("admin", name)) if is_admin_name(name) => Some(Self::Admin(name.to_owned())),
            None if path == "controlplane" => Some(Self::Server),
            _ => None,
        }
    }
}

/// Returns true if an administrator can be called that: 1 to 63 of a-z, 0-9 and '-'.
#[must_use]
pub fn is_admin_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// The contents of a certificate that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The identity.
    pub identity: Identity,
    /// SHA-256 of the public key (SubjectPublicKeyInfo), hexadecimal.
    pub key_hash: String,
    /// The certificate's whole lifetime.
    pub lifetime: Duration,
    /// The time at which it ends.
    pub not_after: SystemTime,
}

impl Holder {
    /// Returns true if the certificate has ended.
    #[must_use]
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.not_after <= now
    }

    /// Returns true if it is time to renew it: after a third of its life.
    #[must_use]
    pub fn is_due(&self, now: SystemTime) -> bool {
        self.not_after.duration_since(now).unwrap_or(Duration::ZERO) < self.lifetime * 2 / 3
    }
}

/// The reason why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// `read`, `write`, …
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The certificate, key or request given is not what it should be.
    #[error("{0}")]
    Invalid(String),
    /// Making a key or signing failed.
    #[error("cannot make a certificate: {0}")]
    Making(#[from] rcgen::Error),
}

/// Makes a new key, and the request for a certificate for it.
pub fn new_request() -> Result<(KeyPair, Vec<u8>), PkiError> {
    let key = KeyPair::generate()?;
    let request = request_for(&key)?;
    Ok((key, request))
}

/// Makes the request for a certificate for `key`, DER.
pub fn request_for(key: &KeyPair) -> Result<Vec<u8>, PkiError> {
    let request = CertificateParams::new(Vec::new())?.serialize_request(key)?;
    Ok(request.der().to_vec())
}

/// Returns the first certificate in a PEM text.
#[must_use]
pub fn certificate_of_pem(pem: &str) -> Option<CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

/// Writes a certificate as PEM.
#[must_use]
pub fn certificate_pem(certificate: &[u8]) -> String {
    pem("CERTIFICATE", certificate)
}

/// Writes PEM as RFC 7468 has it: lines of 64 characters.
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

/// Returns `sha256:` and the hash of the certificate's DER, hexadecimal.
#[must_use]
pub fn certificate_hash(certificate: &[u8]) -> String {
    format!("sha256:{}", sha256(certificate))
}

/// Returns the SHA-256, hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the holder of a certificate that was verified already; `None`: it names nobody we know.
#[must_use]
pub fn holder(certificate: &[u8]) -> Option<Holder> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    // There must be exactly one: nobody is two.
    let identity = Identity::parse(uris.next()?)?;
    if uris.next().is_some() {
        return None;
    }
    let (begins, ends) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let whole = Duration::from_secs(u64::try_from(ends.saturating_sub(begins)).unwrap_or(0));
    Some(Holder {
        identity,
        key_hash: sha256(parsed.public_key().raw),
        lifetime: whole.saturating_sub(CLOCK_SKEW),
        not_after: timestamp(ends),
    })
}

/// Returns the hash of the key that a request is for, as in [`Holder::key_hash`].
#[must_use]
pub fn request_key_hash(csr: &[u8]) -> Option<String> {
    use x509_parser::prelude::FromDer;
    let (_, request) = x509_parser::certification_request::X509CertificationRequest::from_der(csr).ok()?;
    Some(sha256(request.certification_request_info.subject_pki.raw))
}

/// Returns the time that many seconds after 1970, as certificates count it.
#[must_use]
pub fn timestamp(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Returns the seconds since 1970.
#[must_use]
pub fn unix_seconds(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_strictly() {
        let node = Identity::Node(NodeId::new(1));
        assert_eq!(Identity::parse(&node.to_string()), Some(node));
        assert_eq!(Identity::parse("spiffe://flatnet/admin/ops-1"), Some(Identity::Admin("ops-1".to_owned())));
        for bad in [
            "spiffe://flatnet/node/1",
            "spiffe://other/admin/a",
            "spiffe://flatnet/admin/a/b",
            "spiffe://flatnet/admin/",
            "x",
        ] {
            assert_eq!(Identity::parse(bad), None, "{bad}");
        }
    }
}
