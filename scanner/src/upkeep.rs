//! Certificates kept fresh: our own, those of the agents, and those of nodes that were invited.

mod calls;

use std::collections::BTreeMap;
use std::time::Duration;

use deadlight_shared::hint::causes;
use deadlight_shared::tls::{Credentials, TlsError};
use deadlight_shared::{Identity, Name};
use jiff::Timestamp;
use reqwest::Url;
use tokio::task::JoinSet;

pub use calls::open;

use crate::config::{Config, Node, Way};
use crate::deliver::{Agent, DeliverError, EnrolError, Meeting, Window};
use crate::pki::{Pki, PkiError, Registry};
use crate::pull::{Hub, ListenError, Purpose};

/// How often somebody may have been invited or revoked, also while a round goes on.
pub const NEWS: Duration = Duration::from_secs(5);

/// Why nothing could be kept fresh, or one agent could not.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// The CA cannot be used.
    #[error("failed to use the CA")]
    Pki(#[from] PkiError),
    /// Our own credentials cannot be used.
    #[error("failed to use our own certificate")]
    Tls(#[from] TlsError),
    /// Nodes cannot call us.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// An agent cannot be called.
    #[error("failed to set up the way to an agent")]
    Way(#[source] DeliverError),
    /// The agent did not renew.
    #[error("failed to renew its certificate")]
    Renew(#[from] DeliverError),
    /// The node was not enrolled.
    #[error("failed to enrol it")]
    Enrol(#[from] EnrolError),
}

/// Renews our own certificate and those of agents that are due, and enrols who is invited. What fails with one node is
/// logged and keeps none of the others waiting. Nodes that call are met at `hub`.
pub async fn keep(config: &Config, pki: &Pki, hub: Option<&Hub>, now: Timestamp) -> Result<(), UpkeepError> {
    if pki.renew_own(&config.vantage, now)? {
        tracing::info!("our own certificate is renewed");
    }
    let credentials = pki.credentials(&config.vantage)?;
    let registry = pki.read()?;
    if let Some(hub) = hub {
        calls::admit(hub, config, &credentials, registry.as_ref(), now)?;
    }
    let Some(registry) = registry else { return Ok(()) };
    let mut renewals = JoinSet::new();
    let due = with_agent(config).filter(|(node, _)| registry.is_due(&Identity::Agent(node.name.clone()), now));
    for (node, agent) in agents(due, &credentials, Some(&registry), hub, Purpose::Renewal, now)? {
        let pki = pki.clone();
        renewals.spawn(async move {
            let renewed = renew(&pki, &agent, &node, now).await;
            (node, renewed)
        });
    }
    while let Some(joined) = renewals.join_next().await {
        let (node, result) = joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        tell(&node, "its certificate is renewed", &result);
    }
    for node in registry.invited(now) {
        // Who calls is enrolled by its call.
        if let Some((node, Way::Push(url))) = with_agent(config).find(|(configured, _)| configured.name == node) {
            match enrol(pki, &credentials, &node.name, url, now).await {
                // Not there yet: nobody has run the line on the node.
                Err(UpkeepError::Enrol(error @ EnrolError::Reach(_))) => {
                    tracing::debug!(node = %node.name, "{}", causes(&error));
                }
                result => tell(&node.name, "it is enrolled", &result),
            }
        }
    }
    Ok(())
}

/// Enrols `node`, whose agent waits at `url` with the line that we printed.
pub async fn enrol(
    pki: &Pki,
    credentials: &Credentials,
    node: &Name,
    url: &Url,
    now: Timestamp,
) -> Result<(), UpkeepError> {
    let Some(registry) = pki.read()? else { return Ok(()) };
    let verifier = registry.invitation(node, now).map_err(PkiError::from)?;
    let meeting = Meeting { node, trust: registry.signed_trust(), operator_key: pki.operator_key()? };
    let window = Window { url, credentials, meeting };
    window.enrol(verifier, |request| pki.enrol(node, request, now)).await?;
    Ok(enrolled(pki, &registry, node, now)?)
}

/// Tells whom the deployment trusts to each agent that is not known to hold the document of now.
pub async fn spread(pki: &Pki, agents: &BTreeMap<Name, Agent>, now: Timestamp) -> Result<(), PkiError> {
    let Some(registry) = pki.read()? else { return Ok(()) };
    let is_enrolled = |node: &Name| registry.knows(&Identity::Agent(node.clone()));
    let untold = agents.iter().filter(|(node, _)| is_enrolled(node) && !registry.is_told(node));
    let mut calls: JoinSet<_> = untold
        .map(|(node, agent)| {
            let (node, agent) = (node.clone(), agent.clone());
            async move { (node, agent.status().await) }
        })
        .collect();
    while let Some(joined) = calls.join_next().await {
        let (node, status) = joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        if let Err(error) = status {
            tracing::debug!(%node, "{}", causes(&error));
        }
    }
    remember_held(pki, agents, now)
}

/// Remembers which generation of the trust document each agent holds.
pub fn remember_held(pki: &Pki, agents: &BTreeMap<Name, Agent>, now: Timestamp) -> Result<(), PkiError> {
    pki.update(now, |registry| {
        for (node, agent) in agents {
            if let Some(generation) = agent.held() {
                registry.hold(node, generation);
            }
        }
        Ok(())
    })
}

/// The way to the agent of each of `nodes` for `purpose`; to those that call where somebody listens for them.
pub fn agents<'a>(
    nodes: impl Iterator<Item = (&'a Node, &'a Way)>,
    credentials: &Credentials,
    registry: Option<&Registry>,
    hub: Option<&Hub>,
    purpose: Purpose,
    now: Timestamp,
) -> Result<BTreeMap<Name, Agent>, UpkeepError> {
    let trust = registry.map(Registry::signed_trust);
    let mut agents = BTreeMap::new();
    for (node, way) in nodes {
        let agent = match (way, hub) {
            (Way::Push(url), _) => {
                let identity = Identity::Agent(node.name.clone());
                let renewable = registry.filter(|_| purpose == Purpose::Renewal);
                let renewable = renewable.map(|registry| registry.renewable(&identity, now)).unwrap_or_default();
                let tls = credentials.renewing_config(identity, renewable)?;
                Agent::new(&node.name, url, tls, trust).map_err(UpkeepError::Way)?
            }
            (Way::Pull, Some(hub)) => Agent::calling(&node.name, hub, purpose, trust),
            (Way::Pull, None) => continue,
        };
        agents.insert(node.name.clone(), agent);
    }
    Ok(agents)
}

/// The nodes with an agent.
pub fn with_agent(config: &Config) -> impl Iterator<Item = (&Node, &Way)> {
    config.nodes.iter().filter_map(|node| Some((node, node.agent.as_ref()?)))
}

async fn renew(pki: &Pki, agent: &Agent, node: &Name, now: Timestamp) -> Result<(), UpkeepError> {
    let request = agent.request_renewal().await?;
    let certificate = pki.renew(node, &request, now)?;
    agent.install(certificate).await?;
    Ok(pki.update(now, |registry| {
        registry.arrived(&Identity::Agent(node.clone()));
        Ok(())
    })?)
}

/// Remembers that `node` has its certificate, and was told whom `then` says to trust.
fn enrolled(pki: &Pki, then: &Registry, node: &Name, now: Timestamp) -> Result<(), PkiError> {
    pki.update(now, |registry| {
        registry.arrived(&Identity::Agent(node.clone()));
        registry.hold(node, then.trust().generation);
        Ok(())
    })
}

fn tell(node: &Name, done: &str, result: &Result<(), UpkeepError>) {
    match result {
        Ok(()) => tracing::info!(%node, "{done}"),
        Err(error) => tracing::warn!(%node, "{}", causes(error)),
    }
}
