//! Alerts, from a sweep to where somebody is woken.

use std::net::TcpListener;
use std::sync::Arc;

use crate::hook::Hook;
use crate::program::{Deployment, Ended, is_run_alone, program};

const GOOD: &str = "200 OK";

/// An open port at 127.0.0.1, and a deployment that finds it and tells `sinks` of it.
fn exposed(sinks: &str) -> (TcpListener, Deployment) {
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let deployment = Deployment::new(&[]);
    configure(&deployment, open.local_addr().unwrap().port(), sinks);
    (open, deployment)
}

fn configure(deployment: &Deployment, port: u16, sinks: &str) {
    let path = deployment.configure(&[port], "");
    let text = std::fs::read_to_string(path).unwrap();
    deployment.write(&format!("{text}{sinks}"));
}

fn webhook(hook: &Hook) -> String {
    format!("[[alert]]\nkind = \"webhook\"\nurl = \"http://{}/hook?token=sesame\"\n", hook.address)
}

#[test]
fn an_exposure_is_told_once_and_its_end_is_too() {
    if is_run_alone("alerts::an_exposure_is_told_once_and_its_end_is_too") {
        return;
    }
    let hook = Hook::start(|_| GOOD.to_owned());
    let (open, deployment) = exposed(&webhook(&hook));
    deployment.run(&["run", "--once"]).expect(1, &[]);
    assert_eq!(hook.alerts(), ["1 exposed"]);
    deployment.run(&["run", "--once"]).expect(1, &[]);
    assert_eq!(hook.alerts(), ["1 exposed"], "it is not told again");
    drop(open);
    deployment.run(&["run", "--once"]).expect(0, &[]);
    assert_eq!(hook.alerts(), ["1 exposed", "2 resolved"]);
    let heard = hook.heard();
    assert_eq!(heard[0].path, "/hook?token=sesame");
    assert_eq!(heard[0].body["alerts"][0]["key"], heard[1].body["alerts"][0]["key"], "the same episode");
    let key = |at: usize| heard[at].headers.iter().find(|header| header.starts_with("idempotency-key: "));
    assert!(
        key(0).is_some_and(|key| key.starts_with("idempotency-key: office-a-1-1-")) && key(0) != key(1),
        "{heard:?}"
    );
    let title = heard[0].body["alerts"][0]["title"].as_str().unwrap();
    assert!(title.starts_with("EXPOSED ") && title.ends_with(" on n1 (127.0.0.1), not on the allowlist"), "{title}");
}

#[test]
fn what_a_sink_did_not_take_is_told_at_the_next_start() {
    if is_run_alone("alerts::what_a_sink_did_not_take_is_told_at_the_next_start") {
        return;
    }
    // The first three times nobody takes it, each time for another reason.
    let hook = Hook::start(|number| match number {
        1 => "500 Internal Server Error".to_owned(),
        2 => String::new(),
        3 => "302 Found\r\nlocation: http://203.0.113.1/".to_owned(),
        4 => "429 Too Many Requests\r\nretry-after: 1".to_owned(),
        _ => GOOD.to_owned(),
    });
    let (_open, deployment) = exposed(&webhook(&hook));
    let ended =
        deployment.run(&["run", "--once"]).expect(1, &["alerts wait: it answered 500", "alerts wait: it answered 302"]);
    assert_eq!(hook.alerts(), ["1 exposed"; 5], "{ended:?}");
    assert!(!ended.stderr.contains("sesame") && !ended.stdout.contains("sesame"), "{ended:?}");
    deployment.run(&["run", "--once"]).expect(1, &[]);
    assert_eq!(hook.alerts().len(), 5);
}

#[test]
fn what_a_sink_refuses_keeps_the_next_one_from_nothing() {
    if is_run_alone("alerts::what_a_sink_refuses_keeps_the_next_one_from_nothing") {
        return;
    }
    let hook = Hook::start(|number| if number == 1 { "400 Bad Request".to_owned() } else { GOOD.to_owned() });
    let (open, deployment) = exposed(&webhook(&hook));
    deployment.run(&["run", "--once"]).expect(1, &["an alert was refused and is left out: it answered 400"]);
    drop(open);
    deployment.run(&["run", "--once"]).expect(0, &[]);
    assert_eq!(hook.alerts(), ["1 exposed", "2 resolved"]);
}

