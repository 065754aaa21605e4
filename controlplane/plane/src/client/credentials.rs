//! A client's credentials: its key, its certificate and the authority's, as files and as one side of a connection.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flatnet_model::NodeId;
use flatnet_proto::controlplane::v1 as proto;
use rcgen::KeyPair;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::files;
use crate::identity::{self, Holder, Identity, PkiError};
use crate::tls::{self, Trust};

/// The node's private key, in its state directory.
pub const KEY_FILE: &str = "controlplane.key";
/// Its certificate and the authority's.
pub const CERTIFICATE_FILE: &str = "controlplane.pem";

/// The reason why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file's content is not what it should be.
    #[error("{0}")]
    Invalid(String),
    /// No certificate or key could be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// The credentials a client shows.
pub struct Credentials {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    holder: Holder,
    /// The TLS configuration made from them, kept because reading a key is work and a client that is cut off connects a
    /// few times a second.
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("holder", &self.holder).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the node's credentials in `dir`; `None`: it has none, or a key without a certificate.
    pub fn read(dir: &Path) -> Result<Option<Self>, CredentialsError> {
        let Some(key) = read_key(dir)? else { return Ok(None) };
        let Some(pem) = read_text(&dir.join(CERTIFICATE_FILE))? else { return Ok(None) };
        // After a crash between the two writes the pair may not fit: joining again puts it right.
        Ok(Self::of(key, &pem).ok())
    }

    /// Reads an administrator's credentials, one file with all three parts.
    pub fn of_file(path: &Path) -> Result<Self, CredentialsError> {
        let io = |source| CredentialsError::Io { what: "read", path: path.to_owned(), source };
        let pem = std::fs::read_to_string(path).map_err(io)?;
        let invalid = || CredentialsError::Invalid(format!("{}: no private key in it", path.display()));
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| invalid())?;
        let key = KeyPair::try_from(&key).map_err(|_| invalid())?;
        Self::of(key, &pem)
    }

    fn of(key: KeyPair, pem: &str) -> Result<Self, CredentialsError> {
        let invalid = |what: &str| CredentialsError::Invalid(what.to_owned());
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let mut all = all.map_err(|_| invalid("not PEM"))?.into_iter();
        match (all.next(), all.next()) {
            (Some(certificate), Some(authority)) => Self::new(key, certificate, authority),
            _ => Err(invalid("a certificate and the authority's are needed")),
        }
    }

    fn new(
        key: KeyPair,
        certificate: CertificateDer<'static>,
        authority: CertificateDer<'static>,
    ) -> Result<Self, CredentialsError> {
        use rcgen::PublicKeyData;
        let invalid = |what: &str| CredentialsError::Invalid(what.to_owned());
        let holder = identity::holder(&certificate).ok_or_else(|| invalid("the certificate names nobody"))?;
        if identity::sha256(&key.subject_public_key_info()) != holder.key_hash {
            return Err(invalid("the certificate is for another key"));
        }
        let der = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = tls::client(&Trust::Authority(authority.clone()), Some((certificate.clone(), der)))
            .map_err(|error| CredentialsError::Invalid(error.to_string()))?;
        Ok(Self { key, certificate, authority, holder, config })
    }

    /// Makes credentials from `key` and the authority's answer to a request with it.
    pub(super) fn answered(key: KeyPair, reply: &proto::Credentials) -> Result<Self, CredentialsError> {
        let der = |bytes: &[u8]| CertificateDer::from(bytes.to_vec());
        Self::new(key, der(&reply.certificate), der(&reply.authority))
    }

    /// Makes credentials from the same key and a new certificate.
    pub(super) fn renewed(&self, reply: &proto::Credentials) -> Result<Self, CredentialsError> {
        let der = self.key.serialize_der();
        let key = KeyPair::try_from(&PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der))).map_err(PkiError::from)?;
        Self::answered(key, reply)
    }

    /// Keeps the certificates beside the key.
    pub(super) fn write(&self, dir: &Path) -> Result<(), CredentialsError> {
        let path = dir.join(CERTIFICATE_FILE);
        let pem = identity::certificate_pem(&self.certificate) + &identity::certificate_pem(&self.authority);
        files::replace(&path, pem.as_bytes(), 0o600).map_err(|source| CredentialsError::Io {
            what: "write",
            path,
            source,
        })
    }

    /// Makes a request for a certificate for the same key, DER.
    pub(super) fn request(&self) -> Result<Vec<u8>, PkiError> {
        identity::request_for(&self.key)
    }

    /// Returns `sha256:…` of the authority's certificate.
    #[must_use]
    pub fn authority_hash(&self) -> String {
        identity::certificate_hash(&self.authority)
    }

    /// Returns true if they are `node`'s.
    #[must_use]
    pub fn is_for(&self, node: NodeId) -> bool {
        self.holder.identity == Identity::Node(node)
    }

    /// Returns the holder of the certificate, with the time at which it ends.
    #[must_use]
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Returns the certificate.
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns the TLS configuration of a client that shows them.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

/// Returns the node's key in `dir`, made if there is none. It is there before anybody is asked to sign it, so that a
/// node that asks again after a crash asks with the same one.
pub(super) fn key(dir: &Path) -> Result<KeyPair, CredentialsError> {
    if let Some(key) = read_key(dir)? {
        return Ok(key);
    }
    let key = KeyPair::generate().map_err(PkiError::from)?;
    let path = dir.join(KEY_FILE);
    files::replace(&path, key.serialize_pem().as_bytes(), 0o600).map_err(|source| CredentialsError::Io {
        what: "write",
        path,
        source,
    })?;
    Ok(key)
}

fn read_key(dir: &Path) -> Result<Option<KeyPair>, CredentialsError> {
    let path = dir.join(KEY_FILE);
    let Some(pem) = read_text(&path)? else { return Ok(None) };
    let key = KeyPair::from_pem(&pem);
    key.map(Some).map_err(|_| CredentialsError::Invalid(format!("{} holds no private key", path.display())))
}

fn read_text(path: &Path) -> Result<Option<String>, CredentialsError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CredentialsError::Io { what: "read", path: path.to_owned(), source }),
    }
}
