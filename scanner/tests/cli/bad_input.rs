//! Every refusal: message, exit status, and that nothing changed.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use crate::program::{Deployment, Ended, contents, run};

#[test]
fn ports_are_refused_by_name() {
    for (ports, wanted) in [
        ("0", "port 0 is out of range"),
        ("65536", "port 65536 is out of range"),
        ("443-80", "range 443-80 runs backwards"),
        ("80/sctp", "unknown protocol `sctp`"),
        ("http", "`http` is not a port number"),
        ("80,80", "80/tcp overlaps"),
    ] {
        run(&["scan", "127.0.0.1", "--ports", ports]).expect(2, &["--ports", wanted]);
    }
    run(&["scan", "127.0.0.1", "--udp", "80/tcp"]).expect(2, &["`80/tcp` has other than udp ports"]);
    run(&["scan", "127.0.0.1", "--allow", "22"]).expect(2, &["write 22/tcp or 22/udp"]);
    run(&["scan", "127.0.0.1", "--rate", "0"]).expect(2, &["use 1 to 1000000"]);
    run(&["scan", "127.0.0.1", "--method", "fin"]).expect(2, &["possible values: auto, syn, connect"]);
}

#[test]
fn targets_are_refused_by_name() {
    run(&["scan", "10.0.0.0/8"]).expect(2, &["10.0.0.0/8 holds more than 4096 addresses"]);
    run(&["scan", "127.0.0.300"]).expect(2, &["`127.0.0.300` is neither an address nor a CIDR block"]);
    run(&["scan"]).expect(2, &["<TARGET>"]);
    run(&[]).expect(2, &["Usage"]);
}

#[test]
fn an_allowlist_is_refused_by_entry() {
    let deployment = Deployment::new(&[]);
    let path = deployment.path("allow.toml");
    let scan = |text: &str| {
        fs::write(&path, text).unwrap();
        run(&["scan", "127.0.0.1", "--ports", "1", "--allowlist", path.to_str().unwrap()])
    };
    let entry = "[[allow]]\nports = \"80/tcp\"\nnodes = [\"*\"]\nowner = \"web\"\nreason = \"site\"\n";
    scan(&entry.repeat(2)).expect(2, &["entries 1 and 2 overlap: both cover 80/tcp"]);
    scan(&entry.replace("owner", "ownr")).expect(2, &["line 4: unknown field `ownr`", "did you mean `owner`?"]);
    scan(&entry.replace("80/tcp", "80")).expect(2, &["line 2: `ports`: `80` names no protocol"]);
    let expired = format!("{entry}expires = 2020-01-01\n");
    scan(&expired).expect(0, &["[[allow]] entry 1 (80/tcp) expired on 2020-01-01 and no longer holds"]);
}

#[test]
fn what_no_agent_can_explain_is_refused_by_name() {
    let deployment = Deployment::new(&["n1"]);
    deployment.configure(&[1], "agent = \"https://127.0.0.1:1\"");
    for (port, wanted) in [
        ("n1:8080", "neither a finding's id"),
        ("n2:8080/tcp", "hint: it has n1"),
        ("n1:8080/tcp", "hint: on the node: deadlight-agent explain 8080/tcp"),
        ("0123456789abcdef", "there is no database"),
    ] {
        deployment.run(&["explain", port]).expect(2, &[wanted]);
    }
    deployment.configure(&[1], "");
    deployment.run(&["explain", "n1:8080/tcp"]).expect(2, &["n1 has no agent", "hint: deadlight-scanner enroll n1"]);
}

