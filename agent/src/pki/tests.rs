use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::{ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;
use shoal_types::pki::MANAGER_SERVER_NAME;

use super::*;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

fn ca() -> Ca {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "a CA");
    let der = params.self_signed(&key).expect("signed").der().to_vec();
    Ca { issuer: Issuer::new(params, key), der }
}

fn cluster() -> ClusterId {
    ClusterId::from_entropy(9)
}

/// A server that shows a certificate with this organisation and role, and the CA's after it.
fn server(ca: &Ca, organisation: &str, role: &str) -> Arc<ServerConfig> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, organisation);
    params.distinguished_name.push(DnType::OrganizationalUnitName, role);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = vec![SanType::DnsName(MANAGER_SERVER_NAME.try_into().expect("a DNS name"))];
    let cert = params.signed_by(&key, &ca.issuer).expect("signed");
    let chain = vec![cert.der().clone(), ca.der.clone().into()];
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("an identity");
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// The client's part of a handshake in memory.
fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<(), rustls::Error> {
    let name = ServerName::try_from(MANAGER_SERVER_NAME).expect("a name");
    let mut client = ClientConnection::new(client, name).expect("a client");
    let mut server = ServerConnection::new(server).expect("a server");
    for _ in 0..4 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("written");
        }
        server.read_tls(&mut wire.as_slice()).expect("read");
        drop(server.process_new_packets());
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("written");
        }
        client.read_tls(&mut wire.as_slice()).expect("read");
        client.process_new_packets()?;
    }
    assert!(!client.is_handshaking());
    Ok(())
}

fn credentials(ca: &Ca) -> Credentials {
    let key = NewKey::generate().expect("a key");
    let pair = KeyPair::try_from(key.key_der.as_slice()).expect("a key");
    let cert = CertificateParams::default().signed_by(&pair, &ca.issuer).expect("signed");
    let identity = Identity { key_der: key.key_der, cert_der: cert.der().to_vec(), ca_der: ca.der.clone() };
    Credentials::new(&identity, &cluster()).expect("TLS")
}

#[test]
fn only_a_manager_of_the_own_cluster_is_talked_to() {
    let (own, other) = (ca(), ca());
    let client = || credentials(&own).config();
    let cluster = cluster();
    shake(client(), server(&own, cluster.as_str(), "manager")).expect("a manager");
    for (ca, organisation, role) in [
        (&own, cluster.as_str(), "agent"),
        (&own, "anothercluster", "manager"),
        (&other, cluster.as_str(), "manager"),
    ] {
        assert!(shake(client(), server(ca, organisation, role)).is_err(), "{organisation} {role}");
    }
}

#[test]
fn a_token_pins_the_ca_before_anything_is_said() {
    let (own, other) = (ca(), ca());
    let pin = spki_digest(&own.der).expect("a certificate");
    let try_with = |ca: &Ca, role: &str| {
        let verifier = Arc::new(PinnedVerifier::new(pin));
        let config = joining_config(Arc::clone(&verifier)).expect("TLS");
        (shake(config, server(ca, cluster().as_str(), role)), verifier.met_other_ca())
    };
    assert!(matches!(try_with(&own, "manager"), (Ok(()), false)));
    assert!(matches!(try_with(&other, "manager"), (Err(_), true)));
    assert!(matches!(try_with(&own, "agent"), (Err(_), false)));
}

#[test]
fn a_crash_while_an_identity_is_replaced_leaves_one_that_fits() {
    let own = ca();
    let identity = || {
        let pair = KeyPair::generate().expect("a key");
        let cert = CertificateParams::default().signed_by(&pair, &own.issuer).expect("signed");
        Identity { key_der: pair.serialize_der(), cert_der: cert.der().to_vec(), ca_der: own.der.clone() }
    };
    let (old, new) = (identity(), identity());
    let dir = tempfile::tempdir().expect("a directory");
    let fitting = || {
        let loaded = Identity::load(dir.path()).expect("there");
        loaded.certified_key().expect("key and certificate fit");
        loaded.cert_der
    };
    old.store(dir.path()).expect("stored");
    // The writes of a renewal one by one.
    for (name, content, whole) in [
        ("node.key.next", &new.key_der, &old),
        ("ca.crt", &new.ca_der, &old),
        ("node.crt", &new.cert_der, &new),
        ("node.key", &new.key_der, &new),
    ] {
        std::fs::write(dir.path().join(name), content).expect("written");
        assert_eq!(fitting(), whole.cert_der, "after {name}");
    }
    // What a crash left does not get into the way of the next renewal.
    old.store(dir.path()).expect("stored");
    assert_eq!(fitting(), old.cert_der);
    assert!(!dir.path().join("node.key.next").exists());
}

#[test]
fn an_identity_is_kept_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("pki");
    assert!(matches!(Identity::load(&path), Err(PkiError::Missing(_))));
    let identity = Identity { key_der: vec![1], cert_der: vec![2], ca_der: vec![3] };
    identity.store(&path).expect("stored");
    assert_eq!(Identity::load(&path).expect("there").key_der, vec![1]);
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("node.key"))), (0o700, 0o600));
}
