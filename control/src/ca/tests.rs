use super::*;
use crate::ca::identity::Identity;
use shoal_types::id::Name;

fn cluster(id: u128, data_key: &DataKey, now: Timestamp) -> Cluster {
    let id = ClusterId::from_entropy(id);
    let made = create(&id, data_key, now).expect("CA");
    Cluster {
        id,
        name: "otter".parse::<Name>().expect("literal"),
        created_at: now,
        data_port: 7378,
        cert_lifetime_ms: 7 * 24 * 3_600_000,
        ca_cert_der: made.cert_der,
        ca_key_sealed: made.key_sealed,
        balancing: shoal_types::object::Balancing::default(),
    }
}

fn csr_claiming_everything(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["manager.shoal".to_owned()]).expect("name");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationalUnitName, "manager");
    params.distinguished_name.push(DnType::CommonName, "somebodyelse");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.serialize_request(key).expect("request").der().to_vec()
}

#[test]
fn a_request_contributes_its_public_key_and_nothing_else() {
    let data_key = DataKey::from_bytes(&[1; 32]).expect("key");
    let now = clock::now();
    let authority = Authority::open(&cluster(1, &data_key, now), &data_key).expect("open");
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
    let requested = RequestedKey::from_csr(&csr_claiming_everything(&key)).expect("request");
    let node = NodeId::from_entropy(7);
    let cert = authority.issue(&requested, &node, CertRole::Agent, now).expect("issue");

    let identity = Identity::from_der(&cert).expect("identity");
    assert_eq!(
        (&identity.node, identity.role, &identity.cluster),
        (&node, CertRole::Agent, authority.cluster())
    );
    assert!(identity.not_before.0 <= now.0 - 3_599_000, "backdated");
    let life = identity.not_after.0 - now.0;
    assert!((7 * 24 * 3_600_000 - 2_000..=7 * 24 * 3_600_000).contains(&life), "{life}");

    let (_, parsed) = x509_parser::parse_x509_certificate(&cert).expect("parses");
    assert!(!parsed.is_ca());
    assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
    let names = parsed.subject_alternative_name().expect("one").expect("there");
    let names = format!("{:?}", names.value.general_names);
    assert!(names.contains(&node_server_name(&node)) && !names.contains("manager"), "{names}");
    let (_, ca) = x509_parser::parse_x509_certificate(authority.cert()).expect("parses");
    parsed.verify_signature(Some(ca.public_key())).expect("signed by the CA");
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
    let der = csr_claiming_everything(&key);
    let mut changed = der.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    assert!(matches!(RequestedKey::from_csr(&changed), Err(CaError::Request(_))));
    let mut longer = der.clone();
    longer.push(0);
    assert!(matches!(RequestedKey::from_csr(&longer), Err(CaError::Request("has bytes after its end"))));
    for cut in 0..der.len() {
        assert!(RequestedKey::from_csr(&der[..cut]).is_err());
    }
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
    assert!(matches!(
        RequestedKey::from_csr(&csr_claiming_everything(&ed25519)),
        Err(CaError::Request("has a key that is not ECDSA P-256"))
    ));
}

#[test]
fn the_root_key_is_sealed_and_opens_only_with_the_data_key() {
    let data_key = DataKey::from_bytes(&[1; 32]).expect("key");
    let other = DataKey::from_bytes(&[2; 32]).expect("key");
    let cluster = cluster(1, &data_key, clock::now());
    assert!(Authority::open(&cluster, &data_key).is_ok());
    assert!(matches!(Authority::open(&cluster, &other), Err(CaError::Key(_))));
    assert!(KeyPair::try_from(cluster.ca_key_sealed.as_slice()).is_err(), "not in clear");
}
