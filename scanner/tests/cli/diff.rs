//! `diff` of scans that were saved before.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{Deployment, Ended, program, run};

/// Saved scans in a directory of their own.
struct Scans(TempDir);

impl Scans {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn save(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Scans `ports` of 127.0.0.1 and saves what the program prints as `output`.
    fn scan(&self, name: &str, ports: &str, output: &str) -> PathBuf {
        let ended = run(&["scan", "127.0.0.1", "--ports", ports, "--output", output]);
        assert!(matches!(ended.status, 0 | 1), "{ended:#?}");
        self.save(name, &ended.stdout)
    }
}

fn diff(before: &Path, after: &Path, more: &[&str]) -> Ended {
    Ended::of(program().arg("diff").args([before, after]).args(more).output().unwrap())
}

fn json_of(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Two ports, the second of them without a listener.
fn open_and_shut() -> (TcpListener, u16, u16) {
    let [open, shut] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [open_port, shut_port] = [&open, &shut].map(|listener| listener.local_addr().unwrap().port());
    drop(shut);
    (open, open_port, shut_port)
}

#[test]
fn a_listener_opens_and_goes_between_two_scans() {
    let (scans, (_open, open_port, port)) = (Scans::new(), open_and_shut());
    let ports = format!("{open_port},{port}");
    let before = scans.scan("before.json", &ports, "json");
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let after = scans.scan("after.jsonl", &ports, "jsonl");
    drop(listener);

    let found = json_of(&diff(&before, &after, &["--output", "json"]).expect(1, &[]));
    let change = json!({
        "change": "opened", "node": "127.0.0.1", "address": "127.0.0.1", "port": port, "protocol": "tcp",
        "before": "closed|filtered", "after": "open",
    });
    assert_eq!(found["schema"], "deadlight.diff/v1");
    assert_eq!(found["changes"], json!([change]));
    assert_eq!(found["summary"]["equal"], false);
    let table = diff(&before, &after, &[]).expect(1, &[]).stdout;
    for wanted in ["opened", &format!("{port}/tcp"), "closed|filtered", "1 opened, 0 gone, 0 changed, 0 unclear."] {
        assert!(table.contains(wanted), "no {wanted:?} in {table}");
    }
    assert!(!table.contains(&format!("{open_port}/tcp")) && !table.contains('\x1b'), "{table:?}");

    let back = json_of(&diff(&after, &before, &["--output", "json"]).expect(1, &[]));
    assert_eq!((&back["changes"][0]["change"], &back["summary"]["gone"]), (&"gone".into(), &1.into()));
}

#[test]
fn equal_scans_end_with_0_and_standard_input_is_one_of_them() {
    let (scans, (_open, open_port, port)) = (Scans::new(), open_and_shut());
    let ports = format!("{open_port},{port}");
    let [before, after] = ["before", "after"].map(|name| scans.scan(name, &ports, "json"));
    let equal = diff(&before, &after, &[]).expect(0, &[]).stdout;
    assert!(equal.ends_with("No difference.\n"), "{equal}");
    for paths in [[Path::new("-"), &after], [&before, Path::new("-")]] {
        let mut piped = program();
        piped.arg("diff").args(paths).args(["--output", "json"]).stdin(File::open(&before).unwrap());
        let piped = Ended::of(piped.output().unwrap()).expect(0, &[]);
        assert_eq!(json_of(&piped)["summary"]["equal"], true);
    }
}

#[test]
fn a_port_that_was_not_scanned_is_not_gone() {
    let (scans, (_open, open_port, port)) = (Scans::new(), open_and_shut());
    let wide = scans.scan("wide", &format!("{open_port},{port}"), "json");
    let narrow = scans.scan("narrow", &port.to_string(), "json");
    let found = json_of(&diff(&wide, &narrow, &["--output", "json"]).expect(1, &[]));
    assert_eq!(found["changes"][0]["change"], "unclear");
    assert_eq!(found["changes"][0]["after"], "not-scanned");
    let table = diff(&wide, &narrow, &[]).expect(1, &[]).stdout;
    assert!(table.contains(&format!("before: only here scanned: {open_port}/tcp")), "{table}");
}

#[test]
fn an_address_that_could_not_be_asked_is_one_row() {
    let scans = Scans::new();
    let mut alone = std::process::Command::new("unshare");
    alone.args(["--user", "--map-root-user", "--net"]).arg(program().get_program());
    alone.args(["scan", "127.0.0.1", "--ports", "1-1000", "--output", "json"]);
    let blind = Ended::of(alone.output().unwrap()).expect(3, &[]);
    let blind = scans.save("blind", &blind.stdout);
    let mut text: Value = serde_json::from_str(&fs::read_to_string(&blind).unwrap()).unwrap();
    text["observations"] = json!([]);
    text["summary"]["complete"] = true.into();
    let clean = scans.save("clean", &text.to_string());
    let table = diff(&clean, &blind, &[]).expect(1, &[]).stdout;
    let rows: Vec<&str> = table.lines().filter(|line| line.contains("unclear ")).collect();
    assert_eq!(rows.len(), 1, "{table}");
    assert!(rows[0].contains("1-1000/tcp") && table.contains("after: incomplete"), "{table}");
    diff(&blind, &blind, &[]).expect(0, &[]);
}

#[test]
fn bad_input_is_refused_and_nothing_else_is_said() {
    let (scans, (_open, open_port, _)) = (Scans::new(), open_and_shut());
    let good = scans.scan("good", &open_port.to_string(), "json");
    let text = fs::read_to_string(&good).unwrap();
    let lines = fs::read_to_string(scans.scan("lines", &open_port.to_string(), "jsonl")).unwrap();
    let save = "hint: save a scan with: deadlight-scanner scan TARGET --output json > FILE";
    for (bad, wanted) in [
        ("", &["is no saved scan: it is empty", save] as &[_]),
        ("PORT STATE", &["is no saved scan: it is not JSON", save]),
        (&text[..text.len() / 2], &["it ends too early", "hint: let the scan end"]),
        (lines.lines().next().unwrap(), &["it has no schema", save]),
        (&text.replace("scan/v1", "scan/v9"), &["deadlight.scan/v9", "hint: compare them with the version"]),
        (&text.replace("deadlight.scan/v1", "x\\u001b[2J"), &["its schema is `x\\u{1b}[2J`", save]),
        (&text.replace("\"127.0.0.1\"", "\"\\u001b\""), &["\\u{1b}", save]),
        (&text.repeat(2), &["it holds more than one scan", "hint: compare one scan"]),
    ] {
        let bad = scans.save("b\x1bad", bad);
        for [before, after] in [[&bad, &good], [&good, &bad]] {
            let ended = diff(before, after, &[]).expect(2, wanted).expect(2, &["b\\u{1b}ad"]);
            assert_eq!(ended.stdout, "");
            assert!(!ended.stderr.contains('\x1b'), "{ended:?}");
        }
    }
    diff(&scans.path("none"), &good, &[]).expect(2, &["failed to read ", "No such file", save]);
    diff(scans.0.path(), &good, &[]).expect(2, &["failed to read ", "Is a directory"]);
    run(&["diff", "-", "-"]).expect(2, &["both scans are to come from standard input", "hint: give a file"]);
    run(&["diff", good.to_str().unwrap()]).expect(2, &["<B>"]);
}

#[test]
fn without_files_the_last_two_complete_sweeps_are_compared() {
    let (open, open_port, shut_port) = open_and_shut();
    let deployment = Deployment::new(&[]);
    // It answers each time, so that nobody is blind.
    let always = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = [always.local_addr().unwrap().port(), open_port, shut_port];
    deployment.configure(&ports, "");
    deployment.run(&["diff"]).expect(2, &["hint: `deadlight-scanner run` makes it"]);
    deployment.run(&["run", "--once"]).expect(1, &[]);
    deployment.run(&["diff"]).expect(2, &["remembers 1 complete sweeps, and two are needed", "hint: "]);
    deployment.run(&["run", "--once"]).expect(1, &[]);
    let same = deployment.run(&["diff"]).expect(0, &[]);
    assert!(same.stdout.contains("the sweep before: seen from office-a"), "{same:?}");
    drop(open);
    let _open = TcpListener::bind(("127.0.0.1", shut_port)).unwrap();
    deployment.run(&["run", "--once"]).expect(1, &[]);
    let ended = deployment.run(&["diff", "--output", "json"]).expect(1, &[]);
    let kind = |port: u16| {
        let changes = json_of(&ended)["changes"].as_array().unwrap().clone();
        changes.iter().find(|change| change["port"] == port).map(|change| change["change"].clone())
    };
    assert_eq!(ports.map(kind), [None, Some(json!("gone")), Some(json!("opened"))], "{ended:?}");
    deployment.configure(&[&ports[..], &[1]].concat(), "");
    deployment.run(&["run", "--once"]).expect(1, &[]);
    let other = deployment.run(&["diff"]).expect(1, &[]);
    assert!(other.stdout.contains("does not say what was scanned"), "{other:?}");
}

#[test]
fn a_scan_that_is_too_large_is_refused() {
    let scans = Scans::new();
    let path = scans.path("large");
    // A hole: it takes no room on the disk.
    File::create(&path).unwrap().set_len((256 << 20) + 1).unwrap();
    assert!(path.metadata().unwrap().blocks() < 1_000);
    let ended = diff(&path, &path, &[]).expect(2, &["is too large: a scan of more than 256 MiB", "hint:"]);
    assert_eq!(ended.stdout, "");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (scans, (_open, open_port, _)) = (Scans::new(), open_and_shut());
    let scan = scans.scan("scan", &open_port.to_string(), "json");
    for output in ["table", "json"] {
        let mut diff = program();
        diff.arg("diff").args([&scan, &scan]).args(["--output", output]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut diff = diff.spawn().unwrap();
        drop(diff.stdout.take());
        let ended = diff.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), ended.stderr), (Some(0), Vec::new()));
    }
}
