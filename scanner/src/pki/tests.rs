use super::*;
use deadlight_shared::enrol::Secret;
use deadlight_shared::tls::{Credentials, TlsPaths};
use deadlight_shared::{Identity, Name};
use jiff::Timestamp;
use std::os::unix::fs::PermissionsExt as _;

fn identity(uri: &str) -> Identity {
    format!("spiffe://deadlight/{uri}").parse().unwrap()
}

fn files(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn issued_credentials_load_and_carry_their_identity() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Pki::at(directory.path()).init(Timestamp::now()).unwrap().certificate;
    for who in ["scanner/office-a", "agent/n1"] {
        let issued = Pki::at(directory.path()).issue(&identity(who), 90, Timestamp::now()).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&issued.key), mode(&issued.certificate)), (0o600, 0o644));
        let paths = TlsPaths { ca: ca.clone(), certificate: issued.certificate, key: issued.key };
        let credentials = Credentials::load(&paths).unwrap();
        assert_eq!(*credentials.identity(), identity(who));
        credentials.server_config().unwrap();
    }
    let pair = |stem: &str| ["crt", "key"].map(|kind| format!("{stem}.{kind}"));
    let names = [pair("agent-n1"), pair("ca"), ["lock", "registry.json"].map(str::to_owned), pair("scanner-office-a")];
    let names = names.concat();
    assert_eq!(files(directory.path()), names);
}

#[test]
fn overwrites_nothing_and_leaves_nothing_half_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    Pki::at(path).init(Timestamp::now()).unwrap();
    let before = fs::read(path.join("ca.key")).unwrap();
    assert!(matches!(Pki::at(path).init(Timestamp::now()), Err(PkiError::Exists { .. })));
    assert_eq!(fs::read(path.join("ca.key")).unwrap(), before);
    fs::write(path.join("agent-n1.crt"), "mine").unwrap();
    let error = Pki::at(path).issue(&identity("agent/n1"), 90, Timestamp::now()).unwrap_err();
    assert!(matches!(error, PkiError::Exists { .. }));
    assert_eq!(files(path), ["agent-n1.crt", "ca.crt", "ca.key", "lock", "registry.json"]);
}

#[test]
fn a_foreign_ca_certificate_is_noticed() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Pki::at(one.path()).init(Timestamp::now()).unwrap();
    Pki::at(other.path()).init(Timestamp::now()).unwrap();
    fs::copy(other.path().join("ca.crt"), one.path().join("ca.crt")).unwrap();
    let error = Pki::at(one.path()).issue(&identity("agent/n1"), 90, Timestamp::now()).unwrap_err();
    assert!(matches!(error, PkiError::Pair { .. }));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(
        Pki::at(empty.path()).issue(&identity("agent/n1"), 90, Timestamp::now()),
        Err(PkiError::Read { .. })
    ));
}

#[test]
fn a_certificate_holds_from_five_minutes_ago_for_its_days() {
    let directory = tempfile::tempdir().unwrap();
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    Pki::at(directory.path()).init(now).unwrap();
    let issued = Pki::at(directory.path()).issue(&identity("agent/n1"), 7, now).unwrap();
    let pem = fs::read(issued.certificate).unwrap();
    let pem = x509_parser::pem::Pem::iter_from_buffer(&pem).next().unwrap().unwrap();
    let validity = pem.parse_x509().unwrap().validity().clone();
    assert_eq!(validity.not_before.timestamp(), 1_800_000_000 - 300);
    assert_eq!(validity.not_after.timestamp(), 1_800_000_000 + 7 * 86_400);
    let error = Pki::at(directory.path()).issue(&identity("agent/n2"), u32::MAX, now).unwrap_err();
    assert!(matches!(error, PkiError::Lifetime { .. }));
}

const T0: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(T0 + seconds).unwrap()
}

fn days(days: i64) -> Timestamp {
    at(days * 86_400)
}

fn node(name: &str) -> Name {
    name.parse().unwrap()
}

fn request() -> String {
    let mut params = rcgen::CertificateParams::new(vec!["n2.example".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn invited(now: Timestamp) -> (tempfile::TempDir, Pki) {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::at(directory.path());
    pki.init(now).unwrap();
    invite(&pki, now);
    (directory, pki)
}

fn invite(pki: &Pki, now: Timestamp) {
    let invite = |registry: &mut Registry| {
        registry.invite(node("n1"), Secret::new([1; 16]).verifier(), now);
        Ok(())
    };
    pki.update(now, invite).unwrap();
}

fn registry(pki: &Pki) -> Registry {
    pki.read().unwrap().unwrap()
}

fn arrive(pki: &Pki, who: &str) {
    let arrived = |registry: &mut Registry| {
        registry.arrived(&identity(who));
        Ok(())
    };
    pki.update(at(2), arrived).unwrap();
}

#[test]
fn of_many_who_come_with_one_line_one_is_enrolled() {
    let (_directory, pki) = invited(at(0));
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| (0..25).map(|_| pki.enrol(&node("n1"), &request(), at(1))).collect()))
            .collect();
        threads.into_iter().flat_map(|thread| -> Vec<Result<String, PkiError>> { thread.join().unwrap() }).collect()
    });
    let used = |result: &&Result<_, _>| matches!(result, Err(PkiError::Invitation(InvitationError::Used { .. })));
    assert_eq!((results.iter().filter(|r| r.is_ok()).count(), results.iter().filter(used).count()), (1, 199));
    assert_eq!(registry(&pki).latest().len(), 1);
}

