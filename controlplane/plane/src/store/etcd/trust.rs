//! The authorities that a client of etcd believes, and the certificate it shows. Files are read with the TLS library
//! before any server is spoken to. Otherwise only the far end would tell, if at all, what is wrong with one of our own.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use super::options::{File, InvalidOptions};

/// HTTP/2 in the handshake (RFC 9113).
const ALPN: &[u8] = b"h2";

/// The most blocks of a PEM file that are read: a system's whole list of authorities has a few hundred.
const BLOCKS: usize = 10_000;

/// Makes a client that believes `ca` and shows `identity`, a certificate (with what comes after it in the file) and its
/// key.
pub(super) fn client(ca: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<Arc<ClientConfig>, InvalidOptions> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let broken = |error: Error| InvalidOptions::new(error.to_string(), "");
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believed::new(ca, &provider)?));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let (chain, key) = own(certificate, key, &provider)?;
            builder.with_client_auth_cert(chain, key).map_err(broken)?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Returns the certificates in a file: those blocks that can be read.
fn certificates(pem: &[u8], file: File) -> Result<Vec<CertificateDer<'static>>, InvalidOptions> {
    must_be_pem(pem, "CERTIFICATE", file)?;
    let blocks = CertificateDer::pem_slice_iter(pem).take(BLOCKS).filter_map(Result::ok);
    let readable: Vec<_> = blocks.filter(|der| X509Certificate::from_der(der).is_ok()).collect();
    if readable.is_empty() {
        return Err(InvalidOptions::of(
            file,
            "none of its blocks is a certificate that can be read: it is cut off or damaged",
            "look at it: openssl x509 -in FILE -noout -text",
        ));
    }
    Ok(readable)
}

/// Returns our own certificate and key, tried out.
fn own(
    certificate: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), InvalidOptions> {
    let chain = certificates(certificate, File::Certificate)?;
    let first = chain.first().and_then(|der| X509Certificate::from_der(der).ok());
    if first.as_ref().is_some_and(|(_, x509)| x509.version() != X509Version::V3) {
        return Err(InvalidOptions::of(
            File::Certificate,
            "the certificate is of X.509 version 1, which TLS libraries have given up",
            "sign it again with extensions, which makes it version 3: printf 'basicConstraints=CA:FALSE\\nextendedKeyUsage=clientAuth\\n' >ext; openssl x509 -req -in REQUEST.csr -CA CA.pem -CAkey CA.key -extfile ext -out FILE",
        ));
    }
    if first.is_some_and(|(_, x509)| !x509.validity().is_valid()) {
        // It is not refused: at boot the clock may be wrong.
        tracing::warn!("by this host's clock our certificate for etcd has expired, or is not valid yet");
    }
    if String::from_utf8_lossy(key).contains("ENCRYPTED") {
        return Err(InvalidOptions::of(
            File::Key,
            "the key is encrypted with a password, and there is nobody to ask for it",
            "write it without: openssl pkey -in FILE -out NEW.key, readable by root alone",
        ));
    }
    must_be_pem(key, "PRIVATE KEY", File::Key)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        InvalidOptions::of(
            File::Key,
            "the key cannot be read: it is cut off or damaged",
            "openssl pkey -in FILE -check -noout",
        )
    })?;
    let signing = provider.key_provider.load_private_key(key.clone_key()).map_err(|_| {
        InvalidOptions::of(
            File::Key,
            "keys of this kind or size are not known here: RSA from 2048 to 8192 bits, P-256, P-384, P-521 or Ed25519",
            "make another one and have it signed: openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout FILE -out REQUEST.csr",
        )
    })?;
    match CertifiedKey::new(chain.clone(), signing).keys_match() {
        Ok(()) => Ok((chain, key)),
        Err(Error::InconsistentKeys(_)) => Err(InvalidOptions::of(
            File::Key,
            "the key is not that of the certificate of --etcd-certfile",
            "these two print the same if they belong together: openssl pkey -in FILE -pubout; openssl x509 -in CERTIFICATE -noout -pubkey",
        )),
        Err(error) => Err(InvalidOptions::of(
            File::Certificate,
            format!("the certificate cannot be used: {error}"),
            "look at it: openssl x509 -in FILE -noout -text",
        )),
    }
}

