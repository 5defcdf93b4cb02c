//! `doctor`: what keeps this scanner from seeing, closing, proving or telling, each with its remedy. It only asks.

use std::io::Write as _;

use clap::Args;
use deadlight_shared::Identity;
use deadlight_shared::doctor::{Findings, Found};
use deadlight_shared::hint;
use deadlight_shared::text::printable;
use deadlight_shared::wire::Mode;
use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::{SignedDuration, Timestamp};
use nix::sys::statvfs::statvfs;

use super::check::{self, Checked, ConfigFile, today};
use super::past::{Output, hinted, write_json};
use super::{Exit, Failure, written};
use crate::config::{Config, Node, TrustSource, Way};
use crate::deliver::Agent;
use crate::net::{self, raw::Sender};
use crate::pki::Certificate;
use crate::store::{Database, DatabaseError, Location, Past};
use crate::view::{LastSweep, Status};

pub(super) const HELP: &str = "\
Exit status:
  0  nothing is wrong (there may be doubts)
  1  something is wrong
  2  usage, configuration or run-time error";

/// Nodes that are asked at a time.
const AT_ONCE: usize = 64;
/// With fewer descriptors, sockets are what a sweep waits for.
const FEW: usize = 1_000;
/// A disk with less room is soon full: some days of a restless swarm.
const LITTLE: u64 = 256 << 20;
/// A certificate that ends so soon should have been renewed.
const SOON: SignedDuration = SignedDuration::from_hours(48);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(super) async fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let now = Timestamp::now();
    let Checked { config, .. } = check::everything(&arguments.file.config, today(now))?;
    let found = examined(&config, now).await?;
    match arguments.output {
        Output::Json => write_json(&found)?,
        Output::Table => written(write!(anstream::stdout().lock(), "{found}"))?,
    }
    Ok(if found.has_wrong() { Exit::Exposed } else { Exit::Fine })
}

/// Everything that there is to look at.
pub(super) async fn examined(config: &Config, now: Timestamp) -> Result<Findings, Failure> {
    let mut found = vec![packets(), descriptors()];
    found.extend(memory(config, now).await);
    // Also where the database cannot be opened: this may be why.
    found.extend(disk(config));
    found.extend(
        config
            .expired(today(now))
            .into_iter()
            .map(|text| Found::doubt("allowlist", text, "remove it, or give it a later day")),
    );
    found.extend(certificates(config, now)?);
    let agents = check::agents(config, None)?;
    let nodes = stream::iter(&config.nodes).map(|node| examine(node, agents.get(&node.name)));
    found.extend(nodes.buffered(AT_ONCE).collect::<Vec<_>>().await.into_iter().flatten());
    Ok(Findings::new(found))
}

fn packets() -> Found {
    let loopback = 1;
    match Sender::open(loopback) {
        Ok(_) => Found::well("packets", "SYN packets of our own can be sent"),
        Err(error) => {
            let program =
                std::env::current_exe().map_or_else(|_| "deadlight-scanner".into(), |path| path.display().to_string());
            let remedy = format!("sudo setcap cap_net_raw+ep {program}, or docker/systemd/deadlight-scanner.service");
            Found::doubt("packets", format!("sweeps ask by connect, which is slower: {}", hint::causes(&error)), remedy)
        }
    }
}

fn descriptors() -> Found {
    match net::in_flight_limit() {
        few if few < FEW => Found::doubt(
            "descriptors",
            format!("only {few} sockets at a time"),
            "ulimit -n 65536, or LimitNOFILE= in the unit",
        ),
        many => Found::well("descriptors", format!("{many} sockets at a time")),
    }
}

/// The database, what it says of the last sweep, and the places that alerts go to.
async fn memory(config: &Config, now: Timestamp) -> Vec<Found> {
    let wrong_database = |error: DatabaseError| {
        let hinted = hinted(error);
        Found::wrong("database", hint::causes(&hinted), hint::of(&hinted).unwrap_or_default())
    };
    let database = match Database::open_existing(&config.store, &config.vantage).await {
        Ok(database) => database,
        Err(DatabaseError::Absent { location }) => {
            return vec![Found::doubt(
                "database",
                format!("{location} is not there yet"),
                "deadlight-scanner run --once makes it",
            )];
        }
        Err(error) => return vec![wrong_database(error)],
    };
    let mut found = Vec::new();
    let past = Past(&database);
    let read = async {
        let coverage = past.coverage(&config.vantage, now).await?;
        Ok::<_, DatabaseError>((database.load_all().await?, coverage, past.sinks(&config.vantage).await?))
    };
    match read.await {
        Ok((state, coverage, sinks)) => {
            found.push(Found::well("database", format!("{}: {} findings", database.location(), state.findings.len())));
            let status = Status::new(&state, coverage, config, now);
            found.push(match &status.sweep {
                Some(LastSweep { late: false, complete: false, age, .. }) => Found::doubt(
                    "sweeps",
                    format!("the last full one ended {age:#} ago and did not see everything"),
                    "what follows says why; else: deadlight-scanner status",
                ),
                Some(LastSweep { late: false, age, .. }) => {
                    Found::well("sweeps", format!("the last full one ended {age:#} ago"))
                }
                Some(LastSweep { age, .. }) => Found::wrong(
                    "sweeps",
                    format!("the last full one ended {age:#} ago: the next is overdue"),
                    "systemctl status deadlight-scanner",
                ),
                None => Found::doubt("sweeps", "there was none yet".to_owned(), "deadlight-scanner run"),
            });
            let remedy = "deadlight-scanner run, at a vantage point whose configuration has them";
            found.extend(status.doubt().map(|doubt| Found::doubt("sweeps", doubt, remedy)));
            found.extend(sinks.iter().map(|sink| match &sink.trouble {
                None => Found::well(format!("alerts to {}", sink.name), format!("{} wait", sink.waiting)),
                Some(trouble) => Found::wrong(
                    format!("alerts to {}", sink.name),
                    format!("{} wait: {}", sink.waiting, printable(trouble, 200)),
                    "deadlight-scanner alert test",
                ),
            }));
        }
        Err(error) => found.push(wrong_database(error)),
    }
    database.close().await;
    found
}