#[test]
fn an_invitation_is_for_one_node_and_ten_minutes() {
    let (_directory, pki) = invited(at(0));
    let error = |name: &str, now| pki.enrol(&node(name), &request(), now).unwrap_err().to_string();
    assert_eq!(error("n2", at(1)), "node n2 is not invited");
    assert!(error("n1", at(601)).contains("has expired"));
    assert!(matches!(pki.enrol(&node("n1"), "no request", at(1)), Err(PkiError::Request(_))));
    assert!(pki.enrol(&node("n1"), &request(), at(599)).is_ok(), "what failed has used up nothing");
    assert!(error("n1", at(599)).contains("was used already"));
    invite(&pki, at(600));
    assert_eq!(registry(&pki).invited(at(601)), [node("n1")]);
}

#[test]
fn a_line_that_is_used_has_enrolled_nobody_before_the_certificate_has_arrived() {
    let (_directory, pki) = invited(at(0));
    let is_enrolled = |now| registry(&pki).is_enrolled(&node("n1"), at(now));
    let lost = |result| matches!(result, Err(InvitationError::Lost { .. }));
    assert_eq!(is_enrolled(1), Ok(false), "nobody has used it");
    pki.enrol(&node("n1"), &request(), at(1)).unwrap();
    assert_eq!(is_enrolled(599), Ok(false), "it may be on its way");
    assert!(lost(is_enrolled(601)), "nobody waits for it any more");
    arrive(&pki, "agent/n1");
    assert_eq!((is_enrolled(2), is_enrolled(601)), (Ok(true), Ok(true)));

    // What it had before counts for nothing.
    invite(&pki, at(700));
    assert_eq!(is_enrolled(701), Ok(false));
    pki.enrol(&node("n1"), &request(), at(701)).unwrap();
    assert_eq!(is_enrolled(702), Ok(false));
    assert!(lost(is_enrolled(1_301)));
    invite(&pki, at(1_400));
    assert!(matches!(is_enrolled(2_001), Err(InvitationError::Expired { .. })));
}

#[test]
fn names_in_a_request_count_for_nothing() {
    let (_directory, pki) = invited(at(0));
    let pem = pki.enrol(&node("n1"), &request(), at(1)).unwrap();
    let pem = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap();
    let certificate = pem.parse_x509().unwrap();
    assert!(!certificate.is_ca());
    let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert_eq!(names, [x509_parser::extensions::GeneralName::URI("spiffe://deadlight/agent/n1")]);
    assert_eq!(certificate.subject().to_string(), "CN=agent-n1");
}

#[test]
fn a_certificate_is_renewed_around_half_of_its_life() {
    let (_directory, pki) = invited(at(0));
    pki.enrol(&node("n1"), &request(), at(0)).unwrap();
    let who = identity("agent/n1");
    let registry = registry(&pki);
    assert!(!registry.is_due(&who, at(86_400 * 28 / 10)) && registry.is_due(&who, at(86_400 * 42 / 10)));
    assert!(!registry.is_due(&identity("agent/n2"), days(300)));
    assert_eq!(registry.renewable(&who, days(37)).len(), 1);
    assert_eq!(registry.renewable(&who, days(38)).len(), 0);
}

#[test]
fn a_revoked_identity_has_no_key_and_a_new_one_can_be_enrolled() {
    let (_directory, pki) = invited(at(0));
    pki.enrol(&node("n1"), &request(), at(0)).unwrap();
    let who = identity("agent/n1");
    let key = registry(&pki).latest()[0].key;
    assert_eq!(pki.update(at(1), |registry| Ok(registry.revoke(&who, at(1))?)).unwrap(), 1);
    let revoked = registry(&pki);
    assert_eq!((revoked.trust().generation, revoked.trust().revoked_keys().contains(&key)), (2, true));
    assert!(revoked.latest().is_empty() && revoked.renewable(&who, at(2)).is_empty());

    invite(&pki, at(2));
    pki.enrol(&node("n1"), &request(), at(3)).unwrap();
    assert_eq!(registry(&pki).latest().len(), 1);
    pki.update(days(60), |_| Ok(())).unwrap();
    let later = registry(&pki);
    assert_eq!((later.trust().generation, later.trust().revoked.len()), (3, 0), "long dead, so forgotten");
}

