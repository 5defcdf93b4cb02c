//! The life of trust at speed: one enrolment line and ten thousand nodes that come with it; certificates and CAs that
//! change under a steady order.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use deadlight_agent::{api::Slots, identity::Window as NodeWindow};
use deadlight_scanner::{
    config::{Config, Way},
    deliver::{Agent, EnrolError, Meeting, Window},
    pki::{Pki, Registry},
    upkeep,
};
use deadlight_shared::{
    Identity, Name,
    enrol::{EnrolLine, Secret},
    wire::Order,
};
use deadlight_tests::{
    deployment::{AGENT_PORT, Deployment, NODE, Settings, VANTAGE},
    docker_rules::{Backend, ForwardPolicy, Layout},
    lab::{Family, INGRESS, Lab},
    netns::Netns,
    order::order,
    scratch,
};
use jiff::Timestamp;
use serde_json::Value;
use tokio::{sync::Semaphore, task::JoinSet, time::interval};

const USES: usize = 10_000;
/// Connections under way at a time: each takes two descriptors here, beside one for each window.
const UNDER_WAY: usize = 1_000;
const RENEWALS: u32 = 100;
const ROTATIONS: u32 = 20;
const BEAT: Duration = Duration::from_secs(1);

pub(crate) fn measure() -> Result<()> {
    one_line()?;
    steady_orders()
}

/// Ten thousand windows with one line, each a node with a key of its own, and the scanner at all of them at once.
fn one_line() -> Result<()> {
    let directory = scratch::directory()?;
    let pki = Pki::at(&directory.path().join("pki"));
    let node: Name = NODE.parse()?;
    let scanner: Name = VANTAGE.parse()?;
    pki.init(Timestamp::now())?;
    pki.issue(&Identity::Scanner(scanner.clone()), 7, Timestamp::now())?;
    let secret = [7; 16];
    let authority = pki.update(Timestamp::now(), |registry| {
        registry.invite(node.clone(), Secret::new(secret).verifier(), Timestamp::now());
        Ok(registry.signer())
    })?;
    let line = EnrolLine { node: node.clone(), authority, secret: Secret::new(secret) }.to_string();
    let loopback = Netns::new("enrol")?;
    let (enrolled, refused, elapsed) = loopback.enter(|| {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(come_all(&line, &pki, &scanner, &node, directory.path()))
    })?;
    println!(
        "| nodes that come with one enrolment line, {UNDER_WAY} of {USES} at a time: enrolled, refused | {enrolled}, {refused} in {:.1} s | | |",
        elapsed.as_secs_f64()
    );
    ensure!(enrolled == 1 && refused == USES - 1, "not exactly one");
    Ok(())
}

async fn come_all(
    line: &str,
    pki: &Pki,
    scanner: &Name,
    node: &Name,
    directory: &Path,
) -> Result<(usize, usize, Duration)> {
    let mut windows = JoinSet::new();
    let address = |index: usize| -> Result<SocketAddr> {
        Ok(([127, 0, u8::try_from(index / 250)?, u8::try_from(index % 250 + 1)?], AGENT_PORT).into())
    };
    for index in 0..USES {
        let window = NodeWindow::new(line.parse()?, &directory.join(index.to_string()))?;
        let address = address(index)?;
        windows.spawn(async move { window.wait(address, Slots::new(Vec::new())).await });
    }
    let (credentials, registry) = (Arc::new(pki.credentials(scanner)?), Arc::new(pki.read()?.context("no registry")?));
    let enrolled = Arc::new(AtomicUsize::new(0));
    let under_way = Arc::new(Semaphore::new(UNDER_WAY));
    let started = Instant::now();
    let mut uses = JoinSet::new();
    for index in 0..USES {
        let (credentials, registry, enrolled) =
            (Arc::clone(&credentials), Arc::clone(&registry), Arc::clone(&enrolled));
        let (pki, node, url) = (pki.clone(), node.clone(), format!("https://{}", address(index)?));
        let under_way = Arc::clone(&under_way);
        uses.spawn(async move {
            let _permit = under_way.acquire().await?;
            let url = url.parse()?;
            let meeting = Meeting { node: &node, trust: registry.signed_trust(), operator_key: None };
            let window = Window { url: &url, credentials: &credentials, meeting };
            let verifier = registry.invitation(&node, Timestamp::now())?;
            let certify = |request: &str| pki.enrol(&node, request, Timestamp::now());
            // Who did not get through the crowd has not used the line yet.
            while let Err(error) = window.enrol(verifier, certify).await {
                if !matches!(error, EnrolError::Reach { .. }) {
                    return Err(error.into());
                }
            }
            enrolled.fetch_add(1, Ordering::Relaxed);
            anyhow::Ok(())
        });
    }
    let mut refused = 0;
    while let Some(result) = uses.join_next().await {
        if let Err(error) = result? {
            ensure!(format!("{error:#}").contains("was used already"), "{error:#}");
            refused += 1;
        }
    }
    Ok((enrolled.load(Ordering::Relaxed), refused, started.elapsed()))
}