/// Refuses what has no PEM block (RFC 7468) with a label that ends in `label`.
fn must_be_pem(bytes: &[u8], label: &str, file: File) -> Result<(), InvalidOptions> {
    let text = String::from_utf8_lossy(bytes);
    let begins = |line: &str| {
        line.strip_prefix("-----BEGIN ")
            .and_then(|rest| rest.trim_end().strip_suffix("-----"))
            .is_some_and(|found| found.ends_with(label))
    };
    if text.lines().any(begins) {
        return Ok(());
    }
    let der = matches!(bytes.first(), Some(0x30)).then_some("; it looks like DER");
    Err(InvalidOptions::of(
        file,
        format!("there is no PEM block \"{label}\" in the file{}", der.unwrap_or_default()),
        "certificates and keys are PEM files; from DER: openssl x509 -inform DER -in FILE -out NEW.pem (a key: openssl pkey)",
    ))
}

/// Believes what the authorities in the CA file have signed. Like Go's library it also believes any certificate that is
/// itself in that file: the way of a server that signed its own.
#[derive(Debug)]
struct Believed {
    /// The verifier with the authorities; `None`: nothing in the file can be an authority.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    certificates: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Believed {
    fn new(ca: &[u8], provider: &Arc<CryptoProvider>) -> Result<Self, InvalidOptions> {
        let certificates = certificates(ca, File::Ca)?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        let authorities =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build().ok();
        Ok(Self { authorities, certificates, provider: Arc::clone(provider) })
    }

    /// Verifies a certificate that is one of the file's: what remains is whose it is, and until when.
    fn verify_known(&self, shown: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
        verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
        let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, x509) = X509Certificate::from_der(shown).map_err(bad)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let validity = x509.validity();
        if now < validity.not_before.timestamp() {
            return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
        }
        if now > validity.not_after.timestamp() {
            return Err(Error::InvalidCertificate(CertificateError::Expired));
        }
        Ok(())
    }

    /// Returns true if any certificate of the file may sign others.
    fn has_authority(&self) -> bool {
        self.certificates.iter().any(|der| {
            X509Certificate::from_der(der).is_ok_and(|(_, x509)| x509.version() != X509Version::V3 || x509.is_ca())
        })
    }
}

