//! `doctor`, `completions` and `man`.

use std::net::TcpListener;
use std::process::Command;

use serde_json::Value;

use crate::program::{Deployment, Ended, is_run_alone, run};

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    if is_run_alone("doctor::what_is_wrong_is_named_with_what_to_do") {
        return;
    }
    let control = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = control.local_addr().unwrap().port();
    let deployment = Deployment::new(&["n1"]);
    deployment.configure(&[1], &format!("agent = \"https://127.0.0.1:1\"\ncontrol = \"{port}/tcp\""));
    let text = std::fs::read_to_string(deployment.path("scanner.toml")).unwrap();
    let more = "[[node]]\nname = \"n2\"\naddresses = [\"127.0.0.2\"]\ncontrol = \"1/tcp\"\n\
                [[node]]\nname = \"n3\"\naddresses = [\"198.51.100.3\"]\n\
                [[allow]]\nports = \"80/tcp\"\nnodes = [\"n1\"]\nowner = \"x\"\nreason = \"y\"\nexpires = 2020-01-01\n";
    deployment.write(&format!("{text}{more}"));
    let ended = deployment.run(&["doctor"]).expect(1, &[]);
    for wanted in [
        &format!("ok n1 127.0.0.1: {port}/tcp answers\n"),
        "?? database: ",
        "   hint: deadlight-scanner run --once makes it\n",
        "!! n2 127.0.0.2: 1/tcp does not answer, so silence proves nothing",
        "!! n3 198.51.100.3: there is no way to it",
        "   hint: ip route get 198.51.100.3\n",
        "!! agent of n1: ",
        "?? agent of n2: none: findings are only shown\n",
        "?? allowlist: [[allow]] entry 1 (80/tcp) expired on 2020-01-01",
    ] {
        assert!(ended.stdout.contains(wanted), "no {wanted:?} in {ended:#?}");
    }

    deployment.configure(&[1], &format!("control = \"{port}/tcp\""));
    deployment.run(&["run", "--once"]).expect(0, &[]);
    let ended = deployment.run(&["doctor", "--output", "json"]).expect(0, &[]);
    let document: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(document["schema"], "deadlight.doctor/v1");
    let found = document["found"].as_array().unwrap();
    let is =
        |grade: &str, subject: &str| found.iter().any(|found| found["grade"] == grade && found["subject"] == subject);
    assert!(is("well", "database") && is("well", "sweeps") && is("well", "n1 127.0.0.1"), "{document:#}");
    assert!(found.iter().all(|found| found["grade"] != "wrong"), "{document:#}");
    deployment.run(&["doctor", "--config", "none.toml"]).expect(2, &[]);
}

#[test]
fn a_support_bundle_has_everything_but_secrets() {
    if is_run_alone("doctor::a_support_bundle_has_everything_but_secrets") {
        return;
    }
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let deployment = Deployment::new(&["n1"]);
    let path = deployment.configure(&[open.local_addr().unwrap().port()], "");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(deployment.path("key"), "S3CRET-key").unwrap();
    std::fs::write(deployment.path("token"), "S3CRET-token-of-the-page").unwrap();
    let dead = "http://127.0.0.1:1/S3CRET";
    deployment.write(&format!(
        "{text}[[alert]]\nkind = \"webhook\"\nurl = \"{dead}?x=S3CRET\"\n[[alert]]\nkind = \"pagerduty\"\nkey_file = \"key\"\nurl = \"{dead}\"\n\
         [heartbeat]\nurl = \"http://me:S3CRET@127.0.0.1:1/\"\n[web]\ntoken_file = \"token\"\n"
    ));
    let bundle = || -> Value {
        let ended = deployment.run(&["support-bundle"]).expect(0, &[]);
        assert!(!ended.stdout.contains("S3CRET") && !ended.stderr.contains("S3CRET"), "{ended:?}");
        serde_json::from_str(&ended.stdout).unwrap()
    };
    let before = bundle();
    assert!(before["memory"]["error"].as_str().unwrap().starts_with("there is no database"), "{before:#}");
    let mut running = deployment.spawn(&["run"]);
    while bundle()["memory"]["findings"].as_array().is_none_or(Vec::is_empty) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    running.kill().unwrap();
    running.wait().unwrap();
    let after = bundle();
    assert_eq!(after["schema"], "deadlight.support/v1");
    assert_eq!(after["configuration"]["alert"][0]["url"], "http://127.0.0.1:1");
    assert_eq!(after["configuration"]["vantage"]["id"], "office-a");
    assert!(after["memory"]["status"]["open"] == 1 && after["doctor"]["found"][0]["subject"] == "packets", "{after:#}");
    deployment.write("[vantage]\nid = \"x\"\nnode = 'http://me:S3CRET@127.0.0.1'\n");
    let broken = bundle();
    assert!(broken["doctor"]["error"].as_str().unwrap().contains("unknown field `node`"), "{broken:#}");
}

#[test]
fn a_full_disk_is_named_beside_the_database_that_it_keeps_shut() {
    let deployment = Deployment::new(&[]);
    let path = deployment.configure(&[1], "");
    let text = std::fs::read_to_string(&path).unwrap();
    // In namespaces of its own: the disk is as small as that, and nobody else sees it.
    let script = "mount -t tmpfs -o size=1m tmpfs full && \"$0\" run --once --config \"$1\" >/dev/null; \
                  head -c 2M /dev/zero >full/fill 2>/dev/null; \"$0\" doctor --config \"$1\"";
    std::fs::create_dir(deployment.path("full")).unwrap();
    deployment.write(&format!("{text}[store]\nurl = \"sqlite:full/deadlight.db\"\n"));
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c", script]);
    command.arg(env!("CARGO_BIN_EXE_deadlight-scanner")).arg(&path).current_dir(deployment.path(""));
    let ended = Ended::of(command.output().unwrap()).expect(1, &[]);
    for wanted in ["!! database: failed to open the database", "?? disk: 0 MiB free for ", "hint: make room"] {
        assert!(ended.stdout.contains(wanted), "no {wanted:?} in {ended:#?}");
    }
}

#[test]
fn shells_and_readers_are_told_of_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).expect(0, &[]).stdout.contains("check-config"), "{shell}");
    }
    run(&["completions", "cmd"]).expect(2, &["invalid value 'cmd'"]);
    assert!(run(&["man"]).expect(0, &[]).stdout.contains(".TH deadlight"), "no page");
    let directory = tempfile::tempdir().unwrap();
    run(&["man", "--dir", directory.path().to_str().unwrap()]).expect(0, &[]);
    for page in ["deadlight-scanner.1", "deadlight-scanner-run.1", "deadlight-scanner-pki-init.1"] {
        assert!(directory.path().join(page).exists(), "{page}");
    }
    run(&["man", "--dir", "/nonexistent"]).expect(2, &["failed to write pages", "hint: name a directory"]);
}