/// An order each second, while the node's certificate is renewed each second and then the CA is changed, again and again.
fn steady_orders() -> Result<()> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    let deployment = Deployment::unenrolled(&Settings::default())?;
    deployment.enroll(&lab.wire)?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let (sent, failed, generation) = lab.inet().enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(change_under_orders(&deployment))
    })?;
    println!(
        "| {RENEWALS} renewals and {ROTATIONS} changes of the CA (trust document {generation}), an order a second: orders, failed | {sent}, {failed} | | |"
    );
    ensure!(failed == 0, "{failed} orders failed");
    Ok(())
}

async fn change_under_orders(deployment: &Deployment) -> Result<(u64, u64, u64)> {
    let today = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let config = Config::load(&deployment.path("scanner.toml"), today)?;
    let pki = Pki::at(&deployment.path("pki"));
    let registry_file = deployment.path("pki/registry.json");
    let orders = async {
        let (mut sent, mut failed) = (0, 0);
        let mut beat = interval(BEAT);
        loop {
            beat.tick().await;
            sent += 1;
            if let Err(error) = deliver(&config, &pki, sent).await {
                println!("order {sent}: {error:#}");
                failed += 1;
            }
            // The last thing the changes do is to remove this.
            if !registry_file.with_extension("under-way").exists() {
                return anyhow::Ok((sent, failed));
            }
        }
    };
    fs::write(registry_file.with_extension("under-way"), "")?;
    let changes = async {
        let changed = change(&config, &pki, &registry_file).await;
        fs::remove_file(registry_file.with_extension("under-way"))?;
        changed?;
        anyhow::Ok(registry(&pki)?.trust().generation)
    };
    let (orders, generation) = tokio::join!(orders, changes);
    let (sent, failed) = orders?;
    Ok((sent, failed, generation?))
}

async fn change(config: &Config, pki: &Pki, registry_file: &Path) -> Result<()> {
    let mut beat = interval(BEAT);
    for _ in 0..RENEWALS {
        beat.tick().await;
        let before = key(&registry(pki)?)?;
        age(registry_file)?;
        upkeep::keep(config, pki, None, Timestamp::now()).await?;
        ensure!(key(&registry(pki)?)? != before, "not renewed");
    }
    for _ in 0..ROTATIONS {
        beat.tick().await;
        for _ in 0..3 {
            pki.rotate(false, Timestamp::now())?;
            upkeep::keep(config, pki, None, Timestamp::now()).await?;
            let agents = [(NODE.parse()?, agent(config, pki)?)].into();
            upkeep::spread(pki, &agents, Timestamp::now()).await?;
        }
    }
    Ok(())
}

async fn deliver(config: &Config, pki: &Pki, sequence: u64) -> Result<()> {
    let body = order(sequence, &[(Family::V4, "tcp", INGRESS)]);
    let order: Order = serde_json::from_value(body)?;
    agent(config, pki)?.deliver(&order).await?;
    Ok(())
}

fn agent(config: &Config, pki: &Pki) -> Result<Agent> {
    let (node, url) = upkeep::with_agent(config).next().context("no node with an agent")?;
    let Way::Push(url) = url else { bail!("the node calls") };
    let tls = pki.credentials(&config.vantage)?.client_config(Identity::Agent(node.name.clone()))?;
    Ok(Agent::new(&node.name, url, tls, Some(registry(pki)?.signed_trust()))?)
}

fn registry(pki: &Pki) -> Result<Registry> {
    pki.read()?.context("no registry")
}

fn key(registry: &Registry) -> Result<String> {
    let of_the_node = |identity: &Identity| matches!(identity, Identity::Agent(_));
    let latest = registry.latest();
    let held = latest.into_iter().find(|held| of_the_node(&held.identity)).context("the node has no certificate")?;
    Ok(held.key.to_string())
}

/// Lets the CA believe that the node's certificates are old.
fn age(registry: &Path) -> Result<()> {
    let mut document: Value = serde_json::from_slice(&fs::read(registry)?)?;
    for certificate in document["certificates"].as_array_mut().context("no certificates")? {
        if certificate["identity"].as_str().is_some_and(|identity| identity.contains("/agent/")) {
            certificate["from"] = "2001-01-01T00:00:00Z".into();
        }
    }
    Ok(fs::write(registry, document.to_string())?)
}
