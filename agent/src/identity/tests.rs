//! What a keyring and an enrolment window take, and from whom.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use deadlight_shared::enrol::{EXPORTER_LENGTH, EnrolLine, Secret};
use deadlight_shared::tls::TlsPaths;
use deadlight_shared::trust::{Revoked, SignedTrust, Trust};
use deadlight_shared::wire::{CertificateCall, EnrolCall};
use deadlight_shared::{KeyId, OperatorSecret};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, PublicKeyData,
    SanType, SigningKey as _,
};
use tempfile::TempDir;

use super::*;
use crate::api::Channel;

const N1: &str = "spiffe://deadlight/agent/n1";
const CHANNEL: Channel = Channel([7; EXPORTER_LENGTH]);

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key: KeyId,
}

impl Ca {
    fn new() -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        let id = KeyId::of_public_key(&key.subject_public_key_info());
        Self { issuer: Issuer::new(params, key), pem, key: id }
    }

    /// A certificate (PEM) of this year of our era for `uri` and `key`.
    fn certify(&self, key: &impl PublicKeyData, uri: &str, year: i32) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.not_before = rcgen::date_time_ymd(year, 1, 1);
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// The answer to `request`.
    fn answer(&self, request: &str, uri: &str) -> String {
        self.certify(&CertificateSigningRequestParams::from_pem(request).unwrap().public_key, uri, 2020)
    }

    /// A trust document of this CA's, as a header.
    fn tells(&self, generation: u64, authorities: &[&Self], revoked: &[KeyId]) -> String {
        let authorities = authorities.iter().map(|ca| ca.pem.clone()).collect();
        let revoked = revoked.iter().map(|&key| Revoked { key, until: Timestamp::now() }).collect();
        let trust = Trust { generation, authorities, revoked };
        SignedTrust::sign(&trust, |message| self.issuer.key().sign(message)).unwrap().unwrap().to_header()
    }

    /// Three files, as made by hand in this year.
    fn files(&self, directory: &Path, year: i32) -> TlsPaths {
        let key = KeyPair::generate().unwrap();
        let [ca, certificate, secret] = ["ca.crt", "own.crt", "own.key"].map(|name| directory.join(name));
        fs::write(&ca, &self.pem).unwrap();
        fs::write(&certificate, self.certify(&key, N1, year)).unwrap();
        fs::write(&secret, key.serialize_pem()).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        TlsPaths { ca, certificate, key: secret }
    }
}

/// A node that was enrolled by `ca` in 2010, and told to trust `authorities`.
struct Node {
    directory: TempDir,
    keyring: Keyring,
}

impl Node {
    fn new(ca: &Ca, authorities: &[&Ca]) -> Self {
        let (directory, key) = (tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
        let pair = document::Pair { certificate: ca.certify(&key, N1, 2010), key: key.serialize_pem() };
        let authorities = authorities.iter().map(|ca| ca.pem.clone()).collect();
        let trust = Some(Trust { generation: 5, authorities, revoked: Vec::new() });
        Document { pair: Some(pair), trust, ..Document::default() }.save(directory.path()).unwrap();
        let keyring = Keyring::load(directory.path().to_owned(), None).unwrap();
        Self { directory, keyring }
    }

    fn restarted(&self, by_hand: Option<&TlsPaths>) -> Keyring {
        Keyring::load(self.directory.path().to_owned(), by_hand).unwrap()
    }
}

/// The year in which a keyring's certificate begins.
fn year(keyring: &Keyring) -> i16 {
    jiff::tz::TimeZone::UTC.to_datetime(keyring.validity().from).year()
}

#[test]
fn trust_is_learnt_from_a_ca_of_ours_and_only_forward() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let node = Node::new(&ca, &[&ca]);
    let (mut tls, mut calls) = (node.keyring.tls(), node.keyring.calls());
    let mut takes = |header: &str| {
        let learnt = node.keyring.learn(header).is_ok();
        let changed = (tls.has_changed().unwrap(), calls.has_changed().unwrap());
        tls.mark_unchanged();
        calls.mark_unchanged();
        (learnt, changed, node.keyring.generation())
    };
    let nothing = (false, false);
    assert_eq!(takes(&foreign.tells(9, &[&foreign], &[])), (false, nothing, 5), "a stranger's");
    assert_eq!(takes("no header"), (false, nothing, 5));
    assert_eq!(takes(&ca.tells(4, &[&ca, &foreign], &[])), (true, nothing, 5), "an older one");
    assert_eq!(takes(&ca.tells(5, &[&ca, &foreign], &[])), (true, nothing, 5), "as old as ours");
    assert_eq!(takes(&ca.tells(6, &[&ca], &[foreign.key])), (true, (true, true), 6), "in force for either side");
    assert_eq!(node.restarted(None).generation(), 6);
}