#[test]
fn the_ca_changes_step_by_step_and_back_and_cuts_nobody_off() {
    let (_directory, pki) = invited(at(0));
    let renew = || {
        pki.renew(&node("n1"), &request(), at(2)).unwrap();
        arrive(&pki, "agent/n1");
    };
    let hold = |generation| pki.update(at(2), |registry| Ok(registry.hold(&node("n1"), generation))).unwrap();
    let step = |back| pki.rotate(back, at(3)).map_err(|error| error.to_string());
    let authorities = || registry(&pki).trust().authorities.len();
    pki.enrol(&node("n1"), &request(), at(1)).unwrap();
    hold(1);
    assert!(step(true).unwrap_err().contains("no change of the CA"));

    assert!(matches!(step(false), Ok(Rotation::Prepared { .. })));
    assert_eq!((authorities(), registry(&pki).trust().generation), (2, 2));
    assert!(step(false).unwrap_err().contains("have not been told of the next CA yet and would be cut off: agent n1"));
    assert!(matches!(step(true), Ok(Rotation::Standby { former: None })));
    assert_eq!(authorities(), 1);

    assert!(matches!(step(false), Ok(Rotation::Prepared { .. })));
    hold(registry(&pki).trust().generation);
    assert!(matches!(step(false), Ok(Rotation::Switched { .. })));
    assert!(registry(&pki).is_due(&identity("agent/n1"), at(3)), "its CA signs no longer");
    assert!(step(false).unwrap_err().contains("would no longer be trusted: agent n1"));
    renew();
    assert!(!registry(&pki).is_due(&identity("agent/n1"), at(3)));
    assert!(matches!(step(true), Ok(Rotation::Prepared { .. })));
    assert!(step(true).unwrap_err().contains("would no longer be trusted: agent n1"), "it has one of the next CA");
    assert!(matches!(step(false), Ok(Rotation::Switched { .. })));
    assert!(matches!(step(false), Ok(Rotation::Standby { former: Some(_) })));
    assert_eq!(authorities(), 1);
    assert!(matches!(step(true), Ok(Rotation::Switched { .. })), "the former CA is still here");
    assert_eq!(authorities(), 2);
}

#[test]
fn a_certificate_that_got_lost_on_its_way_is_made_again_and_keeps_the_ca_in_place() {
    let (_directory, pki) = invited(at(0));
    let who = identity("agent/n1");
    pki.enrol(&node("n1"), &request(), at(0)).unwrap();
    arrive(&pki, "agent/n1");
    pki.renew(&node("n1"), &request(), days(5)).unwrap();
    assert!(registry(&pki).is_due(&who, days(5)), "what it is known to have is old");
    pki.renew(&node("n1"), &request(), days(5)).unwrap();
    arrive(&pki, "agent/n1");
    assert!(!registry(&pki).is_due(&who, days(5)));

    let step = |back| pki.rotate(back, days(5)).map_err(|error| error.to_string());
    step(false).unwrap();
    let told = registry(&pki).trust().generation;
    pki.update(days(5), |registry| Ok(registry.hold(&node("n1"), told))).unwrap();
    step(false).unwrap();
    pki.renew(&node("n1"), &request(), days(5)).unwrap();
    assert!(step(false).unwrap_err().contains("would no longer be trusted: agent n1"), "it may have the former one's");
    step(true).unwrap();
    assert!(step(true).unwrap_err().contains("would no longer be trusted: agent n1"), "it may have the next one's");
    assert_eq!(registry(&pki).renewable(&who, days(5)).len(), 4, "whichever it shows");
}

#[test]
fn what_changes_nothing_is_not_written() {
    let (directory, pki) = invited(at(0));
    let path = directory.path().join("registry.json");
    pki.issue(&identity("scanner/office-a"), 7, at(0)).unwrap();
    let inode = || std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
    let before = inode();
    pki.update(at(1), |_| Ok(())).unwrap();
    assert!(!pki.renew_own(&node("office-a"), at(1)).unwrap());
    assert_eq!(inode(), before);
    invite(&pki, at(2));
    assert_ne!(inode(), before);
}

#[test]
fn a_scanner_renews_its_own_certificate_and_keeps_its_key() {
    let (directory, pki) = invited(at(0));
    let name = node("office-a");
    let issued = pki.issue(&identity("scanner/office-a"), 7, at(0)).unwrap();
    let key = fs::read(&issued.key).unwrap();
    assert!(!pki.renew_own(&name, at(86_400)).unwrap());
    assert!(pki.renew_own(&name, days(5)).unwrap());
    assert_eq!(fs::read(&issued.key).unwrap(), key);
    assert_eq!(pki.credentials(&name).unwrap().validity().to, days(12));
    drop(directory);
}

#[test]
fn a_damaged_registry_is_refused_and_stays() {
    let (directory, pki) = invited(at(0));
    let path = directory.path().join("registry.json");
    fs::write(&path, "{\"schema\":").unwrap();
    assert!(matches!(pki.enrol(&node("n1"), &request(), at(1)), Err(PkiError::Registry { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"{\"schema\":");
}
