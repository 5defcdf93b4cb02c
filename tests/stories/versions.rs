//! What earlier versions said and left behind means the same today; `make record` wrote each directory of
//! `tests/fixtures/versions`, by the revision whose name it has.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use deadlight_agent::{config::Config as AgentConfig, ledger::Store};
use deadlight_scanner::{
    config::Config,
    permits::Permits,
    store::{Database, Location},
};
use deadlight_shared::{
    FindingStatus, OperatorKey, config,
    wire::{CertificateCall, Explanation, Mode, Order, OutcomeStatus, Problem, Report, Status},
};
use deadlight_tests::{
    lab::{HOST, INGRESS, RUN},
    programs::{Ended, built, finish},
    scratch,
};
use jiff::civil::date;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, to_value};

const CLOSED: [u16; 3] = [INGRESS, RUN, HOST];

#[test]
fn orders_and_answers_mean_the_same() -> Result<()> {
    of_each(|version| {
        let order: Order = read_whole(version, "order.json")?;
        order.check()?;
        let ports: BTreeSet<u16> = order.findings.iter().map(|finding| finding.port.get()).collect();
        ensure!(ports == CLOSED.into() && order.findings.len() == 6, "{order:?}");
        ensure!(order.allow.to_string() == "80/tcp,7443/tcp", "{}", order.allow);
        let operator = OperatorKey::from_pem(&fs::read(version.join("operator.pub"))?)?;
        let permit = order.permit.as_ref().context("a permit")?.open_for(&order.node, &operator)?;
        ensure!(permit.ports_at(date(2027, 1, 1)) == order.allow, "{permit:?}");

        let report: Report = read_whole(version, "report.json")?;
        let enforced = |outcome: &&deadlight_shared::wire::Outcome| outcome.status == OutcomeStatus::Enforced;
        ensure!(report.mode == Mode::Enforce && report.outcomes.iter().filter(enforced).count() == 6, "{report:?}");
        ensure!((report.order.epoch, report.order.sequence) == (order.epoch, order.sequence), "{report:?}");
        let status: Status = read_whole(version, "status.json")?;
        ensure!(status.in_force && status.closed.len() == 3, "{status:?}");
        let explanation: Explanation = read_whole(version, "explanation.json")?;
        ensure!(explanation.closed && explanation.port.number.get() == INGRESS, "{explanation:?}");
        Ok(())
    })
}

/// An agent refuses what it does not know, and says what it knows.
#[test]
fn what_we_write_is_known_to_each_agent_or_can_be_left_out() -> Result<()> {
    let golden = include_str!("../../shared/src/wire/golden/order.json");
    let order: Order = serde_json::from_str(golden)?;
    let certificate =
        CertificateCall { schema: String::new(), certificate: String::new(), operator_key: Some(String::new()) };
    of_each(|version| {
        let known = |name: &str| {
            let problem: Problem = read(version, name)?;
            ensure!(problem.status == 422 && problem.unknown_field() == Some("later"), "{problem:?}");
            Ok(problem.detail.split('`').skip(3).step_by(2).map(str::to_owned).collect::<BTreeSet<String>>())
        };
        let mut order = Order { peers: vec!["office-b".parse()?], ..order.clone() };
        let fields = known("unknown_in_order.json")?;
        while let Some(unknown) = fields_of(&order)?.difference(&fields).next() {
            order = order.without(unknown).with_context(|| format!("`{unknown}` cannot be left out"))?;
        }
        ensure!(fields_of(&order.findings[0])?.is_subset(&known("unknown_in_finding.json")?));
        ensure!(fields_of(&certificate)?.is_subset(&known("unknown_in_certificate.json")?));
        Ok(())
    })
}

#[test]
fn an_agent_reads_its_ledger_and_configuration() -> Result<()> {
    of_each(|version| {
        let ledger = Store::new(version).load()?;
        let closed: BTreeSet<u16> = ledger.closed().iter().map(|port| port.number.get()).collect();
        ensure!(closed == CLOSED.into() && ledger.armed, "{ledger:?}");
        ensure!(ledger.orders.values().all(|answered| answered.report.is_some()), "{ledger:?}");
        let config: AgentConfig = config::load(&version.join("agent.toml"))?;
        ensure!(config == AgentConfig::default(), "the defaults are others: {config:?}");
        Ok(())
    })
}

