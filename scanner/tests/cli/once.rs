//! `run --once` against an agent that does, or says, what the test wants.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::mpsc;

use deadlight_shared::wire::{Cause, CauseKind, Mode, Order, OrderMark, Outcome, OutcomeStatus, Problem, Report};

use crate::fake_agent;
use crate::program::{Deployment, Ended, program};

fn report(order: &Order, status: OutcomeStatus) -> Report {
    let mut cause = Cause::new(CauseKind::SwarmIngress);
    cause.service = Some("stats\x1b[31m".to_owned());
    let outcome = |finding: &deadlight_shared::wire::ReportedFinding| Outcome {
        finding: finding.id.clone(),
        protocol: finding.protocol,
        port: finding.port,
        status,
        reason: "the guard holds it".to_owned(),
        cause: cause.clone(),
        rules: vec![format!("drop {}", finding.port())],
        dropped: 2,
    };
    Report {
        schema: Report::SCHEMA.to_owned(),
        node: order.node.clone(),
        mode: Mode::Enforce,
        order: OrderMark { epoch: order.epoch, sequence: order.sequence },
        outcomes: order.findings.iter().map(outcome).collect(),
        warnings: Vec::new(),
    }
}

fn good(report: &Report) -> (&'static str, String) {
    ("200 OK", serde_json::to_string(report).unwrap())
}

/// One loop over one open port, with an agent that answers by `answer`; it may take the listener.
fn once(
    certificate: &str,
    mut answer: impl FnMut(Order, &mut Option<TcpListener>) -> (&'static str, String) + Send + 'static,
) -> (Deployment, Ended) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let open = listener.local_addr().unwrap().port();
    let mut listener = Some(listener);
    let deployment = Deployment::new(&["n1", "n2"]);
    let agent = fake_agent::start(&deployment, certificate, move |order| answer(order, &mut listener));
    deployment.configure(&[open], &format!("agent = \"https://127.0.0.1:{agent}\""));
    let ended = deployment.run(&["run", "--once"]);
    (deployment, ended)
}

#[track_caller]
fn in_order(text: &str, words: &[&str]) {
    let mut rest = text;
    for word in words {
        let position = rest.find(word).unwrap_or_else(|| panic!("no {word:?} in {rest:?} of {text}"));
        rest = &rest[position + word.len()..];
    }
}

#[test]
fn what_the_agent_closes_is_proven_closed_and_stays_so() {
    let (epochs, told) = mpsc::channel();
    let (deployment, ended) = once("n1", move |order, listener| {
        *listener = None;
        epochs.send(order.epoch).unwrap();
        good(&report(&order, OutcomeStatus::Enforced))
    });
    let ended = ended.expect(0, &[]);
    in_order(
        &ended.stdout,
        &[
            "OPEN ",
            "not on the allowlist, for the first time",
            "CAUSE ",
            "swarm_ingress: service stats\\u{1b}[31m",
            "AGENT ",
            "enforced: the guard holds it",
            "RULE ",
            "drop ",
            "PROOF ",
            "is closed: 2 attempts from 2 source ports, each refused with RST",
            "RESULT ",
            "unexpected ports: 1 proven closed, 0 unproven, 0 still open",
        ],
    );
    let status = deployment.run(&["status"]).expect(0, &[]);
    in_order(&status.stdout, &["Nothing unexpected is open.", "1 proven closed", "complete", "n1", "enforce"]);
    let story = deployment.run(&["history"]).expect(0, &[]);
    in_order(
        &story.stdout,
        &[
            "open: a sweep saw it (syn-ack)",
            "enforced: its agent: the guard holds it (swarm_ingress: service stats\\u{1b}[31m)",
            "resolved: proven: 2 attempts from 2 source ports",
        ],
    );
    let again = deployment.run(&["run", "--once"]).expect(0, &[]);
    assert!(!again.stdout.contains("PROOF") && !again.stdout.contains("OPEN"), "{again:#?}");
    let epochs: Vec<u64> = told.try_iter().collect();
    assert!(
        epochs.len() == 2 && epochs[1] > epochs[0],
        "an order of the second run outranks all of the first: {epochs:?}"
    );
}

#[test]
fn a_ca_that_goes_away_keeps_no_proof_waiting() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let open = listener.local_addr().unwrap().port();
    let deployment = Deployment::new(&["n1"]);
    let (key, mut listener) = (deployment.path("ca.key"), Some(listener));
    let agent = fake_agent::start(&deployment, "n1", move |order| {
        drop(listener.take());
        std::fs::remove_file(&key).unwrap();
        good(&report(&order, OutcomeStatus::Enforced))
    });
    let config = deployment.configure(&[open], &format!("agent = \"https://127.0.0.1:{agent}\""));
    let text = std::fs::read_to_string(config).unwrap();
    deployment.write(&format!("{}[pki]\ndirectory = \".\"\n", text.split_once("[tls]").unwrap().0));
    let ended = deployment.run(&["run", "--once"]).expect(0, &["failed to read", "ca.key"]);
    in_order(&ended.stdout, &["enforced", "PROOF ", "1 proven closed"]);
}