#[test]
fn a_node_that_was_told_nothing_holds_generation_0() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().unwrap());
    let files = ca.files(directory.path(), 2015);
    let keyring = Keyring::load(directory.path().to_owned(), Some(&files)).unwrap();
    assert_eq!(keyring.generation(), 0);
    keyring.learn(&ca.tells(1, &[&ca], &[])).unwrap();
    assert_eq!(keyring.generation(), 1);
}

#[test]
fn a_certificate_is_installed_for_the_key_that_was_asked_for_and_for_us() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let node = Node::new(&ca, &[&ca]);
    let (tls, calls) = (node.keyring.tls(), node.keyring.calls());
    let stranger = KeyPair::generate().unwrap();
    let unasked = node.keyring.install(&ca.certify(&stranger, N1, 2020));
    assert!(matches!(unasked, Err(IdentityError::NotRequested)));

    let request = node.keyring.request().unwrap();
    let install = |certificate: &str| node.keyring.install(certificate);
    assert!(matches!(install(&ca.certify(&stranger, N1, 2020)), Err(IdentityError::OtherKey)));
    let other = install(&ca.answer(&request, "spiffe://deadlight/agent/n2")).unwrap_err();
    assert!(matches!(other, IdentityError::OtherIdentity { .. }), "{other}");
    assert!(matches!(install(&foreign.answer(&request, N1)), Err(IdentityError::Tls(_))));
    assert_eq!((year(&node.keyring), year(&node.restarted(None))), (2010, 2010));
    assert!(!tls.has_changed().unwrap() && !calls.has_changed().unwrap());

    install(&ca.answer(&request, N1)).unwrap();
    assert_eq!((year(&node.keyring), year(&node.restarted(None))), (2020, 2020));
    assert!(tls.has_changed().unwrap() && calls.has_changed().unwrap());
    assert!(matches!(install(&ca.answer(&request, N1)), Err(IdentityError::NotRequested)), "once");
}

#[test]
fn whichever_certificate_is_younger_counts() {
    let ca = Ca::new();
    let node = Node::new(&ca, &[&ca]);
    for (made, wanted) in [(2005, 2010), (2015, 2015)] {
        let files = ca.files(node.directory.path(), made);
        let keyring = node.restarted(Some(&files));
        assert_eq!((year(&keyring), keyring.identity().to_string().as_str()), (wanted, N1));
    }
    let empty = tempfile::tempdir().unwrap();
    let nothing = Keyring::load(empty.path().to_owned(), None);
    assert!(matches!(nothing, Err(IdentityError::None)));
}

#[test]
fn files_made_by_hand_keep_what_was_told_unless_another_ca_made_them() {
    let (ca, second, foreign) = (Ca::new(), Ca::new(), Ca::new());
    let node = Node::new(&ca, &[&ca, &second]);
    let by_second = || second.tells(6, &[&second], &[]);
    let ours = node.restarted(Some(&ca.files(node.directory.path(), 2015)));
    assert!(ours.learn(&by_second()).is_ok(), "both CAs are still trusted");
    let anew = node.restarted(Some(&foreign.files(node.directory.path(), 2015)));
    assert!(anew.learn(&by_second()).is_err(), "the operator has begun anew");
    assert_eq!(anew.generation(), 0, "and so has the CA that counts generations");
    anew.learn(&foreign.tells(1, &[&foreign], &[second.key])).unwrap();
    assert_eq!(anew.generation(), 1, "its first revocation is not older than what another CA told");
}

#[test]
fn a_certificate_of_a_node_that_was_told_nothing_is_not_used() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().unwrap());
    let key = KeyPair::generate().unwrap();
    let pair = document::Pair { certificate: ca.certify(&key, N1, 2010), key: key.serialize_pem() };
    Document { pair: Some(pair), ..Document::default() }.save(directory.path()).unwrap();
    assert!(matches!(Keyring::load(directory.path().to_owned(), None), Err(IdentityError::None)));
}

#[test]
fn a_file_that_is_there_and_cannot_be_read_is_not_as_none() {
    let directory = tempfile::tempdir().unwrap();
    assert!(Document::load(directory.path()).unwrap().pair.is_none(), "a new node");
    fs::create_dir(directory.path().join("identity.json")).unwrap();
    assert!(matches!(Document::load(directory.path()), Err(DocumentError::Read { .. })));
}

/// A window, and the scanner that printed its line.
struct Enrolling {
    window: Window,
    line: EnrolLine,
    ca: Ca,
    directory: TempDir,
}

