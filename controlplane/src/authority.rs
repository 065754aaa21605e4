//! The built-in certificate authority.

use std::path::Path;
use std::time::{Duration, SystemTime};

use flatnet_plane::identity::{
    CLOCK_SKEW, CSR_LIMIT, Identity, PkiError, SERVER_NAME, certificate_hash, certificate_of_pem, request_key_hash,
    sha256, timestamp,
};
use flatnet_plane::{clock, files};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// The lifetime of a node's certificate. It is renewed after a third; a fleet whose control plane is away for two days
/// goes on without anybody's help.
pub const NODE_LIFETIME: Duration = Duration::from_secs(72 * 3600);
/// The lifetime of a server's certificate, which is made anew at every start and daily.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// The lifetime of the authority's certificate: replacing it means that every node joins again.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// A certificate that was made, with its key if that was made too.
#[derive(Debug)]
pub struct Issued {
    /// The certificate, DER.
    pub certificate: CertificateDer<'static>,
    /// The time at which it ends.
    pub not_after: SystemTime,
}

/// The authority. Its key never leaves the directory it was made in.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("hash", &self.hash()).finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads `ca.pem` and `ca.key` in `dir`, made with the first call.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let (key_path, certificate_path) = (dir.join("ca.key"), dir.join("ca.pem"));
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| PkiError::Io { what, path, source }
        };
        if !certificate_path.exists() {
            let key = KeyPair::generate()?;
            let now = clock::now();
            let mut params = params(&[], now, AUTHORITY_LIFETIME, "Flatnet")?;
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let certificate = params.self_signed(&key)?;
            files::create_dir(dir, 0o700).map_err(io("create", dir))?;
            files::replace(&key_path, key.serialize_pem().as_bytes(), 0o600).map_err(io("write", &key_path))?;
            // The certificate is written last: it shows that the authority is complete.
            files::replace(&certificate_path, certificate.pem().as_bytes(), 0o644)
                .map_err(io("write", &certificate_path))?;
        }
        Self::read(&certificate_path, &key_path)
    }

    /// Reads an authority that somebody else made, such as the user's own intermediate. Whoever joins trusts this
    /// certificate and none above it.
    pub fn read(certificate_path: &Path, key_path: &Path) -> Result<Self, PkiError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| PkiError::Io { what: "read", path, source }
        };
        let invalid = |what: &str| PkiError::Invalid(format!("{} {what}", certificate_path.display()));
        let pem = std::fs::read_to_string(certificate_path).map_err(io(certificate_path))?;
        let key = std::fs::read_to_string(key_path).map_err(io(key_path))?;
        let certificate = certificate_of_pem(&pem).ok_or_else(|| invalid("holds no certificate"))?;
        let key = KeyPair::from_pem(&key)
            .map_err(|_| PkiError::Invalid(format!("{} holds no private key", key_path.display())))?;
        let (not_after, key_info) = validity(&certificate).ok_or_else(|| invalid("cannot be read"))?;
        if key_info != key.subject_public_key_info() {
            return Err(PkiError::Invalid(format!(
                "{} is not the key of {}",
                key_path.display(),
                certificate_path.display()
            )));
        }
        if !may_sign(&certificate) {
            return Err(invalid("is not an authority's: it may not sign certificates"));
        }
        if not_after <= clock::now() {
            return Err(invalid("has ended"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { issuer, certificate, not_after })
    }

    /// Returns the authority's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns the time at which the authority's certificate ends.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Returns the hash that `--ca-hash` names.
    #[must_use]
    pub fn hash(&self) -> String {
        certificate_hash(&self.certificate)
    }

    /// Issues a certificate to the owner of the key of `csr`, which must be signed with that key; nothing else of the
    /// request counts.
    pub fn issue(&self, identity: &Identity, csr: &[u8], lifetime: Duration) -> Result<Issued, PkiError> {
        let invalid =
            |_| PkiError::Invalid("the certificate request cannot be read, or its signature is wrong".to_owned());
        if csr.len() > CSR_LIMIT {
            return Err(PkiError::Invalid(format!("the certificate request is longer than {CSR_LIMIT} bytes")));
        }
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr)).map_err(invalid)?;
        let issued = self.sign(identity, &request.public_key, lifetime)?;
        // A key of one kind signed with another kind's hash is written down as that other kind's, which nobody could
        // use.
        let written = validity(&issued.certificate).map(|(_, key)| sha256(&key));
        if written.is_none() || written != request_key_hash(csr) {
            return Err(PkiError::Invalid(
                "the certificate request's key and its signature are not of one kind: P-256 with SHA-256, P-384 with SHA-384, or Ed25519"
                    .to_owned(),
            ));
        }
        Ok(issued)
    }

    /// Issues a certificate and the key made for it.
    pub fn issue_with_key(
        &self,
        identity: &Identity,
        lifetime: Duration,
    ) -> Result<(Issued, PrivateKeyDer<'static>), PkiError> {
        let key = KeyPair::generate()?;
        let issued = self.sign(identity, &key, lifetime)?;
        Ok((issued, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }

    fn sign(&self, identity: &Identity, key: &impl PublicKeyData, lifetime: Duration) -> Result<Issued, PkiError> {
        let now = clock::now();
        let name = identity.to_string();
        let mut names = vec![SanType::URI(name.as_str().try_into()?)];
        if *identity == Identity::Server {
            names.push(SanType::DnsName(SERVER_NAME.try_into()?));
        }
        let mut params = params(&names, now, lifetime, "Flatnet")?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match identity {
            Identity::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Identity::Node(_) | Identity::Admin(_) => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(Issued { certificate: certificate.der().clone(), not_after: now + lifetime })
    }
}

fn params(
    names: &[SanType],
    now: SystemTime,
    lifetime: Duration,
    common_name: &str,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.subject_alt_names = names.to_vec();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}

/// Returns true if a certificate is an authority's (RFC 5280 §4.2.1.3 and §4.2.1.9).
fn may_sign(certificate: &[u8]) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let usage = parsed.key_usage().ok().flatten();
    parsed.is_ca() && usage.is_none_or(|usage| usage.value.key_cert_sign())
}

/// Returns the time at which a certificate ends, and its SubjectPublicKeyInfo.
fn validity(certificate: &[u8]) -> Option<(SystemTime, Vec<u8>)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some((timestamp(parsed.validity().not_after.timestamp()), parsed.public_key().raw.to_vec()))
}

#[cfg(test)]
mod tests;
