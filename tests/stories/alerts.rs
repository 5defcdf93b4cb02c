//! Alerts at the real Alertmanager of Debian's.

#![expect(clippy::unwrap_used, reason = "the story's own words are well-formed")]

use std::time::Duration;

use anyhow::{Result, ensure};
use deadlight_scanner::{
    alert::{Manner, Sink, Words},
    assess::first_seen,
    store::{State, Store, Why},
};
use deadlight_shared::{Finding, FindingId, FindingStatus, Name};
use deadlight_tests::{alertmanager::Alertmanager, wait::wait_for};
use jiff::{SignedDuration, Timestamp};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn alertmanager_shows_an_exposure_as_long_as_it_lasts() -> Result<()> {
    let server = Alertmanager::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let url = format!("http://127.0.0.1:{}/", server.port()).parse()?;
    let sink = Sink::new("alertmanager".to_owned(), Manner::Http(Words::Alertmanager), url, name("office-a"))?;
    let send = |alerts: Vec<_>| runtime.block_on(sink.send(&alerts, Timestamp::now()));

    let mut store = Store::new(State::default(), Timestamp::now());
    let mut finding = finding();
    let sweep = |_: &Finding| Some(Why::Sweep { evidence: "syn-ack".to_owned() });
    store.keep(&[finding.clone()], Timestamp::now() - SignedDuration::from_secs(5), sweep);
    send(store.take_alerts())?;
    let alerts = server.alerts()?;
    ensure!(alerts.len() == 1, "{alerts:?}");
    let (labels, annotations) = (&alerts[0]["labels"], &alerts[0]["annotations"]);
    ensure!(labels["alertname"] == "DeadlightExposed" && labels["severity"] == "critical", "{alerts:?}");
    ensure!(labels["node"] == "n1" && labels["port"] == "2377/tcp" && labels["address"] == "2001:db8::1", "{alerts:?}");
    ensure!(annotations["summary"] == "EXPOSED 2377/tcp on n1 (2001:db8::1), not on the allowlist", "{alerts:?}");

    // It answers although its agent has closed it: an alert of its own, beside the one that is there.
    finding.status = FindingStatus::Failed;
    store.keep(&[finding.clone()], Timestamp::now(), |_| Some(Why::Contradiction));
    send(store.take_alerts())?;
    ensure!(server.alerts()?.len() == 2, "{:?}", server.alerts()?);

    finding.status = FindingStatus::Resolved;
    store.keep(&[finding], Timestamp::now(), |_| Some(Why::Proof { evidence: "2 attempts".to_owned() }));
    send(store.take_alerts())?;
    wait_for("the end of both", SOON, || match server.alerts() {
        Ok(alerts) if alerts.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

/// What a service says of itself is not to break it.
fn finding() -> Finding {
    let (node, address, port) = (name("n1"), "2001:db8::1".parse().unwrap(), "2377/tcp".parse().unwrap());
    let service = Some("\"}]\u{0}{{ template }} \u{1b}[31m".to_owned());
    let id = FindingId::of(&node, address, port);
    Finding { service, ..first_seen(&id, node, address, port, Timestamp::now()) }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}