#[test]
fn a_configuration_is_refused_by_line_and_nearest_key() {
    let deployment = Deployment::new(&["n1"]);
    deployment.configure(&[1], "agent = \"https://127.0.0.1:7443\"");
    deployment.run(&["check-config"]).expect(0, &[]);
    let good = fs::read_to_string(deployment.path("scanner.toml")).unwrap();
    let before = contents(deployment.path("").as_path()).len();
    for (from, to, wanted) in [
        ("udp =", "upd =", &["line 5: unknown field `upd`", "did you mean `udp`?"] as &[_]),
        ("udp = \"\"", "udp = \"0\"", &["line 5: `udp`: port 0 is out of range"]),
        ("tcp = \"1\"", "tcp = \"443-80\"", &["line 4: `tcp`: range 443-80 runs backwards"]),
        ("https://", "http://", &["agent of node n1: `http://127.0.0.1:7443` is not like"]),
        ("\"office-a\"", "\"office/a\"", &["line 2: `id`: `office/a` is not a name"]),
        ("\"office-a\"", "\"office-b\"", &["spiffe://deadlight/scanner/office-a, but [vantage] id is office-b"]),
        ("[tls]", "[heartbeat]\nurl = \"http://198.51.100.9/\"\n[tls]", &["url of [heartbeat] is not like https://"]),
        ("[tls]", "[heartbeat]\n[tls]", &["[heartbeat] needs `url` or `url_file`, and not both"]),
        ("[tls]", "[wb]\n[tls]", &["unknown field `wb`", "did you mean `web`?"]),
        ("[tls]", "[web]\ntoken_file = \"no\"\n[tls]", &["failed to read the token in", "hint: openssl rand -hex 32"]),
        ("[tls]", "[store]\nfile = \"x\"\n[tls]", &["unknown field `file`"]),
        ("[tls]", "[store]\nurl = \"mysql:x\"\n[tls]", &["`url` of [store] is neither like sqlite:deadlight.db nor"]),
        ("[tls]", "[store]\nkeep = \"1h\"\n[tls]", &["[store] keep = 1h: must be at least 24h"]),
        ("[tls]", "[store]\nmost = 1\n[tls]", &["[store] most = 1: must be at least 16 (MiB)"]),
        ("[tls]", "[prove]\nvantages = 3\n[tls]", &["[prove] vantages = 3: must be 1 or 2"]),
        ("[tls]", "[prove]\nvantages = 2\n[tls]", &["[prove] vantages = 2 needs a second scanner", "PostgreSQL"]),
        ("\"office-a\"", "\"office-a\"\nlease = \"1s\"", &["[vantage] lease = 1s: must be between 5s and 1h"]),
        ("ca.crt", "no.crt", &["no.crt", "hint: deadlight-scanner pki issue-scanner office-a"]),
    ] {
        deployment.write(&good.replacen(from, to, 1));
        for words in [&["check-config"] as &[_], &["run", "--once"]] {
            let ended = deployment.run(words).expect(2, wanted);
            assert_eq!(ended.stdout, "");
        }
    }
    assert_eq!(contents(deployment.path("").as_path()).len(), before, "no database was begun");
    run(&["check-config", "--config", "/nonexistent.toml"]).expect(2, &["failed to read /nonexistent.toml", "hint:"]);
}

#[test]
fn the_printed_configuration_is_a_good_one() {
    let printed = run(&["--print-config"]).expect(0, &[]);
    let deployment = Deployment::new(&[]);
    deployment.write(&printed.stdout.replace("\"pki\"", "\".\""));
    deployment.run(&["check-config"]).expect(0, &[]);
}

#[test]
fn a_key_that_others_may_read_or_that_is_missing_is_refused() {
    let deployment = Deployment::new(&["n1"]);
    deployment.configure(&[1], "agent = \"https://127.0.0.1:7443\"");
    let key = deployment.path("scanner-office-a.key");
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    let hint = format!("hint: chmod 600 {}", key.display());
    deployment.run(&["run", "--once"]).expect(2, &["is readable by others (mode 640)", &hint]);
    fs::remove_file(&key).unwrap();
    deployment.run(&["run", "--once"]).expect(2, &["failed to look at", "hint: deadlight-scanner pki issue-scanner"]);
}

#[test]
fn the_pki_overwrites_nothing() {
    let deployment = Deployment::new(&["n1"]);
    let before = contents(deployment.path("").as_path());
    for words in [["init"].as_slice(), &["issue-scanner", "office-a"], &["issue-agent", "n1"]] {
        deployment.pki(words).expect(2, &["is there already, nothing was written", "hint:"]);
    }
    deployment.pki(&["issue-agent", "../n2"]).expect(2, &["`../n2` is not a name"]);
    deployment.pki(&["issue-agent", "n2", "--days", "0"]).expect(2, &["--days"]);
    assert_eq!(contents(deployment.path("").as_path()), before);
    let missing = deployment.path("nowhere");
    let dir = missing.to_str().unwrap();
    run(&["pki", "issue-agent", "n1", "--dir", dir]).expect(2, &["ca.crt", "hint: make the CA first"]);
    assert!(!missing.exists());
}

