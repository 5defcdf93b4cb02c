//! The dependency directions of ARCHITECTURE.md, read off `cargo metadata` and the source.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Rooms that decide without touching the world.
const PURE: [&str; 49] = [
    "shared/src/allowlist.rs",
    "shared/src/doctor.rs",
    "shared/src/explained.rs",
    "shared/src/finding.rs",
    "shared/src/identity.rs",
    "shared/src/name.rs",
    "shared/src/observation.rs",
    "shared/src/operator.rs",
    "shared/src/own_host.rs",
    "shared/src/permit.rs",
    "shared/src/port.rs",
    "shared/src/port_set.rs",
    "shared/src/text.rs",
    "shared/src/wire",
    "scanner/src/alert/mod.rs",
    "scanner/src/alert/queue.rs",
    "scanner/src/alert/sink/body.rs",
    "scanner/src/alert/sink/letter.rs",
    "scanner/src/alert/sink/manner.rs",
    "scanner/src/alert/sink/template.rs",
    "scanner/src/alert/text.rs",
    "scanner/src/identify/describe.rs",
    "scanner/src/lease.rs",
    "scanner/src/probe",
    "scanner/src/assess",
    "scanner/src/prove",
    "scanner/src/pull/calls.rs",
    "scanner/src/round",
    "scanner/src/schedule.rs",
    "scanner/src/store/mod.rs",
    "scanner/src/view",
    "scanner/src/web/access.rs",
    "scanner/src/web/words.rs",
    "scanner/src/store/record.rs",
    "scanner/src/cli/diff/compare.rs",
    "scanner/src/cli/diff/saved.rs",
    "agent/src/api/backoff.rs",
    "agent/src/api/door.rs",
    "agent/src/doctor/facts.rs",
    "agent/src/doctor/judge.rs",
    "agent/src/ledger/permits.rs",
    "agent/src/metrics/text.rs",
    "agent/src/plan",
    "agent/src/explain",
    "agent/src/reconcile",
    "agent/src/gate/permit.rs",
    "agent/src/gate/lines.rs",
    "agent/src/firewall/nftables.rs",
    "agent/src/firewall/iptables",
];

/// What a pure room does not name.
const IMPURE: [&str; 15] = [
    "tokio",
    "socket2",
    "reqwest",
    "bollard",
    "axum",
    "sqlx",
    "std::fs",
    "std::process",
    "std::thread",
    "std::env",
    "TcpStream",
    "UdpSocket",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
];

#[test]
fn our_crates_depend_in_one_direction() {
    let metadata = metadata();
    let direct = direct_dependencies(&metadata);
    let ours = |name: &str| -> BTreeSet<String> {
        direct[name].iter().filter(|dependency| dependency.starts_with("deadlight-")).cloned().collect()
    };
    assert_eq!(ours("deadlight-shared"), BTreeSet::new());
    assert_eq!(ours("deadlight-scanner"), ["deadlight-shared".to_owned()].into());
    assert_eq!(ours("deadlight-agent"), ["deadlight-shared".to_owned()].into());
    for foreign in ["tokio", "clap", "socket2", "axum", "reqwest"] {
        assert!(!direct["deadlight-shared"].contains(foreign), "shared depends on {foreign}");
    }
}

#[test]
fn there_is_one_tls_provider() {
    // Not `cargo metadata`: it lists optional dependencies that no feature turns on.
    let tree = cargo(&["tree", "--workspace", "--prefix", "none", "--edges", "normal,build,dev"]);
    let all: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    for banned in ["ring", "openssl", "openssl-sys", "native-tls"] {
        assert!(!all.contains(banned), "{banned} is in the graph");
    }
    assert!(all.contains("aws-lc-rs"), "the list of packages was not read");
}

/// One feature that only tests turn on in a crate, and whatever is built on that crate is built twice by `make test`.
#[test]
fn programs_and_tests_are_built_of_the_same_packages() {
    let tree = |edges| -> BTreeSet<String> {
        let lines = cargo(&["tree", "--workspace", "--prefix", "none", "--format", "{p} {f}", "--edges", edges]);
        lines.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
    };
    let (programs, tests) = (tree("normal,build"), tree("normal,build,dev"));
    let differ: Vec<_> = programs.symmetric_difference(&tests).collect();
    assert!(differ.is_empty(), "what the tests add belongs to the dependencies of tests/Cargo.toml: {differ:#?}");
    assert!(programs.len() > 100, "the list of packages was not read: {programs:?}");
}

#[test]
fn the_crates_that_the_product_is_built_on_are_used() {
    for (name, room) in [
        ("tokio", "scanner/src"),
        ("socket2", "scanner/src"),
        ("reqwest", "scanner/src"),
        ("serde", "shared/src"),
        ("axum", "agent/src"),
        ("bollard", "agent/src"),
        ("pnet", "agent/src"),
    ] {
        let used = sources(&root().join(room))
            .iter()
            .any(|path| fs::read_to_string(path).unwrap().contains(&format!("{name}::")));
        assert!(used, "{name} does no work in {room}");
    }
}

#[test]
fn pure_rooms_touch_nothing() {
    for room in PURE {
        let files = sources(&root().join(room));
        assert!(!files.is_empty(), "{room} is gone: mend this list and ARCHITECTURE.md");
        for path in files.iter().filter(|path| !path.ends_with("tests.rs")) {
            let text = fs::read_to_string(path).unwrap();
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            let code = product.lines().map(str::trim).filter(|line| !line.starts_with("//"));
            for (number, line) in (1..).zip(code) {
                for word in IMPURE {
                    assert!(!line.contains(word), "{}: about line {number} names {word}: {line}", path.display());
                }
            }
        }
    }
}

/// The rest of the agent has it from `Permitted`, which asks for the operator's signature.
#[test]
fn what_an_order_allows_is_read_in_one_room() {
    let room = root().join("agent/src/ledger");
    for path in sources(&root().join("agent/src")).iter().filter(|path| !path.starts_with(&room)) {
        let text = fs::read_to_string(path).unwrap();
        assert!(!text.contains("order.allow"), "{} reads it as well", path.display());
    }
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap().contains("order.allow");
    assert!(sources(&room).iter().any(read), "it is read nowhere: mend this test");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata() -> Value {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    serde_json::from_str(&cargo(&["metadata", "--format-version", "1", "--filter-platform", &platform])).unwrap()
}

fn cargo(words: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    let output = command.args(words).args(["--locked", "--offline"]).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn packages(metadata: &Value) -> &Vec<Value> {
    metadata["packages"].as_array().unwrap()
}

/// Normal dependencies by package name; those of tests and builds do not count.
fn direct_dependencies(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let names = |package: &Value| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
        normal.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
    };
    packages(metadata).iter().map(|package| (package["name"].as_str().unwrap().to_owned(), names(package))).collect()
}

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let found = entries.flat_map(|entry| sources(&entry.path()));
    found.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}
