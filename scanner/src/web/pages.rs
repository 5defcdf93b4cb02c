//! The pages, for people. Everything is in the HTML: no script runs.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse};
use deadlight_shared::wire::Outcome;
use deadlight_shared::{AllowEntry, Finding, FindingStatus};
use jiff::Timestamp;
use serde::Deserialize;

use super::picture::Picture;
use super::{NoAnswer, SWEEPS, Site, words};
use crate::alert::Severity;
use crate::config::Node;
use crate::store::{Contact, Event, Past, Silence, SinkState, Swept, Why};
use crate::view::{Matrix, Status, Timeline, Verdict};

/// Rows of a page.
const ROWS: usize = 100;
/// Findings on the overview, and changes in a finding's story.
const FIRST: usize = 20;
const STORY: usize = 200;
/// An entry of the allowlist that ends so soon is marked.
const SOON: i64 = 14;

type Answer = Result<Html<String>, NoAnswer>;

/// What stands around every page.
struct Frame {
    title: &'static str,
    vantage: String,
    now: Timestamp,
}

/// Which rows.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Rows {
    #[serde(default)]
    page: usize,
}

/// A page of a longer list.
struct Pages {
    here: &'static str,
    page: usize,
    last: usize,
}

impl Pages {
    fn new(here: &'static str, page: usize, rows: usize) -> Self {
        let last = rows.saturating_sub(1) / ROWS;
        Self { here, page: page.min(last), last }
    }

    fn range(&self) -> (usize, usize) {
        (self.page * ROWS, (self.page + 1) * ROWS)
    }
}

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview<'a> {
    frame: Frame,
    status: &'a Status,
    class: &'static str,
    open: Vec<&'a Finding>,
    timeline: Timeline,
    troubles: Vec<String>,
}

pub(super) async fn overview(State(site): State<Arc<Site>>) -> Answer {
    let picture = Picture::take(&site).await?;
    let status = picture.status();
    let class = match status.verdict() {
        Verdict::Fine => "good",
        Verdict::Exposed => "bad",
        Verdict::Unsure => "doubt",
    };
    let open = picture.state.findings.iter().filter(|finding| !finding.status.is_over()).take(FIRST).collect();
    let timeline = picture.timeline(&site).await?;
    let troubles = troubles(&picture);
    show(&Overview { frame: frame("Overview", &picture), status: &status, class, open, timeline, troubles })
}

/// What keeps Deadlight from doing its work well.
fn troubles(picture: &Picture) -> Vec<String> {
    let sinks = picture.sinks.iter().filter_map(|SinkState { name, waiting, trouble }| {
        let trouble = trouble.as_ref()?;
        Some(format!("Alerts do not arrive at {name} ({waiting} wait): {}", words::said(trouble)))
    });
    let agents = picture.state.contacts.iter().filter_map(|(node, contact)| {
        let trouble = contact.trouble.as_ref()?;
        Some(format!("The agent of {node} gave no report: {}", words::said(trouble)))
    });
    let blind = picture.coverage.last.iter().flat_map(|last| &last.ending.blind);
    let blind = blind.map(|(node, address)| {
        format!("{node} ({address}) did not answer at its control port: this vantage point is blind there")
    });
    let ended = picture.certificates().into_iter().filter(|(_, to)| *to < picture.now);
    let ended = ended.map(|(node, to)| format!("The certificate of {node}'s agent has ended on {to:.0}"));
    let expired = picture.config.expired(picture.today);
    sinks.chain(agents).chain(blind).chain(ended).chain(expired).take(FIRST).collect()
}

#[derive(Template)]
#[template(path = "nodes.html")]
struct Nodes {
    frame: Frame,
    matrix: Matrix,
    pages: Pages,
}

pub(super) async fn nodes(State(site): State<Arc<Site>>, Query(rows): Query<Rows>) -> Answer {
    let picture = Picture::take(&site).await?;
    let nodes = picture.nodes();
    let pages = Pages::new("/nodes", rows.page, nodes.len());
    let (from, to) = pages.range();
    let matrix = Matrix::new(&picture.state, &nodes, from, to);
    show(&Nodes { frame: frame("Nodes and ports", &picture), matrix, pages })
}

#[derive(Template)]
#[template(path = "findings.html")]
struct Findings<'a> {
    frame: Frame,
    findings: &'a [Finding],
    pages: Pages,
}

