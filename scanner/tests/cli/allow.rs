//! `allow`, as somebody uses it who was woken by an alert.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::program::{Deployment, run};

const MEANT: [&str; 7] = ["allow", "8080/tcp", "--node", "n1", "--owner", "infra", "--reason"];

fn words<'a>(more: &[&'a str]) -> Vec<&'a str> {
    MEANT.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn an_entry_is_shown_and_written_only_when_that_is_asked_for() {
    let deployment = Deployment::new(&[]);
    let path = deployment.configure(&[8080], "");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::read_to_string(&path).unwrap();
    let reason = "a \"migration\"\nof [[allow]] = é";
    let shown = deployment.run(&words(&[reason, "--expires", "2999-12-24"])).expect(0, &[]).stdout;
    assert!(shown.contains("ports = \"8080/tcp\"\nnodes = [\"n1\"]\nowner = \"infra\"\n"), "{shown}");
    assert!(shown.contains("expires = 2999-12-24\n") && shown.contains("--write adds it"), "{shown}");
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    deployment.run(&words(&[reason, "--expires", "2999-12-24", "--write"])).expect(0, &[]);
    let after = fs::read_to_string(&path).unwrap();
    assert!(after.starts_with(before.trim_end()) && after.len() > before.len(), "{after}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    deployment.run(&["check-config"]).expect(0, &[]);
    let again = deployment.run(&words(&[reason, "--write"]));
    again.expect(2, &["overlap", "hint: change the entry that is there"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), after);
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_written() {
    let deployment = Deployment::new(&[]);
    let path = deployment.configure(&[8080], "");
    let before = fs::read_to_string(&path).unwrap();
    for (words, wanted) in [
        (words(&["x", "--expires", "2001-01-01", "--write"]), "--expires 2001-01-01 is over"),
        (words(&["", "--write"]), "reason"),
        (vec!["allow", "8080/tcp", "--owner", "x", "--reason", "y", "--write"], "--node"),
        (vec!["allow", "0/tcp", "--node", "n1", "--owner", "x", "--reason", "y", "--write"], "port 0 is out of range"),
        (vec!["allow", "8080/tcp", "--node", "n9", "--owner", "x", "--reason", "y", "--write"], "n9"),
        (vec!["allow", "8080/tcp", "--label", "nowhere", "--owner", "x", "--reason", "y", "--write"], "nowhere"),
    ] {
        deployment.run(&words).expect(2, &[wanted]);
        assert_eq!(fs::read_to_string(&path).unwrap(), before, "{words:?}");
    }
    let words = ["allow", "1/tcp", "--everywhere", "--owner", "x", "--reason", "y", "--config", "/nonexistent.toml"];
    run(&words).expect(2, &["failed to read /nonexistent.toml"]);
}
