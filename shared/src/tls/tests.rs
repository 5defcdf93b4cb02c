//! Handshakes in memory, and what each side holds before them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use jiff::SignedDuration;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::ResolvesClientCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConnection, HandshakeKind, ProtocolVersion, ServerConnection, SignatureScheme};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};

use super::test_ca::{Ca, Held, N1, N2, SCANNER};
use super::*;

/// When a certificate ends that will hold from tomorrow on: it was made just now, and our own clock is a day behind.
const TOMORROW: SignedDuration = SignedDuration::from_hours(24 * 8);

/// Both sides of a connection.
struct Met {
    client: ClientConnection,
    server: ServerConnection,
}

/// Passes bytes to and fro; what the side that refuses the other one says, with its name in front.
fn meet(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Met, String> {
    let name = ServerName::try_from("203.0.113.1").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        pass(&mut client, &mut server).map_err(|error| format!("server: {error}"))?;
        pass(&mut server, &mut client).map_err(|error| format!("client: {error}"))?;
    }
    Ok(Met { client, server })
}

fn pass<A, B>(
    from: &mut rustls::ConnectionCommon<A>,
    to: &mut rustls::ConnectionCommon<B>,
) -> Result<(), rustls::Error> {
    let mut sent = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut sent).unwrap();
    }
    let mut rest = sent.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

/// How a scanner's call for n1 at `server` ends: "well", or who refuses and why.
fn ends(client: ClientConfig, server: ServerConfig) -> String {
    meet(&Arc::new(client), &Arc::new(server)).err().unwrap_or_else(|| "well".to_owned())
}

fn calls_n1(scanner: &Held) -> ClientConfig {
    scanner.credentials.client_config(N1.parse().unwrap()).unwrap()
}

fn answers(agent: &Held) -> ServerConfig {
    agent.credentials.server_config().unwrap()
}

