use std::path::PathBuf;

use flatnet_model::NodeId;
use flatnet_plane::identity::holder;

use super::*;

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("flatnet-pki-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

#[test]
fn an_authority_is_made_once_and_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = scratch("once");
    let first = Authority::open(&dir).unwrap().hash();
    assert_eq!(Authority::open(&dir).unwrap().hash(), first);
    let mode = |name: &str| std::fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca.key"), std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777), (0o600, 0o700));
    let other = scratch("other");
    Authority::open(&other).unwrap();
    std::fs::copy(other.join("ca.key"), dir.join("ca.key")).unwrap();
    assert!(Authority::open(&dir).is_err(), "another authority's key");
    std::fs::remove_dir_all(dir).unwrap();
    std::fs::remove_dir_all(other).unwrap();
}

/// Makes a root and an intermediate that it signed, as a company has them; returns certificate and key of the
/// intermediate.
fn of_a_company(dir: &Path, is_ca: IsCa, not_after: SystemTime) -> (PathBuf, PathBuf) {
    let made = |is_ca: IsCa, usages: Vec<KeyUsagePurpose>| {
        let mut params = params(&[], SystemTime::now(), SERVER_LIFETIME, "Example").unwrap();
        (params.is_ca, params.key_usages) = (is_ca, usages);
        params
    };
    let root_key = KeyPair::generate().unwrap();
    let root = made(IsCa::Ca(BasicConstraints::Unconstrained), vec![KeyUsagePurpose::KeyCertSign]);
    let root = Issuer::new(root, root_key);
    let usage = if is_ca == IsCa::NoCa { KeyUsagePurpose::DigitalSignature } else { KeyUsagePurpose::KeyCertSign };
    let (mut params, key) = (made(is_ca, vec![usage]), KeyPair::generate().unwrap());
    params.not_before = (not_after - SERVER_LIFETIME).into();
    params.not_after = not_after.into();
    let certificate = params.signed_by(&key, &root).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    let paths = (dir.join("their.pem"), dir.join("their.key"));
    std::fs::write(&paths.0, certificate.pem()).unwrap();
    std::fs::write(&paths.1, key.serialize_pem()).unwrap();
    paths
}

#[test]
fn an_authority_of_the_users_own_signs_and_what_is_none_is_refused() {
    let dir = scratch("theirs");
    let soon = SystemTime::now() + SERVER_LIFETIME;
    let ca = || IsCa::Ca(BasicConstraints::Constrained(0));
    let (certificate, key) = of_a_company(&dir, ca(), soon);
    let authority = Authority::read(&certificate, &key).unwrap();
    let (issued, _) = authority.issue_with_key(&Identity::Server, SERVER_LIFETIME).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.certificate).unwrap();
    let (_, theirs) = x509_parser::parse_x509_certificate(authority.certificate()).unwrap();
    assert_eq!(leaf.issuer(), theirs.subject());
    assert_ne!(theirs.issuer().to_string(), "");
    let why = |paths: (PathBuf, PathBuf)| Authority::read(&paths.0, &paths.1).unwrap_err().to_string();
    assert!(why(of_a_company(&dir, IsCa::NoCa, soon)).contains("may not sign"));
    assert!(why(of_a_company(&dir, ca(), SystemTime::now() - NODE_LIFETIME)).contains("has ended"));
    assert!(why((certificate.clone(), dir.join("none"))).contains("cannot read"));
    std::fs::write(&certificate, "no PEM").unwrap();
    assert!(why((certificate, key)).contains("no certificate"));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_certificate_says_who_the_authority_says_and_nothing_of_what_the_request_says() {
    let dir = scratch("names");
    let authority = Authority::open(&dir).unwrap();
    let key = KeyPair::generate().unwrap();
    // A request that claims to be a server and an administrator.
    let mut wish = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
    wish.subject_alt_names.push(SanType::URI("spiffe://flatnet/admin/root".try_into().unwrap()));
    wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = wish.serialize_request(&key).unwrap();
    let node = NodeId::new(7);
    let issued = authority.issue(&Identity::Node(node), csr.der(), NODE_LIFETIME).unwrap();
    let holder = holder(&issued.certificate).unwrap();
    assert_eq!(holder.identity, Identity::Node(node));
    assert_eq!(Some(holder.key_hash), request_key_hash(csr.der()));
    let (_, parsed) = x509_parser::parse_x509_certificate(&issued.certificate).unwrap();
    assert!(!parsed.is_ca());
    assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);

    let mut forged = csr.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(authority.issue(&Identity::Node(node), &forged, NODE_LIFETIME).is_err(), "the signature is looked at");
    assert!(authority.issue(&Identity::Node(node), &vec![0x30; CSR_LIMIT + 1], NODE_LIFETIME).is_err());
    std::fs::remove_dir_all(dir).unwrap();
}

