//! A scanner's memory as a year leaves it, without the year: what pages are shown of.

use std::net::IpAddr;

use anyhow::Result;
use deadlight_scanner::{
    assess::first_seen,
    round::Ending,
    store::{Contact, Database, Location, Record, Seen, Store, Swept, Target, Warned, Why},
    sweep::Tally,
};
use deadlight_shared::{
    Finding, FindingId, FindingStatus, Name, Port, PortState,
    wire::{Cause, CauseKind, Mode, Outcome, OutcomeStatus},
};
use jiff::{SignedDuration, Timestamp};

/// The vantage point whose memory it is.
pub const VANTAGE: &str = "office-a";
/// What a service says of itself that wants to run in whoever reads it.
pub const HOSTILE: &str = "</q><script>document.title='caught'</script><img src=x onerror=\"document.title='caught'\">";

/// The configuration of `nodes` nodes, `node-1` and so on, each at an IPv4 and an IPv6 address, with agents.
pub fn configuration(nodes: u16) -> String {
    let node = |number: u16| {
        let [v4, v6] = addresses(number);
        format!(
            "[[node]]\nname = \"node-{number}\"\naddresses = [\"{v4}\", \"{v6}\"]\nagent = \"https://{v4}:7443\"\n\
             control = \"22/tcp\"\n"
        )
    };
    let nodes: String = (1..=nodes).map(node).collect();
    format!(
        "[vantage]\nid = \"{VANTAGE}\"\n{nodes}\
         [[allow]]\nports = \"80,443/tcp\"\nnodes = [\"*\"]\nowner = \"web\"\nreason = \"public site\"\n\
         [[allow]]\nports = \"51820/udp\"\nnodes = [\"node-1\"]\nowner = \"infra\"\nreason = \"tunnel to the other site\"\n\
         expires = 2026-12-05\n\
         [pki]\ndirectory = \"pki\"\n[store]\nurl = \"sqlite:deadlight.db\"\n[web]\n"
    )
}

/// Fills the database at `location` with what `nodes` nodes and `days` days before `now` leave.
pub async fn remember(location: &Location, nodes: u16, days: i64, now: Timestamp) -> Result<()> {
    let vantage: Name = VANTAGE.parse()?;
    let database = Database::open_alone(location, &vantage).await?;
    let before = |hours: i64| now - SignedDuration::from_hours(hours);
    let mut store = Store::new(database.load().await?, before(24 * days));
    let exposures = exposures(nodes, days)?;
    let mut findings: Vec<Finding> = Vec::new();
    for (hours, place, course) in &exposures {
        let (node, address, port, service) = place;
        let id = FindingId::of(node, *address, *port);
        let index = findings.iter().position(|finding| finding.id == id).unwrap_or_else(|| {
            let first = first_seen(&id, node.clone(), *address, *port, before(*hours));
            findings.push(Finding { service: (!service.is_empty()).then(|| service.clone()), ..first });
            findings.len() - 1
        });
        for (minutes, status) in course {
            findings[index].status = *status;
            let at = before(*hours) + SignedDuration::from_mins(*minutes);
            store.keep(&findings, at, |finding| Some(why(finding)));
        }
        if store.unsaved().len() > 1_000 {
            database.write(store.unsaved()).await?;
            store.saved();
        }
    }
    for number in 1..=nodes {
        store.contact(&format!("node-{number}").parse()?, contact(number, now));
    }
    database.write(store.unsaved()).await?;
    store.saved();
    database.write(&seen(nodes, before(24 * days))?).await?;
    let hours = 24 * days;
    // A sweep each 15 minutes, as long as that is not too long to wait for.
    let sweeps = (0..(4 * hours).min(40_000)).map(|quarter| {
        let started = now - SignedDuration::from_mins(15 * quarter + 5);
        let targets = u64::from(nodes) * 2 * 65_540;
        let tally = Tally {
            targets,
            open: 4,
            closed: targets - 4,
            probes_sent: targets + 300,
            controls: 400,
            lost: 2,
            ..Tally::default()
        };
        let (finished, ending) = (started + SignedDuration::from_secs(70), Ending { open: 2, ..Ending::default() });
        Record::Swept(Swept { started, finished, interrupted: false, milliseconds: 61_300, scope: None, tally, ending })
    });
    database.write(&sweeps.collect::<Vec<_>>()).await?;
    database.tell("slack", 2, Some("it answered 503 Service Unavailable: try later")).await?;
    database.tell("alertmanager", 10_000_000, None).await?;
    database.close().await;
    Ok(())
}

type Place = (Name, IpAddr, Port, String);
type Course = Vec<(i64, FindingStatus)>;

