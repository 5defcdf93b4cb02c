//! Orders as a scanner would send them, for stories that need no sweep.

use anyhow::{Result, ensure};
use deadlight_shared::{OperatorSecret, Permit, PermitEntry, SignedPermit};
use serde_json::{Value, json};

use crate::{
    deployment::{AGENT_PORT, Deployment, NODE, VANTAGE},
    hostile::{Response, request},
    lab::{Family, Wire},
    test_ca::Validity,
};

/// Where orders go.
pub const PATH: &str = "/v1/exposures";

/// The body of an order that closes `ports` (such as `(Family::V4, "tcp", 8080)`) and allows 80/tcp.
pub fn order(sequence: u64, ports: &[(Family, &str, u16)]) -> Value {
    let findings: Vec<_> = ports
        .iter()
        .enumerate()
        .map(|(number, (family, protocol, port))| {
            json!({
                "id": format!("{number:016x}"), "address": family.node(0).ip(),
                "protocol": protocol, "port": port, "evidence": "syn-ack",
            })
        })
        .collect();
    json!({
        "schema": "deadlight.order/v1", "scanner": VANTAGE, "epoch": 1, "sequence": sequence, "scan": "story",
        "node": NODE, "expires_at": "2099-01-01T00:00:00Z", "findings": findings, "allow": ["80/tcp"],
    })
}

/// [`order`], with another allowlist than 80/tcp and a permit of the operator.
pub fn allowing(sequence: u64, ports: &[(Family, &str, u16)], allow: &str, permit: Option<&SignedPermit>) -> Value {
    let mut order = order(sequence, ports);
    order["allow"] = allow.split(',').collect();
    order["permit"] = json!(permit);
    order
}

/// A permit of NODE: `ports`, for ever.
pub fn permit(operator: &OperatorSecret, number: u64, ports: &str) -> Result<SignedPermit> {
    let entries = vec![PermitEntry { ports: ports.parse()?, expires: None }];
    let permit = Permit { schema: Permit::SCHEMA.to_owned(), node: NODE.parse()?, number, entries };
    Ok(permit.sign(operator)?)
}

/// Sends a body with the scanner's own identity.
pub fn send(deployment: &Deployment, wire: &Wire, body: &Value) -> Result<Response> {
    let scanner = deployment.identity(&format!("spiffe://deadlight/scanner/{VANTAGE}"), Validity::Current)?;
    request(&wire.inet, Family::V4.node(AGENT_PORT), Some(scanner), "PUT", PATH, &body.to_string())
}

/// Sends an order and demands that the agent enforces all of it.
pub fn enforce(deployment: &Deployment, wire: &Wire, sequence: u64, ports: &[(Family, &str, u16)]) -> Result<()> {
    let response = send(deployment, wire, &order(sequence, ports))?;
    ensure!(response.status == 200, "{}", response.text);
    let enforced = response.text.matches("\"enforced\"").count();
    ensure!(enforced == ports.len(), "{enforced} of {} are enforced: {}", ports.len(), response.text);
    Ok(())
}
