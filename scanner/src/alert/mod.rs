//! What wakes somebody: an alert for each thing that begins, stays undone or ends. What is told, when and in which words is
//! decided here (pure); `courier.rs` and `sink/` bring it there.

mod courier;
mod heartbeat;
mod queue;
mod sink;
mod text;

pub use courier::Courier;
pub use heartbeat::{Beat, Heartbeat};
pub use queue::{Queue, Sent};
pub use sink::{Kind as SinkKind, Manner, Post, Sink, SinkError, SinkStep, Template, TemplateError, Words};
pub use text::{lines, message, title};

use deadlight_shared::{Finding, FindingId, FindingStatus, Port, Protocol};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::store::Why;

/// After so long an exposure that is still there is told again.
const REMIND_CRITICAL: SignedDuration = SignedDuration::from_hours(1);
const REMIND: SignedDuration = SignedDuration::from_hours(24);

/// Ports through which whoever reaches them owns the swarm or its node: Docker's API, and the swarm's control ports.
const CRITICAL: [(u16, Protocol); 6] = [
    (2375, Protocol::Tcp),
    (2376, Protocol::Tcp),
    (2377, Protocol::Tcp),
    (4789, Protocol::Udp),
    (7946, Protocol::Tcp),
    (7946, Protocol::Udp),
];

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Later ones have higher numbers, at one vantage point.
    pub number: u64,
    /// When it was decided.
    pub at: Timestamp,
    /// What it says.
    pub kind: Kind,
    /// The exposure.
    pub episode: Episode,
    /// The finding as it is now.
    pub finding: Finding,
    /// Why its status is what it is; none where only time has passed.
    pub why: Option<Why>,
}

/// What an alert says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A port is open that should not be.
    Exposed,
    /// Its agent did not close it, or closed it in vain.
    Unclosed,
    /// Its agent says closed and the network says open. No silence holds this back; while it lasts it is told each hour.
    Contradicted,
    /// It is still open after a while.
    Reminder,
    /// It is proven closed.
    Resolved,
    /// An entry of the allowlist covers it by now.
    Allowed,
    /// Somebody tries whether alerts arrive; nothing is open.
    Test,
}

impl Kind {
    /// Whether a silence holds it back. What began is also ended aloud, and an agent that is contradicted is never silenced.
    pub fn can_be_silenced(self) -> bool {
        matches!(self, Self::Exposed | Self::Unclosed | Self::Reminder)
    }

    /// Whether the exposure is over.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Resolved | Self::Allowed | Self::Test)
    }
}

/// How bad an exposure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A port is open.
    Warning,
    /// The swarm or its node can be taken over through it.
    Critical,
}

/// One exposure from its beginning to its end. If the port opens again after that, another one begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Episode {
    /// The number of the alert that began it.
    pub number: u64,
    /// When it began.
    pub began: Timestamp,
    /// When somebody was last told.
    pub told: Timestamp,
    /// What of its agent was told last.
    pub unclosed: Option<FindingStatus>,
    /// When it was last told that its agent is contradicted.
    #[serde(default)]
    pub contradicted: Option<Timestamp>,
}

impl Episode {
    /// One that begins at `at` with the alert `number`.
    pub fn new(number: u64, at: Timestamp) -> Self {
        Self { number, began: at, told: at, unclosed: None, contradicted: None }
    }

    /// What sinks know it by: the same in all its alerts, and in no other's.
    pub fn key(&self, finding: &FindingId) -> String {
        // Numbers begin anew at another vantage point, which may go on with it.
        format!("deadlight-{finding}-{}", self.began.as_microsecond())
    }
}

impl Severity {
    /// How bad it is that `port` is open.
    pub fn of(port: Port) -> Self {
        match CRITICAL.contains(&(port.number.get(), port.protocol)) {
            true => Self::Critical,
            false => Self::Warning,
        }
    }