fn disk(config: &Config) -> Option<Found> {
    let Location::File(path) = &config.store else { return None };
    let statistics = statvfs(deadlight_shared::file::directory_of(path)).ok()?;
    let free = statistics.blocks_available().saturating_mul(statistics.fragment_size());
    let text = format!("{} MiB free for {}", free >> 20, path.display());
    Some(if free < LITTLE {
        Found::doubt("disk", text, "make room, or move the database: [store] url")
    } else {
        Found::well("disk", text)
    })
}

fn certificates(config: &Config, now: Timestamp) -> Result<Vec<Found>, Failure> {
    let Some(TrustSource::Pki(_)) = &config.trust else { return Ok(Vec::new()) };
    let registry = check::registry(config)?;
    let is_ours = |certificate: &&Certificate| match &certificate.identity {
        Identity::Agent(name) => config.has_agent(name),
        Identity::Scanner(_) => true,
    };
    let latest = registry.iter().flat_map(|registry| registry.latest()).filter(is_ours);
    let judged = latest.map(|certificate| {
        let (subject, to) = (format!("certificate of {}", certificate.identity), certificate.to);
        match to.duration_since(now) {
            left if left.is_negative() => Found::wrong(
                subject,
                format!("ended on {to:.0}"),
                "deadlight-scanner run renews it within 30 days; after that: enroll",
            ),
            left if left < SOON => Found::doubt(
                subject,
                format!("ends on {to:.0}: it should have been renewed"),
                "deadlight-scanner run renews it; its log says why not",
            ),
            _ => Found::well(subject, format!("until {to:.0}")),
        }
    });
    Ok(judged.collect())
}

/// A node as it is seen from here, and by its agent.
async fn examine(node: &Node, agent: Option<&Agent>) -> Vec<Found> {
    let mut found = Vec::new();
    for address in &node.addresses {
        let subject = format!("{} {address}", node.name);
        if let Err(error) = net::check_route(*address) {
            found.push(Found::wrong(
                subject,
                format!("there is no way to it: {error}"),
                format!("ip route get {address}"),
            ));
            continue;
        }
        let Some(control) = node.control_port() else {
            let remedy = "give the [[node]] a `control`, such as \"22/tcp\"";
            found.push(Found::doubt(
                subject,
                "no port of it must answer, so silence proves nothing".to_owned(),
                remedy,
            ));
            continue;
        };
        found.push(match net::answers(*address, control).await {
            true => Found::well(subject, format!("{control} answers")),
            false => Found::wrong(
                subject,
                format!("{control} does not answer, so silence proves nothing: this vantage point may be shut out"),
                format!("let this host reach {control}, or name another `control`; at the agent: scanners = [this host's address]"),
            ),
        });
    }
    found.extend(match (&node.agent, agent) {
        (Some(Way::Pull), _) => {
            vec![Found::well(format!("agent of {}", node.name), "calls us: `status` says when it last did")]
        }
        (_, Some(agent)) => ask(node, agent).await,
        (_, None) => vec![Found::doubt(
            format!("agent of {}", node.name),
            "none: findings are only shown".to_owned(),
            format!("deadlight-scanner enroll {}", node.name),
        )],
    });
    found
}

async fn ask(node: &Node, agent: &Agent) -> Vec<Found> {
    let subject = || format!("agent of {}", node.name);
    let status = match agent.status().await {
        Ok(status) => status,
        Err(error) => {
            let remedy =
                format!("on the node: systemctl status deadlight-agent; from here: {} must be reachable", way(node));
            return vec![Found::wrong(subject(), printable(&hint::causes(&error), 300), remedy)];
        }
    };
    let mut found = vec![match (status.mode, status.in_force) {
        (Mode::Enforce, true) => {
            Found::well(subject(), format!("{}, {} ports closed", status.version, status.closed.len()))
        }
        (Mode::Enforce, false) => Found::wrong(
            subject(),
            "the kernel does not hold the rules that it should".to_owned(),
            "on the node: deadlight-agent plan",
        ),
        (Mode::Observe, _) => {
            Found::doubt(subject(), "observes: it closes nothing".to_owned(), "mode = \"enforce\" in its own file")
        }
    }];
    found.extend(
        status
            .problems
            .iter()
            .map(|problem| Found::wrong(subject(), printable(problem, 300), "on the node: deadlight-agent status")),
    );
    if status.door.is_empty() {
        let remedy = "scanners = [this host's address] in its own file";
        found.push(Found::doubt(
            subject(),
            "everybody reaches its port, and its certificate decides alone".to_owned(),
            remedy,
        ));
    }
    if let Some(ahead) = agent.ahead() {
        found.push(Found::doubt(
            subject(),
            format!("its clock is {ahead:#} ahead of ours"),
            "timedatectl set-ntp true, on the host whose clock is wrong",
        ));
    }
    found
}

fn way(node: &Node) -> String {
    node.agent.as_ref().map(ToString::to_string).unwrap_or_default()
}
