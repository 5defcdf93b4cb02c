//! The allowlist: which ports may be open where, who says so, and until when.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer};

use crate::name::Name;
use crate::port::Port;
use crate::port_set::PortSet;

/// One declared intent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowEntry {
    /// Ports that may be open.
    pub ports: PortSet,
    /// Nodes by name; `*` is every node.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Nodes by label.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Who answers for it.
    pub owner: String,
    /// Why it is open.
    pub reason: String,
    /// Last day (UTC) on which the entry holds; without it, for ever.
    #[serde(default, deserialize_with = "toml_date")]
    pub expires: Option<Date>,
}

/// All declared intents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowlist {
    entries: Vec<AllowEntry>,
}

/// A node as the allowlist sees it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The node's name.
    pub node: &'a Name,
    /// The node's labels.
    pub labels: &'a [String],
}

/// Why an allowlist is refused. Entries are counted from 1, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowlistError {
    /// Neither `nodes` nor `labels`.
    #[error("[[allow]] entry {entry} ({ports}) names no nodes and no labels: write nodes = [\"*\"] for all")]
    NoNodes {
        /// Position of the entry.
        entry: usize,
        /// Its ports.
        ports: PortSet,
    },
    /// `owner` or `reason` is blank.
    #[error("[[allow]] entry {entry} ({ports}) has an empty {field}")]
    Blank {
        /// Position of the entry.
        entry: usize,
        /// Its ports.
        ports: PortSet,
        /// The blank field.
        field: &'static str,
    },
    /// A node name that the configuration does not have.
    #[error("[[allow]] entry {entry} ({ports}) names the unknown node `{}`", crate::text::printable(.node, 80))]
    UnknownNode {
        /// Position of the entry.
        entry: usize,
        /// Its ports.
        ports: PortSet,
        /// The name nobody has.
        node: String,
    },
    /// Two entries in force cover the same port of the same node.
    #[error("[[allow]] entries {first} and {second} overlap: both cover {port} on {node}")]
    Overlap {
        /// Position of the earlier entry.
        first: usize,
        /// Position of the later entry.
        second: usize,
        /// A port that both cover.
        port: Port,
        /// A node that both cover.
        node: Name,
    },
}

impl AllowEntry {
    /// Whether the entry holds on `today` (UTC).
    pub fn in_force(&self, today: Date) -> bool {
        self.expires.is_none_or(|last_day| today <= last_day)
    }

    /// Whether the entry speaks about `subject`.
    pub fn names(&self, subject: Subject<'_>) -> bool {
        self.nodes.iter().any(|node| node == "*" || node == subject.node.as_str())
            || self.labels.iter().any(|label| subject.labels.contains(label))
    }
}

impl Allowlist {
    /// An allowlist of `entries`, unchecked.
    pub fn new(entries: Vec<AllowEntry>) -> Self {
        Self { entries }
    }

    /// All entries, in the order of the file, those that have ended as well.
    pub fn entries(&self) -> &[AllowEntry] {
        &self.entries
    }

