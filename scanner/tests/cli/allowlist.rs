//! The operator's key and what it signs, by the commands alone.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use crate::program::{Deployment, Ended, contents};

const ALLOW: &str = "[[allow]]\nports = \"80,443/tcp\"\nnodes = [\"*\"]\nowner = \"web\"\nreason = \"site\"\n\
    [[allow]]\nports = \"8080/tcp\"\nlabels = [\"edge\"]\nowner = \"infra\"\nreason = \"move\"\nexpires = 2999-12-24\n";

/// A deployment with an operator's key, and `allow` in its configuration.
fn deployment(allow: &str) -> Deployment {
    let deployment = Deployment::new(&["n1"]);
    let key = deployment.path("operator.key");
    deployment.pki(&["operator-key", key.to_str().unwrap()]).expect(0, &[]);
    configure(&deployment, allow);
    deployment
}

fn configure(deployment: &Deployment, allow: &str) {
    let path = deployment.configure(&[1], "agent = \"https://127.0.0.1:7443\"\nlabels = [\"edge\"]");
    fs::write(&path, fs::read_to_string(&path).unwrap() + allow).unwrap();
}

fn sign(deployment: &Deployment, words: &[&str]) -> Ended {
    let key = deployment.path("operator.key");
    deployment.run(&[&["allowlist", "sign", "--key", key.to_str().unwrap()], words].concat())
}

#[test]
fn what_is_signed_is_shown_before_and_checked_after() {
    let deployment = deployment(ALLOW);
    let said = deployment.run(&["check-config"]).expect(0, &[]).stdout;
    assert!(said.contains("permits.json is not there: agents that know an operator's key open nothing"), "{said}");

    let before = contents(&deployment.path(""));
    let said = sign(&deployment, &["--dry-run"]).expect(0, &[]).stdout;
    assert_eq!(said, "+ n1: 80/tcp,443/tcp\n+ n1: 8080/tcp until 2999-12-24\nnothing was written\n");
    assert_eq!(contents(&deployment.path("")), before);
    let said = sign(&deployment, &[]).expect(0, &[]).stdout;
    assert!(said.contains("permits.json (number 1"), "{said}");
    let said = deployment.run(&["check-config"]).expect(0, &[]).stdout;
    assert!(!said.contains("warning") && !said.contains("note"), "{said}");
    let said = sign(&deployment, &[]).expect(0, &[]).stdout;
    assert!(said.starts_with("nothing to sign"), "{said}");

    let operator = deployment.path("operator.pub");
    let show = ["allowlist", "show", "--operator", operator.to_str().unwrap()];
    let said = deployment.run(&show).expect(0, &[]).stdout;
    assert!(said.ends_with("n1: 80/tcp,443/tcp; 8080/tcp until 2999-12-24\nsignatures: good\n"), "{said}");

    configure(&deployment, &ALLOW.replace("80,443/tcp", "80,8443/tcp"));
    let said = deployment.run(&["check-config"]).expect(0, &[]).stdout;
    assert!(said.contains("warning: n1: 8443/tcp is allowed and not signed"), "{said}");
    assert!(said.contains("warning: n1: 443/tcp is signed and no longer allowed"), "{said}");

    let file = deployment.path("permits.json");
    let widened = fs::read_to_string(&file).unwrap().replacen("8080/tcp", "8000-8099/tcp", 1);
    fs::write(&file, widened).unwrap();
    let said = deployment.run(&show).expect(1, &[]).stdout;
    assert!(said.ends_with("signatures: NOT by this key: n1\n"), "{said}");
    let said = sign(&deployment, &[]).expect(0, &[]).stdout;
    assert!(said.contains("the former one was signed by another key"), "{said}");
    deployment.run(&show).expect(0, &[]);
}

#[test]
fn what_must_not_be_signed_is_refused_and_nothing_is_written() {
    let deployment = deployment(&ALLOW.replace("8080/tcp", "8000-8100/tcp"));
    let before = contents(&deployment.path(""));
    sign(&deployment, &[])
        .expect(2, &["[[allow]] entry 2 (8000-8100/tcp) has a range of more than 100 ports", "--wide"]);
    configure(&deployment, &ALLOW.replace("8080/tcp", "1-65535/udp"));
    sign(&deployment, &["--wide"]).expect(2, &["failed to sign the permit of n1", "allows every udp port"]);
    configure(&deployment, &ALLOW.replace("8080/tcp", "8000-8100/tcp"));
    let key = deployment.path("operator.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    sign(&deployment, &["--wide"]).expect(2, &["it is readable by others (mode 644): chmod 600"]);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(contents(&deployment.path("")), before);
    sign(&deployment, &["--wide"]).expect(0, &[]);

    fs::write(deployment.path("permits.json"), "{").unwrap();
    sign(&deployment, &["--wide"]).expect(2, &["permits.json is no signed allowlist", "hint: restore it"]);
    deployment.run(&["check-config"]).expect(2, &["permits.json is no signed allowlist"]);
}

#[test]
fn an_operators_key_is_made_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let init = ["pki", "init", "--dir", &path("pki"), "--operator-key", &path("operator.key")];
    let said = crate::program::run(&init).expect(0, &[]).stdout;
    assert!(said.contains("take ") && said.contains("operator.pub"), "{said}");
    let before = (contents(&directory.path().join("pki")), fs::read(path("operator.key")).unwrap());
    crate::program::run(&init).expect(2, &["is there already, nothing was written"]);
    crate::program::run(&["pki", "operator-key", &path("operator.key"), "--dir", &path("pki")])
        .expect(2, &["is there already, nothing was written"]);
    assert_eq!((contents(&directory.path().join("pki")), fs::read(path("operator.key")).unwrap()), before);
}