    /// The word as it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What is to be told of `finding`, of which `episode` is under way, at `now`.
pub fn news(finding: &Finding, episode: Option<&Episode>, why: Option<&Why>, now: Timestamp) -> Option<Kind> {
    let is_contradicted = finding.status == FindingStatus::Failed && why == Some(&Why::Contradiction);
    let last = episode.and_then(|episode| episode.contradicted);
    if is_contradicted && last.is_none_or(|last| now.duration_since(last) >= REMIND_CRITICAL) {
        return Some(Kind::Contradicted);
    }
    let Some(episode) = episode else {
        return (!finding.status.is_over()).then_some(Kind::Exposed);
    };
    match finding.status {
        FindingStatus::Resolved => Some(Kind::Resolved),
        FindingStatus::Accepted => Some(Kind::Allowed),
        FindingStatus::Observed | FindingStatus::Refused | FindingStatus::Failed
            if episode.unclosed != Some(finding.status) =>
        {
            Some(Kind::Unclosed)
        }
        _ => {
            let pause = match Severity::of(finding.port()) {
                Severity::Critical => REMIND_CRITICAL,
                Severity::Warning => REMIND,
            };
            (now.duration_since(episode.told) >= pause).then_some(Kind::Reminder)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assess::first_seen;

    fn finding(port: &str, status: FindingStatus) -> Finding {
        let (node, address, port) = ("n1".parse().unwrap(), "192.0.2.1".parse().unwrap(), port.parse().unwrap());
        let id = FindingId::of(&node, address, port);
        Finding { status, ..first_seen(&id, node, address, port, at(0)) }
    }

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(hours * 3_600).unwrap()
    }

    fn told(finding: &Finding, unclosed: Option<FindingStatus>, why: Option<&Why>, hours: i64) -> Option<Kind> {
        let episode = Episode { unclosed, ..Episode::new(1, at(0)) };
        news(finding, Some(&episode), why, at(hours))
    }

    use FindingStatus::{Accepted, Enforced, Failed, Observed, Open, Refused, Reopened, Reported, Resolved};

    #[test]
    fn an_exposure_is_told_once_and_so_is_its_end() {
        for status in [Open, Reopened, Reported, Enforced, Observed, Refused, Failed] {
            assert_eq!(news(&finding("80/tcp", status), None, None, at(0)), Some(Kind::Exposed), "{status}");
        }
        for status in [Open, Reopened, Reported, Enforced] {
            assert_eq!(told(&finding("80/tcp", status), None, None, 0), None, "{status}");
        }
        for (status, kind) in [(Resolved, Kind::Resolved), (Accepted, Kind::Allowed)] {
            assert_eq!(told(&finding("80/tcp", status), None, None, 0), Some(kind));
            assert_eq!(news(&finding("80/tcp", status), None, None, at(0)), None, "nobody was told that it began");
        }
    }

    #[test]
    fn what_an_agent_leaves_open_is_told_when_it_changes() {
        for status in [Observed, Refused, Failed] {
            assert_eq!(told(&finding("80/tcp", status), None, None, 0), Some(Kind::Unclosed), "{status}");
            assert_eq!(told(&finding("80/tcp", status), Some(status), None, 0), None, "{status}");
        }
        assert_eq!(told(&finding("80/tcp", Refused), Some(Observed), None, 0), Some(Kind::Unclosed));
    }

    #[test]
    fn a_contradiction_is_told_at_once_and_then_each_hour() {
        for before in [None, Some(Failed)] {
            let kind = told(&finding("80/tcp", Failed), before, Some(&Why::Contradiction), 0);
            assert_eq!(kind, Some(Kind::Contradicted));
        }
        let kind = news(&finding("80/tcp", Failed), None, Some(&Why::Contradiction), at(0));
        assert_eq!(kind, Some(Kind::Contradicted), "also where a silence has kept its beginning from us");
        let contradicted = Episode { contradicted: Some(at(0)), unclosed: Some(Failed), ..Episode::new(1, at(0)) };
        let later = |hours| news(&finding("80/tcp", Failed), Some(&contradicted), Some(&Why::Contradiction), at(hours));
        assert_eq!([later(0), later(1)], [None, Some(Kind::Contradicted)]);
    }

    #[test]
    fn what_stays_open_is_told_again_critical_ports_sooner() {
        for (port, hours) in [("80/tcp", 24), ("2377/tcp", 1), ("2375/tcp", 1), ("4789/udp", 1), ("4789/tcp", 24)] {
            assert_eq!(told(&finding(port, Open), None, None, hours - 1), None, "{port}");
            assert_eq!(told(&finding(port, Open), None, None, hours), Some(Kind::Reminder), "{port}");
            assert_eq!(told(&finding(port, Observed), Some(Observed), None, hours), Some(Kind::Reminder), "{port}");
        }
    }

    #[test]
    fn keys_differ_by_episode() {
        let id = finding("80/tcp", Open).id;
        let episode = |hours| Episode::new(7, at(hours));
        assert_eq!(episode(1).key(&id), format!("deadlight-{id}-3600000000"));
        assert_ne!(episode(1).key(&id), episode(2).key(&id));
    }
}