#[test]
fn a_scanner_that_is_killed_tells_at_its_next_start() {
    if is_run_alone("alerts::a_scanner_that_is_killed_tells_at_its_next_start") {
        return;
    }
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (open, deployment) = exposed(&format!("[[alert]]\nkind = \"webhook\"\nurl = \"http://{dead}/\"\n"));
    let mut child = deployment.spawn(&["run"]);
    while deployment.run(&["findings"]).status != 1 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let hook = Hook::start(|_| GOOD.to_owned());
    configure(&deployment, open.local_addr().unwrap().port(), &webhook(&hook));
    deployment.run(&["run", "--once"]).expect(1, &[]);
    assert_eq!(hook.alerts(), ["1 exposed"]);
}

#[test]
fn each_kind_of_sink_is_tried_and_told_apart() {
    if is_run_alone("alerts::each_kind_of_sink_is_tried_and_told_apart") {
        return;
    }
    let (good, bad) = (Hook::start(|_| GOOD.to_owned()), Hook::start(|_| "404 Not Found".to_owned()));
    let url = |hook: &Hook| format!("url = \"http://{}/hook\"\n", hook.address);
    let (_open, deployment) = exposed(&format!(
        "[[alert]]\nkind = \"webhook\"\n{}[[alert]]\nkind = \"slack\"\n{}[[alert]]\nkind = \"alertmanager\"\nurl_file = \"url\"\n\
         [[alert]]\nkind = \"pagerduty\"\nkey_file = \"key\"\n{}",
        url(&good),
        url(&bad),
        url(&good)
    ));
    deployment.run(&["alert", "test"]).expect(2, &["failed to read", "url", "hint: url_file names a file"]);
    std::fs::write(deployment.path("key"), "R0UT1NG\n").unwrap();
    std::fs::write(deployment.path("url"), format!("http://{}/am/\n", good.address)).unwrap();
    let ended = deployment.run(&["alert", "test"]).expect(2, &["1 of 4 places did not accept the test"]);
    assert_eq!(
        ended.stdout,
        "webhook: accepted\nslack: it answered 404 Not Found: \nalertmanager: accepted\npagerduty: accepted\n"
    );
    let paths: Vec<_> = good.heard().into_iter().map(|message| message.path).collect();
    assert_eq!(paths, ["/hook", "/am/api/v2/alerts", "/hook"]);
    let event = &good.heard()[2].body;
    assert!(event["routing_key"] == "R0UT1NG" && event["event_action"] == "trigger", "{event}");
    assert!(bad.heard()[0].body["text"].as_str().unwrap().contains("TEST of Deadlight's alerts: nothing is open"));
}

#[test]
fn a_webhook_is_told_in_the_operators_words() {
    if is_run_alone("alerts::a_webhook_is_told_in_the_operators_words") {
        return;
    }
    let hook = Hook::start(|_| GOOD.to_owned());
    let (_open, deployment) = exposed(&format!("{}template_file = \"chat.json.tmpl\"\n", webhook(&hook)));
    let write = |template: &str| std::fs::write(deployment.path("chat.json.tmpl"), template).unwrap();
    deployment.run(&["check-config"]).expect(2, &["failed to read", "chat.json.tmpl"]);
    write("{\"content\":\n{{ txet }}}");
    deployment.run(&["check-config"]).expect(2, &["webhook", "chat.json.tmpl", "undefined value", "template_file:2"]);
    write("{\"content\": \"{{ text }}\"}");
    deployment.run(&["run", "--once"]).expect(2, &["what the template makes is no JSON"]);
    write(
        r#"{"content": {{ text }}, "embeds": [
            {% for alert in alerts %}{"title": {{ alert.title }}}{% if not loop.last %},{% endif %}{% endfor %}]}"#,
    );
    deployment.run(&["run", "--once"]).expect(1, &[]);
    let [heard] = &hook.heard()[..] else { panic!("{:?}", hook.heard()) };
    let (content, title) = (&heard.body["content"], heard.body["embeds"][0]["title"].as_str().unwrap());
    assert!(content.as_str().unwrap().starts_with(&format!("{title}\nseverity: warning\n")), "{content}");
    assert!(title.starts_with("EXPOSED ") && heard.body.as_object().unwrap().len() == 2, "{heard:?}");
}