/// Where, how many hours ago, and what became of it, minute by minute.
fn exposures(nodes: u16, days: i64) -> Result<Vec<(i64, Place, Course)>> {
    use FindingStatus::{Enforced, Observed, Open, Refused, Reported, Resolved};
    let closed: Course = vec![(0, Open), (1, Enforced), (2, Resolved)];
    let place = |number: u16, family: usize, port: &str, service: &str| -> Result<Place> {
        Ok((format!("node-{number}").parse()?, addresses(number)[family], port.parse()?, service.to_owned()))
    };
    let mut exposures = vec![
        (
            600,
            place(1, 0, "9100/tcp", "HTTP 200 Node Exporter")?,
            vec![(0, Open), (1, Observed), (7_000, Enforced), (7_001, Resolved)],
        ),
        (410, place(2, 0, "8080/tcp", "HTTP 200 cAdvisor")?, closed.clone()),
        (410, place(2, 1, "8080/tcp", "HTTP 200 cAdvisor")?, closed.clone()),
        (
            200,
            place(3, 0, "6379/tcp", "redis: -NOAUTH Authentication required.")?,
            vec![(0, Open), (1, Reported), (900, Enforced), (910, Resolved)],
        ),
        (30, place(2, 0, "2377/tcp", "")?, vec![(0, Open), (1, Refused)]),
        (5, place(4, 1, "8080/tcp", HOSTILE)?, vec![(0, Open), (1, Observed)]),
        (1, place(5, 0, "9000/udp", "")?, vec![(0, Open), (1, Enforced)]),
    ];
    // Something is open for two minutes on one node in ten each day.
    for day in 1..days {
        for number in (1..=nodes).filter(|number| number % 10 == u16::try_from(day % 10).unwrap_or(0)) {
            exposures.push((
                24 * day,
                place(number, 0, &format!("{}/tcp", 8_000 + day % 40), "HTTP 404")?,
                closed.clone(),
            ));
        }
    }
    exposures
        .retain(|(_, (node, ..), _)| node.as_str().trim_start_matches("node-").parse().is_ok_and(|n: u16| n <= nodes));
    exposures.sort_by_key(|(hours, ..)| std::cmp::Reverse(*hours));
    Ok(exposures)
}

fn seen(nodes: u16, since: Timestamp) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for number in 1..=nodes {
        for (address, port) in addresses(number)
            .into_iter()
            .flat_map(|address| ["22/tcp", "443/tcp", "80/tcp"].map(|port| (address, port)))
        {
            let node = format!("node-{number}").parse()?;
            let (evidence, service) = ("syn-ack".to_owned(), Some("HTTP 200 Welcome".to_owned()));
            let seen = Some(Seen { node, state: PortState::Open, evidence, service, since });
            records.push(Record::Seen { target: Target { address, port: port.parse()? }, seen, at: since });
        }
    }
    Ok(records)
}

fn contact(number: u16, now: Timestamp) -> Contact {
    let ago = |minutes| now - SignedDuration::from_mins(minutes);
    let said = vec!["the guard was gone and is put back; somebody ran `nft flush ruleset`".to_owned()];
    match number {
        3 => {
            let trouble = Some("failed to reach it: connection refused".to_owned());
            Contact { asked: ago(4), answered: Some(ago(95)), mode: Some(Mode::Enforce), trouble, warned: None }
        }
        4 => Contact { asked: ago(4), answered: Some(ago(4)), mode: Some(Mode::Observe), trouble: None, warned: None },
        _ => {
            let warned = (number == 2).then(|| Warned { at: ago(1_500), said });
            Contact { asked: ago(4), answered: Some(ago(4)), mode: Some(Mode::Enforce), trouble: None, warned }
        }
    }
}

fn why(finding: &Finding) -> Why {
    let status = match finding.status {
        FindingStatus::Enforced => OutcomeStatus::Enforced,
        FindingStatus::Observed => OutcomeStatus::Observed,
        FindingStatus::Refused => OutcomeStatus::Refused,
        FindingStatus::Reported => OutcomeStatus::Pending,
        FindingStatus::Resolved => {
            let evidence =
                "4 silent attempts over 2.1 s from 2 source ports; the control port answered 12 of 12".to_owned();
            return Why::Proof { evidence };
        }
        _ => return Why::Sweep { evidence: "syn-ack".to_owned() },
    };
    let cause = Cause {
        service: Some("stats".to_owned()),
        stack: Some("monitoring".to_owned()),
        image: Some("registry.example/stats:1.4".to_owned()),
        ..Cause::new(CauseKind::SwarmIngress)
    };
    let reason = match status {
        OutcomeStatus::Enforced => "the guard drops it before Docker's DNAT; read back",
        OutcomeStatus::Refused => {
            "2377/tcp is a control port of the swarm: swarm_control = \"peers\" closes it to strangers"
        }
        OutcomeStatus::Observed => "would be closed: mode is observe",
        _ => "the lock of iptables is held; tried again",
    };
    let rules = vec![format!("table inet deadlight: element {} of closed_{}", finding.port, finding.protocol)];
    let Port { protocol, number } = finding.port();
    let (finding, reason) = (finding.id.clone(), reason.to_owned());
    Why::Agent(Box::new(Outcome { finding, protocol, port: number, status, reason, cause, rules, dropped: 0 }))
}

fn addresses(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    // 198.51.100.0/24 has no room for 500.
    let v4 = if high == 0 { [198, 51, 100, low] } else { [203, 0, 113, low] };
    [IpAddr::from(v4), IpAddr::from([0x2001, 0xdb8, 0x51, 0, 0, 0, 0, number])]
}