impl ServerCertVerifier for Believed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.certificates.iter().any(|known| known == end_entity) {
            self.verify_known(end_entity, server_name, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        match &self.authorities {
            Some(authorities) if self.has_authority() => {
                authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            _ => Err(Error::General(
                "invalid peer certificate: the file of --etcd-cafile holds no authority's certificate (CA:TRUE), and not the one that the server shows".to_owned(),
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Made {
        certificate: String,
        key: String,
        der: CertificateDer<'static>,
    }

    /// Makes a certificate signed by itself, for `name`.
    fn made(name: &str) -> Made {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        Made { certificate: certificate.pem(), key: key.serialize_pem(), der: certificate.der().clone() }
    }

    fn believed(ca: &str) -> Believed {
        Believed::new(ca.as_bytes(), &Arc::new(rustls::crypto::ring::default_provider())).unwrap()
    }

    #[test]
    fn a_servers_own_certificate_is_believed_where_it_is_in_the_file_for_its_name_and_its_time() {
        let (etcd, other) = (made("proj_etcd_1"), made("proj_etcd_1"));
        let verify = |der: &CertificateDer<'_>, name: &str, seconds: u64| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
            believed(&etcd.certificate).verify_server_cert(der, &[], &name, &[], now).map(drop)
        };
        // 2026; rcgen's certificates last from 1975 to 4096.
        const NOW: u64 = 1_770_000_000;
        assert_eq!(verify(&etcd.der, "proj_etcd_1", NOW), Ok(()));
        assert!(verify(&etcd.der, "elsewhere", NOW).is_err());
        assert_eq!(verify(&etcd.der, "proj_etcd_1", 1), Err(Error::InvalidCertificate(CertificateError::NotValidYet)));
        let stranger = verify(&other.der, "proj_etcd_1", NOW).unwrap_err().to_string();
        assert!(stranger.contains("--etcd-cafile holds no authority"), "{stranger}");
    }

    #[test]
    fn our_own_files_are_judged_before_anybody_is_spoken_to() {
        let (one, other) = (made("one"), made("other"));
        let ca = one.certificate.as_bytes();
        let identity = |certificate: &str, key: &str| client(ca, Some((certificate.as_bytes(), key.as_bytes())));
        assert!(identity(&one.certificate, &one.key).is_ok());
        // Text around the blocks, other line ends, a broken block beside a good one.
        let bundle = format!(
            "# ours\r\n{}\n-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
            one.certificate.replace('\n', "\r\n")
        );
        assert!(client(bundle.as_bytes(), None).is_ok());
        let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMA==\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMA==\n-----END RSA PRIVATE KEY-----\n";
        let cut = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n";
        for (certificate, key, file, said) in [
            (one.certificate.as_str(), other.key.as_str(), File::Key, "not that of the certificate"),
            (&one.certificate, locked, File::Key, "encrypted"),
            (&one.certificate, old, File::Key, "encrypted"),
            (&one.certificate, cut, File::Key, "key"),
            (&one.certificate, &one.certificate, File::Key, "no PEM block \"PRIVATE KEY\""),
            (&one.key, &one.key, File::Certificate, "no PEM block \"CERTIFICATE\""),
            (
                "-----BEGIN CERTIFICATE REQUEST-----\nMA==\n-----END CERTIFICATE REQUEST-----",
                &one.key,
                File::Certificate,
                "no PEM block",
            ),
            (VERSION_1, &one.key, File::Certificate, "version 1"),
        ] {
            let error = identity(certificate, key).unwrap_err();
            assert_eq!(error.file, Some(file), "{error}");
            assert!(error.to_string().contains(said) && !error.hint.is_empty(), "{error}");
        }
        for (bad, said) in [
            ("", "no PEM block"),
            ("0\u{1}", "no PEM block"),
            ("-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n", "cut off"),
        ] {
            let error = client(bad.as_bytes(), None).unwrap_err();
            assert!(error.file == Some(File::Ca) && error.to_string().contains(said), "{error}");
        }
    }

    /// openssl req -x509 -newkey ec … | openssl x509 -req without -extfile, valid for a century.
    const VERSION_1: &str = "-----BEGIN CERTIFICATE-----\n\
         MIIBFjCBvQIULs7UUmZvmSHHK38yWzWgQDIe4qIwCgYIKoZIzj0EAwIwDTELMAkG\n\
         A1UEAwwCY2EwIBcNMjYxMTI5MDAxNTQ1WhgPMjEyNjExMDUwMDE1NDVaMA0xCzAJ\n\
         BgNVBAMMAnYxMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEcKU9Z77dPnLWX+rF\n\
         NMX1A39Nky0RMXO3DIPyC8Xsv7jAnaVuYaeDUdeMEBwM6kQ/aBBxfKbfwrh5vVnH\n\
         5wpjgDAKBggqhkjOPQQDAgNIADBFAiEAgG/ie6Unp4dy3r2/N8eop+Bigz2mL3yl\n\
         VwOLXtwq3uUCIESgylxxXwby0UV8nU2i4RR+u1r7LiZACsse5UkC0c0M\n\
         -----END CERTIFICATE-----\n";
}