impl Enrolling {
    fn new() -> Self {
        let (ca, directory) = (Ca::new(), tempfile::tempdir().unwrap());
        let line = || EnrolLine { node: "n1".parse().unwrap(), authority: ca.key, secret: Secret::new([9; 16]) };
        let window = Window::new(line(), directory.path()).unwrap();
        Self { window, line: line(), ca, directory }
    }

    fn call(&self) -> EnrolCall {
        let proof = self.line.secret.verifier().scanner_proof(&CHANNEL.0);
        EnrolCall { schema: EnrolCall::SCHEMA.to_owned(), node: "n1".parse().unwrap(), proof }
    }

    fn take(&self, certificate: String, operator_key: Option<String>) -> Result<(), WindowError> {
        let schema = CertificateCall::SCHEMA.to_owned();
        let trust = self.ca.tells(3, &[&self.ca], &[]);
        self.window.take(&CertificateCall { schema, certificate, operator_key }, Some(&trust))
    }

    fn kept(&self) -> Document {
        Document::load(self.directory.path()).unwrap()
    }
}

#[test]
fn a_window_answers_whoever_printed_the_line() {
    let enrolling = Enrolling::new();
    let (answer, good) = (|call: &EnrolCall| enrolling.window.answer(call, &CHANNEL), enrolling.call());
    let schema = EnrolCall { schema: "deadlight.enrol/v2".to_owned(), ..good.clone() };
    assert!(matches!(answer(&schema), Err(WindowError::Schema(_))));
    let node = EnrolCall { node: "n2".parse().unwrap(), ..good.clone() };
    assert!(matches!(answer(&node), Err(WindowError::OtherNode { .. })));
    let proof = Secret::new([8; 16]).verifier().scanner_proof(&CHANNEL.0);
    assert!(matches!(answer(&EnrolCall { proof, ..good.clone() }), Err(WindowError::Proof(_))));
    let relayed = enrolling.window.answer(&good, &Channel([6; EXPORTER_LENGTH]));
    assert!(matches!(relayed, Err(WindowError::Proof(_))), "the proof of another channel");

    let answered = answer(&good).unwrap();
    let verifier = enrolling.line.secret.verifier();
    assert_eq!(verifier.check_agent(&answered.proof, &CHANNEL.0, &answered.request), Ok(()));
}

#[test]
fn a_certificate_comes_after_the_proof_and_fits() {
    let enrolling = Enrolling::new();
    let ca = &enrolling.ca;
    let key = KeyPair::generate().unwrap();
    let early = enrolling.take(ca.certify(&key, N1, 2020), None);
    assert!(matches!(early, Err(WindowError::Unproven)));
    let request = enrolling.window.answer(&enrolling.call(), &CHANNEL).unwrap().request;

    let certificate = ca.answer(&request, N1);
    let schema = CertificateCall::SCHEMA.to_owned();
    let call = CertificateCall { schema, certificate: certificate.clone(), operator_key: None };
    let (foreign, good) = (Ca::new(), ca.tells(3, &[ca], &[]));
    for trust in [None, Some(foreign.tells(3, &[&foreign], &[])), Some(foreign.tells(3, &[ca], &[]))] {
        assert!(matches!(enrolling.window.take(&call, trust.as_deref()), Err(WindowError::Trust(_))));
    }
    let other = CertificateCall { schema: "deadlight.certificate/v2".to_owned(), ..call };
    assert!(matches!(enrolling.window.take(&other, Some(&good)), Err(WindowError::Schema(_))));

    let n2 = ca.answer(&request, "spiffe://deadlight/agent/n2");
    assert!(matches!(enrolling.take(n2, None), Err(WindowError::OtherCertificate(_))));
    let other_key = ca.certify(&key, N1, 2020);
    assert!(matches!(enrolling.take(other_key, None), Err(WindowError::OtherCertificate(_))));
    assert!(matches!(enrolling.take(foreign.answer(&request, N1), None), Err(WindowError::Tls(_))));
    let no_key = Some("no key".to_owned());
    assert!(matches!(enrolling.take(certificate.clone(), no_key), Err(WindowError::Operator(_))));
    assert!(enrolling.kept().pair.is_none(), "nothing was kept of all these");

    let operator = OperatorSecret::generate().unwrap().public().unwrap().to_pem();
    enrolling.take(certificate.clone(), Some(operator.clone())).unwrap();
    let kept = enrolling.kept();
    assert_eq!((kept.pair.unwrap().certificate, kept.operator_key), (certificate, Some(operator)));
    assert_eq!(kept.trust.unwrap().generation, 3);
    let keyring = Keyring::load(enrolling.directory.path().to_owned(), None).unwrap();
    assert_eq!(keyring.identity().to_string(), N1);
}
