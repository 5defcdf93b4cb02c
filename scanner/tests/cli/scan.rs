//! `scan` on what this host really has.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};

use deadlight_shared::PortSet;
use serde_json::Value;

use crate::program::{Ended, alone, is_run_alone, program, run};

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Ports on which something listens that 127.0.0.1 reaches, as `ss` tells it.
fn listening() -> BTreeSet<u64> {
    let output = Command::new("ss").arg("-Hlnt").output().unwrap();
    assert!(output.status.success(), "ss: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let local = text.lines().filter_map(|line| line.split_whitespace().nth(3)?.rsplit_once(':'));
    let reached = |address: &str| matches!(address, "127.0.0.1" | "0.0.0.0" | "*") || address.starts_with("[::]");
    local.filter(|(address, _)| reached(address)).map(|(_, port)| port.parse().unwrap()).collect()
}

/// As a user without any right over the network.
fn ordinary() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-user=65534", "--map-group=65534"]).arg(program().get_program());
    command
}

#[test]
fn all_ports_agree_with_ss_for_an_ordinary_user() {
    if is_run_alone("scan::all_ports_agree_with_ss_for_an_ordinary_user") {
        return;
    }
    let ours: Vec<_> =
        ["127.0.0.1:0", "0.0.0.0:0", "127.0.0.1:0", "[::]:0"].map(|address| TcpListener::bind(address).unwrap()).into();
    let words = ["scan", "127.0.0.1", "--ports", "1-65535", "--rate", "20000", "--output", "json"];
    let ended = Ended::of(ordinary().args(words).output().unwrap()).expect(1, &[]);

    let document = json(&ended);
    let observations = document["observations"].as_array().unwrap();
    let open: BTreeSet<u64> = observations.iter().map(|seen| seen["port"].as_u64().unwrap()).collect();
    assert!(observations.iter().all(|seen| seen["state"] == "open"), "{document:#}");
    assert_eq!((&open, open.len()), (&listening(), ours.len()));
    let summary = &document["summary"];
    assert_eq!(summary["targets"], 65_535);
    assert_eq!(summary["open"].as_u64().unwrap() + summary["closed"].as_u64().unwrap(), 65_535);
    assert_eq!(summary["complete"], true);
}

#[test]
fn an_allowed_port_is_shown_and_a_missing_one_as_well() {
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let shut = TcpListener::bind("127.0.0.1:0").unwrap();
    let [open_port, shut_port] = [&open, &shut].map(|listener| listener.local_addr().unwrap().port());
    drop(shut);
    let ports = format!("{open_port},{shut_port}");
    let allow = format!("{open_port}/tcp,{shut_port}/tcp");
    let words = ["scan", "127.0.0.1", "--ports", &ports, "--allow", &allow, "--output"];
    let document = json(&run(&[&words[..], &["json"]].concat()).expect(0, &[]));
    let state = |port: u16| {
        let observations = document["observations"].as_array().unwrap();
        observations
            .iter()
            .find(|seen| seen["port"] == port)
            .map(|seen| (seen["state"].clone(), seen["allowed"].clone()))
    };
    assert_eq!(state(open_port), Some(("open".into(), true.into())));
    assert_eq!(state(shut_port), Some(("closed".into(), true.into())));
    assert_eq!(document["missing"], serde_json::json!([{"node": "127.0.0.1", "port": shut_port, "protocol": "tcp"}]));
    assert_eq!(document["findings"], serde_json::json!([]));

    let lines = run(&[&words[..], &["jsonl"]].concat()).expect(0, &[]).stdout;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[2]["summary"]["targets"], 2);
    assert_eq!(lines[2].get("observations"), None);

    let table = run(&[&words[..], &["table"]].concat()).expect(0, &[]).stdout;
    for wanted in [" ok ", " .. ", "missing: ", "2 targets in", "Nothing unexpected."] {
        assert!(table.contains(wanted), "no {wanted:?} in {table}");
    }
    assert!(!table.contains('\x1b'), "colours in a pipe: {table:?}");
}

