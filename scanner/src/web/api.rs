//! What is remembered, for programs. The API is described in `openapi.json`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use deadlight_shared::{Finding, Name, PortSet};
use jiff::Timestamp;
use jiff::civil::Date;
use serde::Serialize;

use super::picture::Picture;
use super::{NoAnswer, SWEEPS, Site};
use crate::store::{Contact, Event, Past, Silence, SinkState, Swept};
use crate::view::Status;

/// The description of all this, OpenAPI 3.1.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

pub(super) fn router() -> Router<Arc<Site>> {
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/v1/status", get(status))
        .route("/v1/findings", get(findings))
        .route("/v1/findings/{id}", get(finding))
        .route("/v1/sweeps", get(sweeps))
        .route("/v1/agents", get(agents))
        .route("/v1/allowlist", get(allowlist))
        .route("/v1/sinks", get(sinks))
}

/// An answer, or why there is none.
type Answer<T> = Result<Json<T>, NoAnswer>;

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn status(State(site): State<Arc<Site>>) -> Answer<Status> {
    Ok(Json(Picture::take(&site).await?.status()))
}

#[derive(Serialize)]
struct Findings {
    schema: &'static str,
    findings: Vec<Finding>,
    silences: Vec<Silence>,
}

async fn findings(State(site): State<Arc<Site>>) -> Answer<Findings> {
    let Picture { state, silences, .. } = Picture::take(&site).await?;
    Ok(Json(Findings { schema: "deadlight.findings/v1", findings: state.findings, silences }))
}

#[derive(Serialize)]
struct Story {
    schema: &'static str,
    finding: Finding,
    events: Vec<Event>,
}

async fn finding(State(site): State<Arc<Site>>, Path(id): Path<String>) -> Answer<Story> {
    let finding = Picture::take(&site).await?.finding(&id)?.clone();
    let events = Past(&site.database).story(&finding.id).await?;
    Ok(Json(Story { schema: "deadlight.finding/v1", finding, events }))
}

#[derive(Serialize)]
struct Sweeps {
    schema: &'static str,
    sweeps: Vec<Swept>,
}

async fn sweeps(State(site): State<Arc<Site>>) -> Answer<Sweeps> {
    let sweeps = Past(&site.database).sweeps(&site.vantage, SWEEPS).await?;
    Ok(Json(Sweeps { schema: "deadlight.sweeps/v1", sweeps }))
}

#[derive(Serialize)]
struct Agents {
    schema: &'static str,
    agents: Vec<Agent>,
}

#[derive(Serialize)]
struct Agent {
    node: Name,
    way: Option<String>,
    certificate_ends: Option<Timestamp>,
    contact: Option<Contact>,
}

async fn agents(State(site): State<Arc<Site>>) -> Answer<Agents> {
    let picture = Picture::take(&site).await?;
    let certificates = picture.certificates();
    let agent = |node: &crate::config::Node| Agent {
        node: node.name.clone(),
        way: node.agent.as_ref().map(ToString::to_string),
        certificate_ends: certificates.get(&node.name).copied(),
        contact: picture.state.contacts.get(&node.name).cloned(),
    };
    let agents = picture.config.nodes.iter().map(agent).collect();
    Ok(Json(Agents { schema: "deadlight.agents/v1", agents }))
}

#[derive(Serialize)]
struct Allowlist {
    schema: &'static str,
    entries: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    ports: PortSet,
    nodes: Vec<String>,
    labels: Vec<String>,
    owner: String,
    reason: String,
    expires: Option<Date>,
    in_force: bool,
}

async fn allowlist(State(site): State<Arc<Site>>) -> Answer<Allowlist> {
    let picture = Picture::take(&site).await?;
    let entries = picture.config.allowlist.entries().iter().cloned().map(|entry| Entry {
        in_force: entry.in_force(picture.today),
        ports: entry.ports,
        nodes: entry.nodes,
        labels: entry.labels,
        owner: entry.owner,
        reason: entry.reason,
        expires: entry.expires,
    });
    Ok(Json(Allowlist { schema: "deadlight.allowlist/v1", entries: entries.collect() }))
}

#[derive(Serialize)]
struct Sinks {
    schema: &'static str,
    sinks: Vec<SinkState>,
}

async fn sinks(State(site): State<Arc<Site>>) -> Answer<Sinks> {
    Ok(Json(Sinks { schema: "deadlight.sinks/v1", sinks: Picture::take(&site).await?.sinks }))
}