#[test]
fn a_damaged_registry_is_refused_and_stays() {
    let deployment = Deployment::new(&["n1"]);
    deployment.write(
        "[vantage]\nid = \"office-a\"\n[pki]\ndirectory = \".\"\n\
         [[node]]\nname = \"n1\"\naddresses = [\"127.0.0.1\"]\nagent = \"https://127.0.0.1:7443\"\n",
    );
    std::fs::write(deployment.path("registry.json"), "{").unwrap();
    let before = contents(&deployment.path(""));
    for words in [["check-config"].as_slice(), &["run", "--once"], &["enroll", "n1"]] {
        deployment.run(words).expect(2, &["registry.json is damaged", "hint: restore it from a backup"]);
    }
    assert_eq!(contents(&deployment.path("")), before);
}

#[test]
fn a_damaged_state_is_refused_and_stays() {
    let deployment = Deployment::new(&[]);
    deployment.configure(&[1], "");
    fs::write(deployment.path("deadlight.db"), "no database at all\n".repeat(300)).unwrap();
    let before = contents(deployment.path("").as_path());
    for words in [["run", "--once"].as_slice(), &["status"], &["findings"], &["history"]] {
        deployment.run(words).expect(2, &["failed to open the database", "deadlight.db", "hint: a file: restore it"]);
    }
    assert_eq!(contents(deployment.path("").as_path()), before);
}

#[test]
fn an_agent_that_cannot_be_reached_leaves_its_findings_open() {
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = open.local_addr().unwrap().port();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let deployment = Deployment::new(&[]);
    deployment.configure(&[port], &format!("agent = \"https://127.0.0.1:{nobody}\""));
    let ended = deployment.run(&["run", "--once"]).expect(1, &[]);
    for wanted in [
        format!("n1 127.0.0.1 {port}/tcp: not on the allowlist"),
        format!("n1 (https://127.0.0.1:{nobody}/): no report, its findings stay open"),
        "Connection refused".to_owned(),
        "unexpected ports: 0 proven closed, 0 unproven, 1 still open".to_owned(),
    ] {
        assert!(ended.stdout.contains(&wanted), "no {wanted:?} in {ended:#?}");
    }
    let findings = deployment.run(&["findings", "--output", "json"]).expect(1, &[]);
    assert!(findings.stdout.contains("\"status\": \"open\""), "{findings:?}");
    let status = deployment.run(&["status"]).expect(1, &[]);
    assert!(status.stdout.contains("Open and not allowed: 1 port.") && status.stdout.contains("never"), "{status:?}");
    assert!(status.stdout.contains("failed to reach the agent"), "{status:?}");
}

#[test]
fn a_full_disk_is_called_so_and_loses_nothing() {
    let deployment = Deployment::new(&[]);
    deployment.configure(&[1], "");
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    // As the disk of a database on which nobody works: a start needs some room beside it.
    command.arg(
        "mount -t tmpfs -o size=1m none \"$2\" && \"$0\" run --once --config \"$1\" >/dev/null && \
         before=$(cksum <\"$2\"/deadlight.db) && cat /dev/zero 2>/dev/null >\"$2\"/fill; \
         \"$0\" run --once --config \"$1\"; status=$?; [ \"$before\" = \"$(cksum <\"$2\"/deadlight.db)\" ] || status=99; \
         rm \"$2\"/fill; \"$0\" status --config \"$1\" >/dev/null || status=98; exit $status",
    );
    let disk = deployment.path("disk");
    fs::create_dir(&disk).unwrap();
    let text = fs::read_to_string(deployment.path("scanner.toml")).unwrap();
    deployment.write(&format!("{text}[store]\nurl = \"sqlite:disk/deadlight.db\"\n"));
    command.arg(env!("CARGO_BIN_EXE_deadlight-scanner")).arg(deployment.path("scanner.toml")).arg(&disk);
    let ended = Ended::of(command.output().unwrap());
    ended.expect(2, &["failed to open the database", "hint: see to it that the disk has room"]);
}