    /// Checks every entry by itself, against the known nodes, and against the other entries in force.
    pub fn check(&self, nodes: &[Subject<'_>], today: Date) -> Result<(), AllowlistError> {
        for (position, entry) in self.numbered() {
            check_entry(position, entry, nodes)?;
        }
        let in_force: Vec<_> = self.in_force(today).collect();
        for (index, &(first, one)) in in_force.iter().enumerate() {
            for &(second, other) in &in_force[index + 1..] {
                let Some(port) = one.ports.common(&other.ports) else { continue };
                if let Some(both) = nodes.iter().find(|node| one.names(**node) && other.names(**node)) {
                    return Err(AllowlistError::Overlap { first, second, port, node: both.node.clone() });
                }
            }
        }
        Ok(())
    }

    /// The entry in force that covers `port` on `subject`.
    pub fn covering(&self, subject: Subject<'_>, port: Port, today: Date) -> Option<&AllowEntry> {
        self.entries.iter().find(|entry| entry.in_force(today) && entry.names(subject) && entry.ports.contains(port))
    }

    /// Every port that entries in force allow on `subject`.
    pub fn ports_of(&self, subject: Subject<'_>, today: Date) -> PortSet {
        let mut ports = PortSet::default();
        for (_, entry) in self.in_force(today).filter(|(_, entry)| entry.names(subject)) {
            ports.extend(&entry.ports);
        }
        ports
    }

    /// Entries that hold, with their position in the file from 1.
    pub fn in_force(&self, today: Date) -> impl Iterator<Item = (usize, &AllowEntry)> {
        self.numbered().filter(move |(_, entry)| entry.in_force(today))
    }

    /// Entries that no longer hold, with their position in the file from 1.
    pub fn expired(&self, today: Date) -> impl Iterator<Item = (usize, &AllowEntry)> {
        self.numbered().filter(move |(_, entry)| !entry.in_force(today))
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &AllowEntry)> {
        (1..).zip(&self.entries)
    }
}

/// The day in UTC, by which entries expire.
pub fn today(now: Timestamp) -> Date {
    now.to_zoned(TimeZone::UTC).date()
}

fn check_entry(entry: usize, allow: &AllowEntry, nodes: &[Subject<'_>]) -> Result<(), AllowlistError> {
    let ports = || allow.ports.clone();
    if allow.nodes.is_empty() && allow.labels.is_empty() {
        return Err(AllowlistError::NoNodes { entry, ports: ports() });
    }
    for (field, text) in [("owner", &allow.owner), ("reason", &allow.reason)] {
        if text.trim().is_empty() {
            return Err(AllowlistError::Blank { entry, ports: ports(), field });
        }
    }
    let unknown = allow.nodes.iter().find(|name| *name != "*" && !nodes.iter().any(|n| n.node.as_str() == *name));
    match unknown {
        Some(node) => Err(AllowlistError::UnknownNode { entry, ports: ports(), node: node.clone() }),
        None => Ok(()),
    }
}

/// A date as TOML writes it: `2027-01-31`, without quotes.
fn toml_date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Date>, D::Error> {
    use serde::de::Error as _;
    let written = toml::value::Datetime::deserialize(deserializer)?;
    let date = match written {
        toml::value::Datetime { date: Some(date), time: None, offset: None } => date,
        _ => return Err(D::Error::custom("write a plain date such as 2027-01-31, without a time")),
    };
    let year = i16::try_from(date.year).map_err(D::Error::custom)?;
    let [month, day] = [date.month, date.day].map(|part| i8::try_from(part).unwrap_or(i8::MAX));
    Date::new(year, month, day).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    #[derive(Deserialize)]
    struct File {
        allow: Vec<AllowEntry>,
    }

    fn list(text: &str) -> Allowlist {
        Allowlist::new(toml::from_str::<File>(text).unwrap().allow)
    }

    const WEB: &str = "[[allow]]\nports = \"80,443/tcp\"\nnodes = [\"*\"]\nowner = \"web\"\nreason = \"site\"\n";
    const EDGE: &str = "[[allow]]\nports = \"8080/tcp\"\nlabels = [\"edge\"]\nowner = \"infra\"\nreason = \"x\"\nexpires = 2026-12-24\n";

    #[test]
    fn says_which_entry_covers_a_port_and_until_when() {
        let (n1, edge) = ("n1".parse().unwrap(), ["edge".to_owned()]);
        let list = list(&format!("{WEB}{EDGE}"));
        let labelled = Subject { node: &n1, labels: &edge };
        let plain = Subject { node: &n1, labels: &[] };
        let (before, last, after) = (date(2026, 11, 23), date(2026, 12, 24), date(2026, 12, 25));
        let port = "8080/tcp".parse().unwrap();
        assert_eq!(list.covering(labelled, port, before).unwrap().owner, "infra");
        assert_eq!(list.covering(labelled, port, last).unwrap().owner, "infra");
        assert_eq!(list.covering(labelled, port, after), None);
        assert_eq!(list.covering(plain, port, before), None);
        assert_eq!(list.covering(plain, "443/tcp".parse().unwrap(), after).unwrap().owner, "web");
        assert_eq!(list.covering(plain, "443/udp".parse().unwrap(), after), None);
        assert_eq!(list.ports_of(labelled, before).to_string(), "80/tcp,443/tcp,8080/tcp");
        assert_eq!(list.expired(after).map(|(position, _)| position).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn refuses_by_name() {
        let n1 = "n1".parse().unwrap();
        let nodes = [Subject { node: &n1, labels: &[] }];
        let today = date(2026, 11, 23);
        let error = |text: &str| list(text).check(&nodes, today).unwrap_err().to_string();
        assert!(error(&format!("{WEB}{WEB}")).contains("entries 1 and 2 overlap: both cover 80/tcp on n1"));
        assert!(error(&WEB.replace("\"*\"", "\"n7\"")).contains("unknown node `n7`"));
        assert!(error(&WEB.replace("nodes = [\"*\"]\n", "")).contains("names no nodes"));
        assert!(error(&WEB.replace("\"web\"", "\" \"")).contains("empty owner"));
        let expired = WEB.replace("\"site\"", "\"site\"\nexpires = 2026-01-01");
        assert_eq!(list(&format!("{WEB}{expired}")).check(&nodes, today), Ok(()), "an expired entry overlaps nobody");
    }

    #[test]
    fn an_expiry_is_a_plain_date() {
        let quoted = format!("{WEB}expires = \"2027-01-31\"\n");
        assert!(toml::from_str::<File>(&quoted).is_err());
        let timed = format!("{WEB}expires = 2027-01-31T10:00:00Z\n");
        assert!(toml::from_str::<File>(&timed).is_err());
    }
}