/// Requests that OpenSSL made: key, hash of the signature, DER in base64.
const REQUESTS: [(&str, &str, bool); 5] = [
    (
        "P-384, SHA-384",
        "MIIBBDCBiwIBADAMMQowCAYDVQQDDAF4MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEbSCFMSen0sR/pjy2v0HUs5dlYKH2Gc7uarks5GJE9S36nT+sygXO7VDfu7ZtWqYeRfJno1XA+0/MHm8M0O0bVhBNOBMGtDzJPQdIACkF35KJxR29WveT5pVMKQShQFuAoAAwCgYIKoZIzj0EAwMDaAAwZQIwR8eBZ6C0DHH5IGq2UxuhEFGyoJ+t9TE64VGpMrduyi9cp2KQz2spEAJgcQAxbcwSAjEA7nnLiZJyzWNpanFfqHCspNjl3IhT5UzqUGFeV2mJna7jj7gDuWuxcowwMK7EN8T6",
        true,
    ),
    (
        "Ed25519",
        "MIGLMD8CAQAwDDEKMAgGA1UEAwwBeDAqMAUGAytlcAMhAPM6Hx0eYqi7pxK2Cs2/bj/yDiNQmVCEEciqdI6JZVHcoAAwBQYDK2VwA0EAQZ0nC1gouM7J9siwYHXmEC6lnrJvuvsIvu5N89RXpP6hUIRrXKQnpkikNT+8WXDVYDusdnvb4m5M6JhKVI5FDQ==",
        true,
    ),
    (
        "P-384, SHA-256",
        "MIIBBTCBiwIBADAMMQowCAYDVQQDDAF4MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEbSCFMSen0sR/pjy2v0HUs5dlYKH2Gc7uarks5GJE9S36nT+sygXO7VDfu7ZtWqYeRfJno1XA+0/MHm8M0O0bVhBNOBMGtDzJPQdIACkF35KJxR29WveT5pVMKQShQFuAoAAwCgYIKoZIzj0EAwIDaQAwZgIxANYBFw50yZQWQNqm2EtqZw2l2/+rCoLZL3I2ht223biunNcBn5RYr7HANoNGW2sj1wIxAPEKxX3T1JI7rU/5StmlCfbxZqkL9dlu404dWV2JvcUY9AetWmwOZ3zdrJccag+myQ==",
        false,
    ),
    (
        "P-256, SHA-384",
        "MIHHMG4CAQAwDDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABKX4eVaIbePuy44FebIHlsgf2ycpNYkDEvRcijsn7XkKoW4za/QSEOZbjE9Xd5Lo9fPj5HDEp7QDBe2pAwcOGiCgADAKBggqhkjOPQQDAwNJADBGAiEAyx/qiBtOZxkziyY04YzUb8AHLqCL1FMZC6qoq7VunI8CIQDx1NhItwiU49gxFcm6jvgwWo6ap8rGk1i6HAWOLbuPJA==",
        false,
    ),
    (
        "P-256, SHA-512",
        "MIHGMG4CAQAwDDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABKX4eVaIbePuy44FebIHlsgf2ycpNYkDEvRcijsn7XkKoW4za/QSEOZbjE9Xd5Lo9fPj5HDEp7QDBe2pAwcOGiCgADAKBggqhkjOPQQDBANIADBFAiAVh9hJfQivxx4jpSxZsz52MEH7bQ4XJ53qiSht3q0bmgIhAMBB6C/0D9wXAg/cel/a6rhViZzu/v2KrAmYwMZIhh5T",
        false,
    ),
];

#[test]
fn a_request_whose_key_and_signature_are_not_of_one_kind_gets_no_certificate() {
    use base64::Engine;
    let dir = scratch("kinds");
    let authority = Authority::open(&dir).unwrap();
    for (kind, request, good) in REQUESTS {
        let csr = base64::engine::general_purpose::STANDARD.decode(request).unwrap();
        let issued = authority.issue(&Identity::Node(NodeId::new(1)), &csr, NODE_LIFETIME);
        assert_eq!(issued.is_ok(), good, "{kind}");
        if let Ok(issued) = issued {
            assert_eq!(holder(&issued.certificate).map(|holder| holder.key_hash), request_key_hash(&csr), "{kind}");
        }
    }
    std::fs::remove_dir_all(dir).unwrap();
}