#[test]
fn a_scanner_reads_its_configuration_memory_allowlist_and_registry() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    of_each(|version| {
        let directory = scratch::directory()?;
        let text = fs::read_to_string(version.join("scanner.toml"))?;
        let config = Config::parse(&text, &directory.path().join("scanner.toml"), date(2026, 11, 29))?;
        ensure!(config.vantage.as_str() == "office-a" && config.ports.len() > 65_535, "{config:?}");

        // Before 2026-11-28 there was no database.
        let copy = directory.path().join("deadlight.db");
        if version.join("deadlight.db").exists() {
            fs::copy(version.join("deadlight.db"), &copy)?;
            runtime.block_on(resolved(&Location::File(copy)))?;
            fs::write(directory.path().join("scanner.toml"), text)?;
            let history = scanner(&["history", "--config"], &directory.path().join("scanner.toml"))?.expect_code(0)?;
            ensure!(history.stdout.matches("resolved: proven").count() == 6, "{history:?}");
        }

        let permits = Permits::load(&version.join("permits.json"))?.context("the signed allowlist")?;
        ensure!(permits.intent(date(2027, 1, 1)).len() == 1 && permits.of(&"n1".parse()?).is_some(), "{permits:?}");
        let list = scanner(&["pki", "list", "--dir"], version)?.expect_code(0)?;
        ensure!(list.stdout.contains("agent/n1") && list.stdout.contains("scanner/office-a"), "{list:?}");
        Ok(())
    })
}

#[test]
fn a_saved_scan_is_compared() -> Result<()> {
    of_each(|version| {
        let (json, jsonl) = (version.join("scan.json"), version.join("scan.jsonl"));
        let json = json.to_str().context("UTF-8")?;
        scanner(&["diff", json], &jsonl)?;
        let directory = scratch::directory()?;
        let other = directory.path().join("other.json");
        fs::write(&other, fs::read_to_string(json)?.replace("\"port\": 80,", "\"port\": 81,"))?;
        let different = scanner(&["diff", json], &other)?.expect_code(1)?;
        for port in ["80/tcp", "81/tcp"] {
            ensure!(different.stdout.contains(port), "{different:?}");
        }
        Ok(())
    })
}

fn of_each(check: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let versions: Vec<PathBuf> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/versions"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    ensure!(!versions.is_empty(), "no version is on record");
    versions.iter().try_for_each(|version| check(version).with_context(|| format!("of {}", version.display())))
}

async fn resolved(location: &Location) -> Result<()> {
    let database = Database::open_alone(location, &"office-a".parse()?).await?;
    let state = database.load().await?;
    database.close().await;
    let is_resolved = |finding: &deadlight_shared::Finding| finding.status == FindingStatus::Resolved;
    ensure!(state.findings.len() == 6 && state.findings.iter().all(is_resolved), "{state:?}");
    Ok(())
}

fn scanner(words: &[&str], path: &Path) -> Result<Ended> {
    finish(Command::new(built("deadlight-scanner")?).args(words).arg(path))
}

fn read<T: DeserializeOwned>(version: &Path, name: &str) -> Result<T> {
    serde_json::from_slice(&fs::read(version.join(name))?).with_context(|| name.to_owned())
}

/// Nothing of it was passed over.
fn read_whole<T: DeserializeOwned + Serialize>(version: &Path, name: &str) -> Result<T> {
    let value: T = read(version, name)?;
    ensure!(to_value(&value)? == read::<Value>(version, name)?, "{name} is not what is written today");
    Ok(value)
}

fn fields_of(value: &impl Serialize) -> Result<BTreeSet<String>> {
    Ok(to_value(value)?.as_object().context("an object")?.keys().cloned().collect())
}