#[test]
fn a_silence_holds_alerts_back_until_it_ends() {
    if is_run_alone("alerts::a_silence_holds_alerts_back_until_it_ends") {
        return;
    }
    let hook = Hook::start(|_| GOOD.to_owned());
    let (open, deployment) = exposed(&webhook(&hook));
    let port = open.local_addr().unwrap().port();
    drop(open);
    deployment.run(&["run", "--once"]).expect(0, &[]);
    let place = format!("n1:{port}/tcp");
    let silence = |words: &[&str]| deployment.run(&[&["silence", &place, "--author", "mia\u{1b}[31m"], words].concat());
    silence(&["--for", "2h", "--comment", "x"])
        .expect(2, &["no such finding was ever made", "hint: `deadlight-scanner findings --all`"]);
    let again = TcpListener::bind(("127.0.0.1", port)).unwrap();
    deployment.run(&["run", "--once"]).expect(1, &[]);
    assert_eq!(hook.alerts(), ["1 exposed"]);
    drop(again);
    deployment.run(&["run", "--once"]).expect(0, &[]);
    for (words, wanted) in [
        (["--for", "-1h", "--comment", "x"], "--for"),
        (["--for", "2161h", "--comment", "x"], "must be between 0s and"),
        (["--for", "2h", "--comment", " "], "--comment says nothing"),
    ] {
        silence(&words).expect(2, &[wanted]);
    }
    let ended = silence(&["--for", "2h", "--comment", "we know"]).expect(0, &[]);
    assert!(ended.stdout.contains(&format!("n1 127.0.0.1 {port}/tcp: silent until")), "{ended:?}");
    let _again = TcpListener::bind(("127.0.0.1", port)).unwrap();
    deployment.run(&["run", "--once"]).expect(1, &[]);
    assert_eq!(hook.alerts(), ["1 exposed", "2 resolved"], "open again, and nobody is told");
    let findings = deployment.run(&["findings"]).expect(1, &[]).stdout;
    assert!(findings.contains("mia\\u{1b}[31m: we know") && findings.contains("silent until"), "{findings}");
    silence(&["--for", "0s", "--comment", "done"]).expect(0, &[]);
    deployment.run(&["run", "--once"]).expect(1, &[]);
    assert_eq!(hook.alerts(), ["1 exposed", "2 resolved", "3 exposed"], "it is still open");
}

#[test]
fn whoever_is_near_is_told_also_by_a_host_without_a_list_of_cas() {
    let hook = Hook::start(|_| GOOD.to_owned());
    let (_open, deployment) = exposed(&webhook(&hook));
    let mut command = program();
    command.env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
    command.args(["alert", "test", "--config"]).arg(deployment.path("scanner.toml"));
    let ended = Ended::of(command.output().unwrap()).expect(0, &[]);
    assert_eq!(ended.stdout, "webhook: accepted\n");
}

#[test]
fn a_sign_of_life_waits_for_the_alerts() {
    if is_run_alone("alerts::a_sign_of_life_waits_for_the_alerts") {
        return;
    }
    let sink = Arc::new(Hook::start(|number| if number < 3 { "500 Internal Server Error" } else { GOOD }.to_owned()));
    let before = Arc::clone(&sink);
    let monitor = Hook::start(move |_| if before.heard().len() < 3 { "500 Too Early" } else { GOOD }.to_owned());
    let heartbeat = format!("[heartbeat]\nurl = \"http://{}/beat?secret\"\n", monitor.address);
    let (_open, deployment) = exposed(&format!("{}{heartbeat}", webhook(&sink)));
    let ended = deployment.run(&["run", "--once"]).expect(1, &[]);
    let [beat] = &monitor.heard()[..] else { panic!("{:?} {ended:?}", monitor.heard()) };
    assert_eq!((beat.path.as_str(), beat.body["schema"].as_str()), ("/beat?secret", Some("deadlight.heartbeat/v1")));
    let counts = (&beat.body["open"], &beat.body["targets"], &beat.body["complete"], &beat.body["vantage"]);
    assert_eq!(counts, (&1.into(), &1.into(), &true.into(), &"office-a".into()));
    assert!(!ended.stderr.contains("secret") && !ended.stderr.contains("did not arrive"), "{ended:?}");
}