/// What a peer has shown.
fn shown(chain: Option<&[CertificateDer<'_>]>) -> String {
    Identity::of_certificate(&chain.unwrap()[0]).unwrap().to_string()
}

/// A key, and a certificate of nobody's that shows it.
fn unnamed() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap().der().clone();
    (certificate, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

/// The certificate of `held` with another key: of somebody who has seen the one and never had the other.
fn copied(held: &Held) -> Arc<SingleCertAndKey> {
    let key = provider().key_provider.load_private_key(unnamed().1).unwrap();
    Arc::new(CertifiedKey::new(held.credentials.chain.clone(), key).into())
}

/// Has no certificate.
#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn scanner_and_agent_accept_each_other_and_know_who_is_there() {
    let ca = Ca::new();
    let (scanner, agent) = (ca.held(SCANNER, -1), ca.held(N1, -1));
    let met = meet(&Arc::new(calls_n1(&scanner)), &Arc::new(answers(&agent))).unwrap();
    assert_eq!(shown(met.client.peer_certificates()), N1);
    assert_eq!(shown(met.server.peer_certificates()), SCANNER);
    assert_eq!(met.server.protocol_version(), Some(ProtocolVersion::TLSv1_3));

    let callers = Arc::new(ca.callers(&[], &[], false));
    let answering = scanner.credentials.answering_config(callers).unwrap();
    let met = meet(&Arc::new(agent.credentials.calling_config().unwrap()), &Arc::new(answering)).unwrap();
    assert_eq!(shown(met.client.peer_certificates()), SCANNER);
    assert_eq!(shown(met.server.peer_certificates()), N1);
}

#[test]
fn a_scanner_that_is_called_talks_to_the_agents_that_shall_call() {
    let (ours, foreign) = (Ca::new(), Ca::new());
    let calls = |agent: &Held, strangers| {
        let callers = Arc::new(ours.callers(&[], &[], strangers));
        let answering = ours.held(SCANNER, -1).credentials.answering_config(callers).unwrap();
        ends(agent.credentials.calling_config().unwrap(), answering)
    };
    let mut knows_us = foreign.held(N1, -1);
    knows_us.credentials = knows_us.credentials.with_trust(&ours.trust(&[])).unwrap();
    for strangers in [false, true] {
        assert_eq!(calls(&ours.held(N1, -1), strangers), "well");
        let unasked = calls(&ours.held(N2, -1), strangers);
        assert_eq!(unasked, "server: invalid peer certificate: ApplicationVerificationFailure");
        let forged = calls(&knows_us, strangers);
        assert_eq!(forged, "server: invalid peer certificate: BadSignature", "another CA of the same name");
        let ended = calls(&ours.held(N1, 1), strangers);
        assert!(ended.starts_with("server: invalid peer certificate: certificate expired"), "{ended}");
    }
}

#[test]
fn an_agent_talks_to_holders_of_a_certificate_that_holds_and_is_its_cas() {
    let (ours, foreign) = (Ca::new(), Ca::new());
    let (agent, scanner) = (ours.held(N1, -1), ours.held(SCANNER, -1));
    let mut knows_us = foreign.held(SCANNER, -1);
    knows_us.credentials = knows_us.credentials.with_trust(&ours.trust(&[])).unwrap();
    let forged = ends(calls_n1(&knows_us), answers(&agent));
    assert_eq!(forged, "server: invalid peer certificate: BadSignature", "another CA of the same name");
    let ended = ends(calls_n1(&ours.held(SCANNER, 1)), answers(&agent));
    assert!(ended.starts_with("server: invalid peer certificate: certificate expired"), "{ended}");

    let told = agent.credentials.clone().with_trust(&ours.trust(&[scanner.key])).unwrap();
    let revoked = ends(calls_n1(&scanner), told.server_config().unwrap());
    assert_eq!(revoked, "server: invalid peer certificate: Revoked");
    assert_eq!(ends(calls_n1(&ours.held(SCANNER, -1)), told.server_config().unwrap()), "well", "another key");

    let mut nobody = calls_n1(&scanner);
    nobody.client_auth_cert_resolver = Arc::new(Nobody);
    assert_eq!(ends(nobody, answers(&agent)), "server: peer sent no certificates");
    let mut thief = calls_n1(&scanner);
    thief.client_auth_cert_resolver = copied(&scanner);
    assert_eq!(ends(thief, answers(&agent)), "server: invalid peer certificate: BadSignature");
}

#[test]
fn a_scanner_talks_to_the_agent_that_it_means_and_to_nobody_else() {
    let (ours, foreign) = (Ca::new(), Ca::new());
    let (agent, scanner) = (ours.held(N1, -1), ours.held(SCANNER, -1));
    let mut knows_us = foreign.held(N1, -1);
    knows_us.credentials = knows_us.credentials.with_trust(&ours.trust(&[])).unwrap();
    let forged = ends(calls_n1(&scanner), answers(&knows_us));
    assert_eq!(forged, "client: invalid peer certificate: BadSignature", "another CA of the same name");
    let ended = ends(calls_n1(&scanner), answers(&ours.held(N1, 1)));
    assert!(ended.starts_with("client: invalid peer certificate: certificate expired"), "{ended}");
    let other = ends(calls_n1(&scanner), answers(&ours.held(N2, -1)));
    assert!(other.starts_with("client: ") && other.contains(&format!("the peer is not {N1}")), "{other}");

    let told = scanner.credentials.clone().with_trust(&ours.trust(&[agent.key])).unwrap();
    let revoked = ends(told.client_config(N1.parse().unwrap()).unwrap(), answers(&agent));
    assert_eq!(revoked, "client: invalid peer certificate: Revoked");

    let mut thief = answers(&agent);
    thief.cert_resolver = copied(&agent);
    assert_eq!(ends(calls_n1(&scanner), thief), "client: invalid peer certificate: BadSignature");
}

#[test]
fn nobody_is_a_scanner_but_by_its_certificate() {
    let ca = Ca::new();
    let (n1, n2) = (ca.held(N1, -1), ca.held(N2, -1));
    let refusal = ends(n1.credentials.calling_config().unwrap(), answers(&n2));
    assert_eq!(refusal, "client: invalid peer certificate: ApplicationVerificationFailure", "one node calls another");
    let refusal = ends(calls_n1(&n2), answers(&ca.held(SCANNER, -1)));
    assert!(refusal.starts_with("client: invalid peer certificate"), "a scanner does not pass for n1: {refusal}");
}

#[test]
fn the_agent_of_a_pinned_key_may_be_met_for_thirty_days_after_its_end_to_renew() {
    let ca = Ca::new();
    let scanner = ca.held(SCANNER, -1);
    let renews = |keys: &[KeyId]| {
        scanner.credentials.renewing_config(N1.parse().unwrap(), keys.iter().copied().collect()).unwrap()
    };
    for (days_ago, is_met) in [(-1, true), (1, true), (29, true), (31, false)] {
        let agent = ca.held(N1, days_ago);
        assert_eq!(ends(renews(&[agent.key]), answers(&agent)) == "well", is_met, "{days_ago} days ago");
    }
    let agent = ca.held(N1, 1);
    let refusal = ends(renews(&[scanner.key]), answers(&agent));
    assert!(refusal.starts_with("client: invalid peer certificate: certificate expired"), "{refusal}");
    let told = scanner.credentials.clone().with_trust(&ca.trust(&[agent.key])).unwrap();
    let revoked = told.renewing_config(N1.parse().unwrap(), [agent.key].into()).unwrap();
    assert_eq!(ends(revoked, answers(&agent)), "client: invalid peer certificate: Revoked");
}

#[test]
fn a_first_meeting_is_with_the_ca_that_the_line_names() {
    let (ours, foreign) = (Ca::new(), Ca::new());
    let waits = || {
        let (certificate, key) = unnamed();
        pinned_server_config(ours.key(), certificate, key).unwrap()
    };
    let enrols = |scanner: &Held| scanner.credentials.enrolling_config().unwrap();
    assert_eq!(ends(enrols(&ours.held(SCANNER, -1)), waits()), "well");
    for (scanner, wanted) in [(foreign.held(SCANNER, -1), "UnknownIssuer"), (ours.held(SCANNER, 1), "expired")] {
        let refusal = ends(enrols(&scanner), waits());
        assert!(refusal.starts_with("server: ") && refusal.contains(wanted), "{refusal}");
    }
    // A node that waits may show any key, but has to hold it.
    let mut thief = waits();
    thief.cert_resolver = copied(&ours.held(N1, -1));
    assert_eq!(ends(enrols(&ours.held(SCANNER, -1)), thief), "client: invalid peer certificate: BadSignature");

    // The same where the node calls: as a stranger, whom a scanner hears while somebody is invited.
    let calls = |authority| {
        let (certificate, key) = unnamed();
        pinned_calling_config(authority, certificate, key).unwrap()
    };
    let invites = |strangers| {
        let callers = Arc::new(ours.callers(&[], &[], strangers));
        ours.held(SCANNER, -1).credentials.answering_config(callers).unwrap()
    };
    assert_eq!(ends(calls(ours.key()), invites(true)), "well");
    assert_eq!(ends(calls(foreign.key()), invites(true)), "client: invalid peer certificate: UnknownIssuer");
    assert!(ends(calls(ours.key()), invites(false)).contains("UnknownIssuer"));
}

#[test]
fn every_connection_proves_itself_anew() {
    let ca = Ca::new();
    let scanner = ca.held(SCANNER, -1);
    let (client, server) = (Arc::new(calls_n1(&scanner)), Arc::new(answers(&ca.held(N1, -1))));
    for _ in 0..3 {
        let mut met = meet(&client, &server).unwrap();
        assert_eq!(met.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(met.client.tls13_tickets_received(), 0);
        assert!(met.client.early_data().is_none(), "nothing is sent before the handshake");
    }
}

#[test]
fn tls_1_2_is_spoken_by_neither_side() {
    let ca = Ca::new();
    let (scanner, agent) = (ca.held(SCANNER, -1), ca.held(N1, -1));
    // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, and what goes with it; no version but the old field's.
    let hello: &[u8] = &[
        &[3, 3][..],
        &[7; 32],
        &[0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 16],
        &[0, 10, 0, 4, 0, 2, 0, 0x17, 0, 13, 0, 4, 0, 2, 4, 3],
    ]
    .concat();
    let mut server = ServerConnection::new(Arc::new(answers(&agent))).unwrap();
    server.read_tls(&mut record(1, hello).as_slice()).unwrap();
    let error = server.process_new_packets().unwrap_err();
    assert!(matches!(error, rustls::Error::PeerIncompatible(_)), "{error}");

    let mut client =
        ClientConnection::new(Arc::new(calls_n1(&scanner)), ServerName::try_from("203.0.113.1").unwrap()).unwrap();
    let hello: &[u8] = &[&[3, 3][..], &[7; 32], &[0, 0xc0, 0x2b, 0]].concat();
    client.read_tls(&mut record(2, hello).as_slice()).unwrap();
    let error = client.process_new_packets().unwrap_err();
    assert!(matches!(error, rustls::Error::PeerIncompatible(_)), "{error}");
}

/// A handshake message of this kind, in its record.
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
    let message = [&[kind, 0][..], &length(body), body].concat();
    [&[22, 3, 3][..], &length(&message), &message].concat()
}

#[test]
fn a_clock_that_is_behind_keeps_nobody_out_and_nobody_in() {
    let ca = Ca::new();
    let agent = ca.held_until(N1, TOMORROW);
    assert_eq!(ends(calls_n1(&ca.held_until(SCANNER, TOMORROW)), answers(&agent)), "well");
    // The agent's own certificate says that tomorrow has come.
    let refusal = ends(calls_n1(&ca.held_until(SCANNER, SignedDuration::from_hours(12))), answers(&agent));
    assert!(refusal.starts_with("server: invalid peer certificate: certificate expired"), "{refusal}");
}

#[test]
fn a_certificate_takes_the_place_of_ours_when_our_ca_signed_it_and_it_holds() {
    let (ours, foreign) = (Ca::new(), Ca::new());
    let agent = ours.held(N1, -1);
    let put = |held: &Held| agent.credentials.with_pair(&held.pair[0], &held.pair[1]);
    let next = put(&ours.held_until(N1, TOMORROW)).unwrap();
    assert_eq!(next.identity().to_string(), N1);
    assert!(matches!(put(&foreign.held(N1, -1)), Err(TlsError::Pair(_))));
    assert!(matches!(put(&ours.held(N1, 1)), Err(TlsError::Pair(_))));
    let nothing = agent.credentials.with_pair("no PEM", &agent.pair[1]);
    assert!(nothing.is_err());

    let scanner = ours.held(SCANNER, -1);
    let told = agent.credentials.clone().with_trust(&ours.trust(&[scanner.key])).unwrap();
    let renewed = told.with_pair(&agent.pair[0], &agent.pair[1]).unwrap();
    let refusal = ends(calls_n1(&scanner), renewed.server_config().unwrap());
    assert_eq!(refusal, "server: invalid peer certificate: Revoked", "renewing forgets no revoked key");
}

#[test]
fn a_certificate_says_when_it_holds() {
    let held = Ca::new().held(N1, 3);
    let Validity { from, to } = held.credentials.validity();
    assert_eq!(to.duration_since(from), SignedDuration::from_hours(24 * 7));
    let ago = Timestamp::now().duration_since(to);
    assert!((SignedDuration::ZERO..SignedDuration::from_mins(1)).contains(&(ago - SignedDuration::from_hours(72))));
}

#[test]
fn files_are_read_unless_others_may_read_the_key() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().unwrap());
    let held = ca.held(N1, -1);
    let [ca_file, certificate, key] = ["ca.crt", "own.crt", "own.key"].map(|name| directory.path().join(name));
    for (path, text) in [(&ca_file, ca.pem()), (&certificate, &held.pair[0]), (&key, &held.pair[1])] {
        fs::write(path, text).unwrap();
    }
    let paths = TlsPaths { ca: ca_file, certificate, key };
    let load = |mode| {
        fs::set_permissions(&paths.key, fs::Permissions::from_mode(mode)).unwrap();
        Credentials::load(&paths)
    };
    for mode in [0o600, 0o400] {
        let loaded = load(mode).unwrap();
        assert_eq!((loaded.identity().to_string().as_str(), loaded.authorities().len()), (N1, 1));
    }
    for mode in [0o640, 0o604, 0o620, 0o777] {
        let error = load(mode).err().unwrap().to_string();
        assert!(error.ends_with(&format!("is readable by others (mode {mode:o})")), "{error}");
    }
    load(0o600).unwrap();
    fs::write(&paths.ca, "").unwrap();
    let error = Credentials::load(&paths).err().unwrap().to_string();
    assert!(error.starts_with("failed to read the CA certificate from /"), "{error}");
    fs::remove_file(&paths.key).unwrap();
    assert!(matches!(Credentials::load(&paths), Err(TlsError::Stat { .. })));
}