#[test]
fn the_agents_word_is_no_proof() {
    let (deployment, ended) = once("n1", |order, _| good(&report(&order, OutcomeStatus::Enforced)));
    let ended = ended.expect(1, &[]);
    let contradiction = "is closed, the network says open: it answered at 127.0.0.1";
    let wanted = ["enforced", "CONTRADICTION agent of n1 says ", contradiction, "NO PROOF", "1 still open"];
    in_order(&ended.stdout, &wanted);
    let findings = deployment.run(&["findings", "--output", "json"]).expect(1, &[]);
    assert!(findings.stdout.contains("\"status\": \"failed\""), "{findings:?}");
    let story = deployment.run(&["history"]).expect(0, &[]);
    in_order(&story.stdout, &["enforced: its agent", "failed: it answered after its agent had closed it"]);
}

#[test]
fn what_the_agent_leaves_open_stays_open() {
    for (status, word) in [
        (OutcomeStatus::Observed, "observed"),
        (OutcomeStatus::Refused, "refused"),
        (OutcomeStatus::Failed, "failed"),
        (OutcomeStatus::Pending, "reported"),
    ] {
        let (deployment, ended) = once("n1", move |order, _| good(&report(&order, status)));
        ended.expect(1, &[]);
        let findings = deployment.run(&["findings", "--output", "json"]).expect(1, &[]);
        assert!(findings.stdout.contains(&format!("\"status\": \"{word}\"")), "{findings:?}");
    }
}

#[test]
fn another_nodes_agent_is_not_believed() {
    let (_, ended) = once("n2", |order, _| good(&report(&order, OutcomeStatus::Enforced)));
    let ended = ended.expect(1, &[]);
    in_order(&ended.stdout, &["no report, its findings stay open", "the peer is not spiffe://deadlight/agent/n1"]);
}

#[test]
fn bad_answers_are_told_apart() {
    type Answer = fn(Order) -> (&'static str, String);
    let cases: [(Answer, &str); 7] = [
        (
            |_| {
                let problem = Problem { title: "Forbidden".into(), status: 403, detail: "not you\n".into() };
                ("403 Forbidden", serde_json::to_string(&problem).unwrap())
            },
            "the agent answered 403 Forbidden: Forbidden: not you\\u{a}",
        ),
        (|_| ("502 Bad Gateway", "<html>".into()), "the agent answered 502 Bad Gateway: <html>"),
        (|_| ("307 Temporary Redirect", String::new()), "the agent answered 307 Temporary Redirect"),
        (|_| ("200 OK", "{\"schema\":".into()), "failed to read the agent's answer"),
        (|_| ("200 OK", " ".repeat(5_000_000)), "longer than 4194304 bytes"),
        (
            |order| good(&Report { node: "n2".parse().unwrap(), ..report(&order, OutcomeStatus::Enforced) }),
            "with a report of deadlight.report/v1 for node n2",
        ),
        (
            |order| {
                let later = OrderMark { epoch: order.epoch + 1, sequence: 7 };
                good(&Report { order: later, ..report(&order, OutcomeStatus::Enforced) })
            },
            "and did nothing",
        ),
    ];
    for (answer, wanted) in cases {
        let (_, ended) = once("n1", move |order, _| answer(order));
        let ended = ended.expect(1, &[]);
        in_order(&ended.stdout, &["no report, its findings stay open", wanted, "1 still open"]);
    }
}

#[test]
fn the_daemon_goes_on_until_it_is_told_to_stop() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let deployment = Deployment::new(&[]);
    deployment.configure(&[listener.local_addr().unwrap().port()], "");
    let mut daemon = program();
    daemon.arg("run").arg("--config").arg(deployment.path("scanner.toml"));
    let mut daemon = daemon.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut story = BufReader::new(daemon.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(story.by_ref().any(|line| line.starts_with("RESULT")), "it ended before its first round did");
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = Ended::of(daemon.wait_with_output().unwrap()).expect(0, &["stopped", "SIGTERM"]);
    assert_eq!(story.next(), None, "{ended:#?}");
}

#[test]
fn a_configuration_may_be_named_by_a_relative_path() {
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let deployment = Deployment::new(&[]);
    deployment.configure(&[open.local_addr().unwrap().port()], "");
    let here = |words: &[&str]| {
        let mut command = program();
        command.args(words).args(["--config", "scanner.toml"]).current_dir(deployment.path(""));
        Ended::of(command.output().unwrap())
    };
    here(&["run", "--once"]).expect(1, &[]);
    here(&["status"]).expect(1, &[]);
    assert!(here(&["backup", "copy.db"]).expect(0, &[]).stdout.contains("remove deadlight.db-wal"));
    here(&["allow", "1/tcp", "--node", "n1", "--owner", "x", "--reason", "y", "--write"]).expect(0, &[]);
}

#[test]
fn what_is_not_in_the_configuration_any_more_is_over_and_not_called_closed() {
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = open.local_addr().unwrap().port();
    let deployment = Deployment::new(&[]);
    deployment.configure(&[port], "");
    deployment.run(&["run", "--once"]).expect(1, &[]);
    let path = deployment.path("scanner.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    drop(open);
    deployment.write(&text.replace("\"n1\"", "\"n2\""));
    deployment.run(&["run", "--once"]).expect(0, &[]);
    deployment.run(&["findings"]).expect(0, &[]);
    let story = deployment.run(&["history"]).expect(0, &[]).stdout;
    in_order(&story, &["open: a sweep saw it", "accepted: not looked at any more: it is not in the configuration"]);
}