pub(super) async fn findings(State(site): State<Arc<Site>>, Query(rows): Query<Rows>) -> Answer {
    let picture = Picture::take(&site).await?;
    let all = &picture.state.findings;
    let pages = Pages::new("/findings", rows.page, all.len());
    let (from, to) = pages.range();
    let findings = &all[from.min(all.len())..to.min(all.len())];
    show(&Findings { frame: frame("Findings", &picture), findings, pages })
}

#[derive(Template)]
#[template(path = "finding.html")]
struct OneFinding<'a> {
    frame: Frame,
    finding: &'a Finding,
    critical: bool,
    silence: Option<&'a Silence>,
    evidence: Option<String>,
    outcome: Option<&'a Outcome>,
    proof: Option<String>,
    story: Vec<&'a Event>,
    left_out: usize,
}

pub(super) async fn finding(State(site): State<Arc<Site>>, Path(id): Path<String>) -> Answer {
    let picture = Picture::take(&site).await?;
    let finding = picture.finding(&id)?;
    let story = Past(&site.database).story(&finding.id).await?;
    let latest = |wanted: fn(&Why) -> bool| {
        story.iter().rev().filter(|event| event.vantage == site.vantage).map(|event| &event.why).find(|why| wanted(why))
    };
    let outcome = latest(|why| matches!(why, Why::Agent(_))).and_then(|why| match why {
        Why::Agent(outcome) => Some(outcome.as_ref()),
        _ => None,
    });
    let evidence = latest(|why| matches!(why, Why::Sweep { .. } | Why::Rescan | Why::Contradiction));
    // A proof is worth nothing after the port was seen open again.
    let proof = latest(|why| matches!(why, Why::Proof { .. })).filter(|_| finding.status == FindingStatus::Resolved);
    show(&OneFinding {
        frame: frame("Finding", &picture),
        finding,
        critical: Severity::of(finding.port()) == Severity::Critical,
        silence: picture.silence_of(finding),
        evidence: evidence.map(ToString::to_string),
        outcome,
        proof: proof.map(ToString::to_string),
        left_out: story.len().saturating_sub(STORY),
        story: story.iter().rev().take(STORY).collect(),
    })
}

#[derive(Template)]
#[template(path = "sweeps.html")]
struct Sweeps {
    frame: Frame,
    sweeps: Vec<Swept>,
}

pub(super) async fn sweeps(State(site): State<Arc<Site>>) -> Answer {
    let picture = Picture::take(&site).await?;
    let sweeps = Past(&site.database).sweeps(&site.vantage, SWEEPS).await?;
    show(&Sweeps { frame: frame("Sweeps", &picture), sweeps })
}

/// A node with its agent.
struct AgentRow<'a> {
    node: &'a Node,
    contact: Option<&'a Contact>,
    certificate: Option<Timestamp>,
}

#[derive(Template)]
#[template(path = "agents.html")]
struct Agents<'a> {
    frame: Frame,
    agents: Vec<AgentRow<'a>>,
    pages: Pages,
}

pub(super) async fn agents(State(site): State<Arc<Site>>, Query(rows): Query<Rows>) -> Answer {
    let picture = Picture::take(&site).await?;
    let certificates = picture.certificates();
    let pages = Pages::new("/agents", rows.page, picture.config.nodes.len());
    let (from, _) = pages.range();
    let rows = picture.config.nodes.iter().skip(from).take(ROWS).map(|node| AgentRow {
        node,
        contact: picture.state.contacts.get(&node.name),
        certificate: certificates.get(&node.name).copied(),
    });
    let agents = rows.collect();
    show(&Agents { frame: frame("Agents", &picture), agents, pages })
}

#[derive(Template)]
#[template(path = "allowlist.html")]
struct Allowlist<'a> {
    frame: Frame,
    entries: Vec<(&'a AllowEntry, &'static str)>,
}

pub(super) async fn allowlist(State(site): State<Arc<Site>>) -> Answer {
    let picture = Picture::take(&site).await?;
    let mark = |entry: &AllowEntry| match entry.expires {
        Some(day) if day < picture.today => "expired",
        Some(day) if picture.today.until(day).is_ok_and(|span| i64::from(span.get_days()) <= SOON) => "ends soon",
        _ => "",
    };
    let entries = picture.config.allowlist.entries().iter().map(|entry| (entry, mark(entry))).collect();
    show(&Allowlist { frame: frame("Allowlist", &picture), entries })
}

pub(super) async fn style() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("../../templates/style.css"))
}

fn frame(title: &'static str, picture: &Picture) -> Frame {
    Frame { title, vantage: picture.config.vantage.to_string(), now: picture.now }
}

fn show(page: &impl Template) -> Answer {
    Ok(Html(page.render()?))
}
