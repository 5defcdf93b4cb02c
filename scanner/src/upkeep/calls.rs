//! The nodes that call: whom the hub lets in now, and the enrolment of those that call with a line.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deadlight_shared::hint::causes;
use deadlight_shared::tls::{Callers, Credentials};
use deadlight_shared::{Identity, KeyId, Name};
use hyper::StatusCode;
use jiff::Timestamp;
use rustls::ServerConfig;
use tokio::sync::mpsc;

use super::{NEWS, UpkeepError, enrolled, tell};
use crate::config::{Config, TrustSource, Way};
use crate::deliver::{EnrolError, Meeting};
use crate::pki::{Pki, PkiError, Registry};
use crate::pull::{Hub, Lane, Listener, Stranger};

/// Strangers that are spoken to at a time.
const MOST: usize = 64;

/// Certificates that were issued to a key and have not arrived yet: their lines are spent.
type Undelivered = Mutex<BTreeMap<KeyId, (Name, String)>>;

/// Listens for the nodes that call, if there are any. Whoever comes with an enrolment line is enrolled.
pub fn open(config: &Config, credentials: Option<&Credentials>) -> Result<Option<Hub>, UpkeepError> {
    let (Some(credentials), Some(_)) = (credentials, calling(config).next()) else { return Ok(None) };
    let known = config.nodes.iter().flat_map(|node| &node.addresses).copied().collect();
    let listener = Listener::bind(config.pull, known)?;
    let registry = registry(config)?;
    let (callers, tls) = callers(config, credentials, registry.as_ref(), Timestamp::now())?;
    let (hub, strangers) = Hub::new(callers, tls);
    tokio::spawn(listener.run(hub.clone()));
    if let Some(TrustSource::Pki(pki)) = &config.trust {
        tokio::spawn(follow(hub.clone(), config.clone(), pki.clone()));
        tokio::spawn(enrol_all(pki.clone(), calling(config).cloned().collect(), strangers));
    }
    Ok(Some(hub))
}

/// Lets in whom our certificate, the registry and the invitations of now say, and nobody else.
pub(super) fn admit(
    hub: &Hub,
    config: &Config,
    credentials: &Credentials,
    registry: Option<&Registry>,
    now: Timestamp,
) -> Result<(), UpkeepError> {
    let (callers, tls) = callers(config, credentials, registry, now)?;
    hub.admit(callers, tls);
    Ok(())
}

fn callers(
    config: &Config,
    credentials: &Credentials,
    registry: Option<&Registry>,
    now: Timestamp,
) -> Result<(Arc<Callers>, ServerConfig), UpkeepError> {
    let renewable = |node: &Name| {
        let identity = Identity::Agent(node.clone());
        registry.map(|registry| registry.renewable(&identity, now)).unwrap_or_default()
    };
    let nodes = calling(config).map(|node| (node.clone(), renewable(node))).collect();
    let invited = registry.map(|registry| registry.invited(now)).unwrap_or_default();
    let strangers = invited.iter().any(|invited| calling(config).any(|node| node == invited));
    let callers = Arc::new(credentials.callers(nodes, strangers));
    let tls = credentials.answering_config(Arc::clone(&callers))?;
    Ok((callers, tls))
}

fn registry(config: &Config) -> Result<Option<Registry>, UpkeepError> {
    match &config.trust {
        Some(TrustSource::Pki(pki)) => Ok(pki.read()?),
        Some(TrustSource::Files(_)) | None => Ok(None),
    }
}

fn calling(config: &Config) -> impl Iterator<Item = &Name> {
    config.nodes.iter().filter(|node| node.agent == Some(Way::Pull)).map(|node| &node.name)
}

async fn enrol_all(pki: Pki, nodes: BTreeSet<Name>, mut strangers: mpsc::Receiver<Stranger>) {
    let (undelivered, mut lane) = (Arc::new(Undelivered::default()), Lane::new(MOST));
    while let Some(stranger) = strangers.recv().await {
        let meeting = meet(pki.clone(), nodes.clone(), stranger, Arc::clone(&undelivered));
        lane.enter(tokio::spawn(meeting).abort_handle());
    }
}

/// Lets callers in and out as the registry changes.
async fn follow(hub: Hub, config: Config, pki: Pki) {
    let mut followed = None;
    loop {
        tokio::time::sleep(NEWS).await;
        let mut look = || -> Result<(), UpkeepError> {
            let (registry, now) = (pki.read()?, Timestamp::now());
            let news = registry.as_ref().map(|registry| (registry.trust().generation, registry.invited(now)));
            if news != followed {
                admit(&hub, &config, &pki.credentials(&config.vantage)?, registry.as_ref(), now)?;
                followed = news;
            }
            Ok(())
        };
        if let Err(error) = look() {
            tracing::warn!("nodes call under what held before: {}", causes(&error));
        }
    }
}

async fn meet(pki: Pki, nodes: BTreeSet<Name>, mut stranger: Stranger, undelivered: Arc<Undelivered>) {
    let now = Timestamp::now();
    let met: Result<(), UpkeepError> = async {
        let Some(registry) = pki.read()? else { return Ok(()) };
        let operator_key = pki.operator_key()?;
        let due = locked(&undelivered).get(&stranger.key).cloned();
        let (node, certificate) = match due {
            Some(due) => due,
            None => match certify(&pki, &registry, &nodes, &mut stranger, now).await? {
                Some(certified) => certified,
                None => return Ok(()),
            },
        };
        locked(&undelivered).insert(stranger.key, (node.clone(), certificate.clone()));
        let meeting = Meeting { node: &node, trust: registry.signed_trust(), operator_key };
        meeting.hand_over(&mut stranger.line, &certificate).await?;
        locked(&undelivered).remove(&stranger.key);
        enrolled(&pki, &registry, &node, now)?;
        tell(&node, "it is enrolled", &Ok(()));
        Ok(())
    }
    .await;
    if let Err(error) = met {
        tracing::warn!(key = %stranger.key, "somebody called to be enrolled and was not: {}", causes(&error));
    }
}

/// The node that the stranger has a line for, and its certificate; `None` when it is none of those that are invited.
async fn certify(
    pki: &Pki,
    registry: &Registry,
    nodes: &BTreeSet<Name>,
    stranger: &mut Stranger,
    now: Timestamp,
) -> Result<Option<(Name, String)>, UpkeepError> {
    for node in registry.invited(now).into_iter().filter(|node| nodes.contains(node)) {
        let verifier = registry.invitation(&node, now).map_err(PkiError::from)?;
        let meeting = Meeting { node: &node, trust: registry.signed_trust(), operator_key: None };
        match meeting.prove(&mut stranger.line, &stranger.channel, verifier).await {
            Ok(request) => {
                let certificate = pki.enrol(&node, &request, now)?;
                return Ok(Some((node, certificate)));
            }
            // Its line is for another node.
            Err(EnrolError::Said { status: StatusCode::CONFLICT, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

fn locked(undelivered: &Undelivered) -> MutexGuard<'_, BTreeMap<KeyId, (Name, String)>> {
    undelivered.lock().unwrap_or_else(PoisonError::into_inner)
}
