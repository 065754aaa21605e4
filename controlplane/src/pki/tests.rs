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