#[test]
fn code_scanning_and_test_reports_are_told_of_an_open_port() {
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = open.local_addr().unwrap().port();
    let words = ["scan", "127.0.0.1", "--ports", &port.to_string(), "--output"];
    let log = json(&run(&[&words[..], &["sarif"]].concat()).expect(1, &[]));
    let results = &log["runs"][0]["results"];
    assert_eq!(results[0]["ruleId"], "unexpected-open-port");
    let wanted = format!("{port}/tcp at 127.0.0.1 (node 127.0.0.1) is open and not allowed: syn-ack");
    assert_eq!((&results[0]["message"]["text"], results.as_array().unwrap().len()), (&wanted.into(), 1));
    assert_eq!(log["runs"][0]["invocations"][0]["executionSuccessful"], true);

    let report = run(&[&words[..], &["junit"]].concat()).expect(1, &[]).stdout;
    assert!(report.contains(&format!(r#"<testcase classname="127.0.0.1" name="{port}/tcp is not open">"#)), "{report}");
    assert!(report.contains(r#"tests="2" failures="1" errors="0" skipped="0""#), "{report}");
}

#[test]
fn udp_answers_refuses_or_keeps_silent() {
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let gone = UdpSocket::bind("127.0.0.1:0").unwrap();
    let [echo_port, silent_port, gone_port] = [&echo, &silent, &gone].map(|socket| socket.local_addr().unwrap().port());
    drop(gone);
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = echo.recv_from(&mut buffer) {
            echo.send_to(&buffer[..length], from).unwrap();
        }
    });
    let ports = format!("{echo_port},{silent_port},{gone_port}/udp");
    let document = json(&run(&["scan", "127.0.0.1", "--ports", &ports, "--output", "json"]).expect(1, &[]));
    let mut states: Vec<_> = document["observations"].as_array().unwrap().iter().collect();
    states.sort_by_key(|seen| seen["port"] != echo_port);
    assert_eq!((&states[0]["state"], &states[0]["evidence"]), (&"open".into(), &"udp-reply".into()));
    assert_eq!((&states[1]["state"], &states[1]["attempts"]), (&"open|filtered".into(), &3.into()));
    assert_eq!(states.len(), 2, "{document:#}");
    assert_eq!(document["findings"].as_array().unwrap().len(), 1, "silence is no finding");
    assert_eq!(document["summary"]["closed"], 1);
}

#[test]
fn an_ordinary_user_gets_connect_and_is_told_what_syn_needs() {
    let scan = |method: &str| {
        let words = ["scan", "127.0.0.1", "--ports", "1", "--method", method, "--output", "json"];
        Ended::of(ordinary().args(words).output().unwrap())
    };
    let text = format!("sudo setcap cap_net_raw+ep {}", env!("CARGO_BIN_EXE_deadlight-scanner"));
    scan("syn").expect(2, &["packet sockets need root or CAP_NET_RAW", &text]);
    scan("auto").expect(0, &["127.0.0.1 is asked by connect"]);
    scan("connect").expect(0, &[]);
}

/// Services that are met by a scan of all ports after some time, but not at once.
fn forty_services() -> Vec<TcpListener> {
    let listener = |_| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    };
    (0..40).map(listener).collect()
}

/// A scan of all ports that keeps its state in `state`.
fn resumable(state: &std::path::Path, rate: &str) -> Command {
    let mut scan = program();
    scan.args(["scan", "127.0.0.1", "--ports", "1-65535", "--output", "json", "--no-identify", "--rate", rate]);
    scan.arg("--resume").arg(state).stdout(Stdio::piped()).stderr(Stdio::piped());
    scan
}

/// Ends a slow scan by SIGINT as soon as it has met a few of `services`, after `before` was done.
fn interrupted(state: &std::path::Path, services: &[TcpListener], before: impl FnOnce()) -> Ended {
    let mut scan = resumable(state, "2000").spawn().unwrap();
    let mut met = 0;
    while met < 3 {
        met += services.iter().filter(|service| service.accept().is_ok()).count();
        assert!(scan.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        std::thread::yield_now();
    }
    before();
    assert!(Command::new("kill").args(["-INT", &scan.id().to_string()]).status().unwrap().success());
    Ended::of(scan.wait_with_output().unwrap())
}

/// Nowhere to keep the state of the scan costs nothing of what it saw.
#[test]
fn results_are_shown_before_their_state_is_kept() {
    if is_run_alone("scan::results_are_shown_before_their_state_is_kept") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state.json");
    let gone = || std::fs::remove_dir(directory.path()).unwrap();
    let ended = interrupted(&state, &forty_services(), gone).expect(2, &["failed to write", "hint: name a file"]);
    assert!(json(&ended)["summary"]["closed"].as_u64().unwrap() > 0);
}

/// Asked slowly enough to be interrupted in the middle, and then to the end.
#[test]
fn an_interrupted_scan_says_so_and_goes_on_from_there() {
    if is_run_alone("scan::an_interrupted_scan_says_so_and_goes_on_from_there") {
        return;
    }
    let open = forty_services();
    let port = open[0].local_addr().unwrap().port();
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state.json");
    let scan = |rate: &str| resumable(&state, rate);
    let ended = interrupted(&state, &open, || ()).expect(3, &["interrupted"]);
    let document = json(&ended);
    assert_eq!(document["summary"]["complete"], false);
    let closed = document["summary"]["closed"].as_u64().unwrap();
    let unknown = document["summary"]["unknown"].as_u64().unwrap();
    assert!(closed > 0 && unknown > 0, "{closed} closed, {unknown} unknown");
    assert!(document["observations"].to_string().contains("the sweep was interrupted"));

    Ended::of(program().args(["scan", "127.0.0.1", "--ports", "1-9", "--resume"]).arg(&state).output().unwrap())
        .expect(2, &["was left by a scan of other targets or ports", "hint: rm "]);
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(&state).unwrap()).unwrap();
    let settled: PortSet = kept["settled"]["127.0.0.1"]["closed"].as_str().unwrap().parse().unwrap();
    let late = TcpListener::bind(("127.0.0.1", settled.iter().next().unwrap().number.get())).unwrap();
    let ended = Ended::of(scan("100000").output().unwrap()).expect(1, &[]);
    let document = json(&ended);
    let summary = &document["summary"];
    assert_eq!((&summary["targets"], &summary["complete"]), (&65_535.into(), &true.into()));
    assert_eq!(summary["open"].as_u64().unwrap() + summary["closed"].as_u64().unwrap(), 65_535);
    assert_eq!((settled.len() as u64, summary["open"].as_u64().unwrap()), (closed, open.len() as u64));
    late.set_nonblocking(true).unwrap();
    assert!(late.accept().is_err(), "what was settled is not asked again");
    assert!(document["observations"].as_array().unwrap().iter().any(|seen| seen["port"] == port));
    assert!(!state.exists(), "a complete scan leaves no state");
    let impossible = r#"{"schema": "deadlight.resume/v1", "targets": {"127.0.0.1": "1-65535/tcp"},
        "settled": {"127.0.0.1": {"closed": "1-9/tcp", "filtered": "9/tcp"}}}"#;
    std::fs::write(&state, impossible).unwrap();
    Ended::of(scan("100000").output().unwrap()).expect(2, &["what it says of 127.0.0.1 cannot be", "hint: rm "]);
    std::fs::write(&state, "{}").unwrap();
    Ended::of(scan("100000").output().unwrap()).expect(2, &["is no interrupted scan", "missing field"]);
    for nowhere in [directory.path().join("gone/state.json"), directory.path().to_owned()] {
        let words = ["scan", "127.0.0.1", "--ports", "1", "--resume"];
        let ended = Ended::of(program().args(words).arg(&nowhere).output().unwrap());
        ended.expect(2, &["failed to", "hint: name a file in a directory that you may write to"]);
    }
}

#[test]
fn a_name_without_address_is_unknown() {
    let mut alone = alone();
    alone.arg(program().get_program());
    alone.args(["scan", "nowhere.invalid", "127.0.0.1", "--ports", "1", "--output", "json"]);
    let ended = Ended::of(alone.output().unwrap()).expect(3, &[]);
    let document = json(&ended);
    assert_eq!(document["unresolved"][0]["target"], "nowhere.invalid");
    assert_eq!(document["unresolved"][0]["state"], "unknown");
    assert_eq!(document["summary"]["complete"], false);
    assert_eq!(document["summary"]["closed"], 1, "the other target was asked all the same");
}

#[test]
fn an_address_without_a_route_is_unknown() {
    let mut nowhere = Command::new("unshare");
    nowhere.args(["--user", "--map-root-user", "--net"]).arg(program().get_program());
    nowhere.args(["scan", "2001:db8::1", "192.0.2.1", "--ports", "1-3", "--output", "json"]);
    let ended = Ended::of(nowhere.output().unwrap()).expect(3, &[]);
    let document = json(&ended);
    let observations = document["observations"].as_array().unwrap();
    assert_eq!(observations.len(), 6);
    for seen in observations {
        assert_eq!(seen["state"], "unknown", "{seen}");
        assert!(seen["evidence"].as_str().unwrap().starts_with("not asked: "), "{seen}");
    }
    assert_eq!(observations[3]["evidence"], "not asked: network is unreachable");
    assert_eq!(document["summary"]["unknown"], 6);
    assert_eq!(document["summary"]["probes_sent"], 0);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = open.local_addr().unwrap().port().to_string();
    for output in ["table", "json", "jsonl", "sarif", "junit"] {
        let mut scan = program();
        scan.args(["scan", "127.0.0.1", "--ports", &port, "--method", "connect", "--output", output]);
        let mut scan = scan.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(scan.stdout.take());
        let mut messages = String::new();
        BufReader::new(scan.stderr.take().unwrap()).read_line(&mut messages).unwrap();
        assert_eq!(scan.wait().unwrap().code(), Some(1), "the status still tells of the open port");
        assert_eq!(messages, "");
    }
}
