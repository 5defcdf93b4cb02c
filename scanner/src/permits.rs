//! The signed allowlist: one file that holds each node's permit.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use deadlight_shared::permit::PermitError;
use deadlight_shared::{Name, OperatorKey, OperatorSecret, Permit, PermitEntry, PortSet, Protocol, SignedPermit, file};
use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::config::Config;

const SCHEMA: &str = "deadlight.permits/v1";
/// Longest range of an entry that nobody has to ask twice for.
const WIDE: u16 = 100;

/// Each node's permit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permits(BTreeMap<Name, (Permit, SignedPermit)>);

/// What may be open on each node, by the last day.
pub type Intent = BTreeMap<Name, BTreeMap<Option<Date>, PortSet>>;

/// Why there is no signed allowlist.
#[derive(Debug, thiserror::Error)]
pub enum PermitsError {
    /// The file is there and cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is no signed allowlist.
    #[error("{} is no signed allowlist", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// The file cannot be written; the old one stands.
    #[error("failed to write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A range that is more than an intent.
    #[error("[[allow]] entry {entry} ({ports}) has a range of more than {WIDE} ports")]
    Wide {
        /// Position of the entry.
        entry: usize,
        /// Its ports.
        ports: PortSet,
    },
    /// No higher number is left.
    #[error("the number of the former signed allowlist is the last there is")]
    Number,
    /// A permit cannot be signed.
    #[error("failed to sign the permit of {node}")]
    Sign {
        /// Its node.
        node: Name,
        /// Why.
        #[source]
        source: PermitError,
    },
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Not its JSON.
    #[error("failed to read its JSON")]
    Json(#[from] serde_json::Error),
    /// Another schema or version.
    #[error("schema is not {SCHEMA}")]
    Schema,
    /// One of its texts is no permit.
    #[error(transparent)]
    Permit(#[from] PermitError),
    /// Two for one node.
    #[error("two permits are for {0}")]
    Twice(Name),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: String,
    permits: Vec<SignedPermit>,
}

impl Permits {
    /// Reads the file at `path`; `None` when there is none.
    pub fn load(path: &Path) -> Result<Option<Self>, PermitsError> {
        match std::fs::read(path) {
            Ok(bytes) => match Self::parse(&bytes) {
                Ok(permits) => Ok(Some(permits)),
                Err(source) => Err(PermitsError::Malformed { path: path.to_owned(), source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PermitsError::Read { path: path.to_owned(), source }),
        }
    }

    /// Replaces the file at `path`.
    pub fn save(&self, path: &Path) -> Result<(), PermitsError> {
        let permits = self.0.values().map(|(_, signed)| signed.clone()).collect();
        let json = serde_json::to_vec_pretty(&File { schema: SCHEMA.to_owned(), permits }).map_err(io::Error::from);
        json.and_then(|json| file::replace(path, &json, 0o644))
            .map_err(|source| PermitsError::Write { path: path.to_owned(), source })
    }

    /// Signs `intent`, later than `former`.
    pub fn sign(
        intent: &Intent,
        former: Option<&Self>,
        secret: &OperatorSecret,
        now: Timestamp,
    ) -> Result<Self, PermitsError> {
        let next = former.map_or(Some(0), |former| former.number().checked_add(1)).ok_or(PermitsError::Number)?;
        let number = next.max(u64::try_from(now.as_second()).unwrap_or_default());
        let sign = |(node, days): (&Name, &BTreeMap<Option<Date>, PortSet>)| {
            let entry =
                |(expires, ports): (&Option<Date>, &PortSet)| PermitEntry { ports: ports.clone(), expires: *expires };
            let entries = days.iter().map(entry).collect();
            let permit = Permit { schema: Permit::SCHEMA.to_owned(), node: node.clone(), number, entries };
            match permit.sign(secret) {
                Ok(signed) => Ok((node.clone(), (permit, signed))),
                Err(source) => Err(PermitsError::Sign { node: node.clone(), source }),
            }
        };
        intent.iter().map(sign).collect::<Result<_, _>>().map(Self)
    }

    /// The permit of `node`.
    pub fn of(&self, node: &Name) -> Option<&SignedPermit> {
        self.0.get(node).map(|(_, signed)| signed)
    }

    /// The highest number in it.
    pub fn number(&self) -> u64 {
        self.0.values().map(|(permit, _)| permit.number).max().unwrap_or_default()
    }

    /// What it opens from `today` on.
    pub fn intent(&self, today: Date) -> Intent {
        let days = |permit: &Permit| {
            let mut days = BTreeMap::<_, PortSet>::new();
            for PermitEntry { ports, expires } in &permit.entries {
                if expires.is_none_or(|last_day| today <= last_day) {
                    days.entry(*expires).or_default().extend(ports);
                }
            }
            days
        };
        self.0.iter().map(|(node, (permit, _))| (node.clone(), days(permit))).collect()
    }

    /// Nodes whose permit `operator` has not signed.
    pub fn unsigned<'a>(&'a self, operator: &'a OperatorKey) -> impl Iterator<Item = &'a Name> {
        self.0.iter().filter(|(_, (_, signed))| signed.open(operator).is_err()).map(|(node, _)| node)
    }

    fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let File { schema, permits } = serde_json::from_slice(bytes)?;
        if schema != SCHEMA {
            return Err(Malformed::Schema);
        }
        let mut by_node = BTreeMap::new();
        for signed in permits {
            signed.check()?;
            let permit = signed.unverified()?;
            if let Some((twice, _)) = by_node.insert(permit.node.clone(), (permit, signed)) {
                return Err(Malformed::Twice(twice.node));
            }
        }
        Ok(Self(by_node))
    }
}

/// What the allowlist of `config` opens from `today` on.
pub fn intent(config: &Config, today: Date) -> Intent {
    let days = |node: &crate::config::Node| {
        let mut days = BTreeMap::<_, PortSet>::new();
        for (_, entry) in config.allowlist.in_force(today).filter(|(_, entry)| entry.names(node.subject())) {
            days.entry(entry.expires).or_default().extend(&entry.ports);
        }
        days
    };
    config.nodes.iter().map(|node| (node.name.clone(), days(node))).collect()
}

/// Refuses an entry in force that is too wide to have been thought about.
pub fn check_width(config: &Config, today: Date) -> Result<(), PermitsError> {
    let is_wide = |ports: &PortSet| {
        Protocol::ALL.iter().any(|protocol| ports.ranges(*protocol).iter().any(|(low, high)| high - low >= WIDE))
    };
    match config.allowlist.in_force(today).find(|(_, entry)| is_wide(&entry.ports)) {
        Some((entry, allow)) => Err(PermitsError::Wide { entry, ports: allow.ports.clone() }),
        None => Ok(()),
    }
}

/// What `to` adds to `from` and takes away, one line for each node and day.
pub fn changes(from: &Intent, to: &Intent) -> Vec<String> {
    let (taken, added) = (lines("-", from, to), lines("+", to, from));
    taken.chain(added).collect()
}

/// What stands in `one` and not in `other`.
fn lines<'a>(sign: &'a str, one: &'a Intent, other: &'a Intent) -> impl Iterator<Item = String> + 'a {
    one.iter().flat_map(move |(node, days)| {
        days.iter().filter_map(move |(expires, ports)| {
            let standing = other.get(node).and_then(|days| days.get(expires));
            let only = standing.map_or_else(|| ports.clone(), |standing| ports.difference(standing));
            (!only.is_empty()).then(|| format!("{sign} {node}: {}", until(&only, *expires)))
        })
    })
}

/// `80/tcp until 2026-12-24`.
pub fn until(ports: &PortSet, expires: Option<Date>) -> String {
    match expires {
        Some(last_day) => format!("{ports} until {last_day}"),
        None => ports.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    const TODAY: Date = date(2026, 11, 25);
    const NODES: &str = "[vantage]\nid = \"office-a\"\n\
        [[node]]\nname = \"n1\"\naddresses = [\"198.51.100.11\"]\nlabels = [\"edge\"]\n\
        [[node]]\nname = \"n2\"\naddresses = [\"198.51.100.12\"]\n";

    fn config(allow: &[(&str, &str)]) -> Config {
        let entry = |(ports, whose): &(&str, &str)| {
            format!("[[allow]]\nports = {ports:?}\nowner = \"web\"\nreason = \"site\"\n{whose}\n")
        };
        let text = format!("{NODES}{}", allow.iter().map(entry).collect::<String>());
        Config::parse(&text, Path::new("scanner.toml"), TODAY).unwrap()
    }

    const LIST: [(&str, &str); 3] = [
        ("80,443/tcp", "nodes = [\"*\"]"),
        ("8080/tcp", "labels = [\"edge\"]\nexpires = 2026-12-24"),
        ("9000/tcp", "nodes = [\"n2\"]\nexpires = 2026-11-24"),
    ];

    #[test]
    fn what_is_signed_names_nodes_and_is_what_the_configuration_means() {
        let (config, secret) = (config(&LIST), OperatorSecret::generate().unwrap());
        let wanted = intent(&config, TODAY);
        let second = Timestamp::from_second(1_764_000_000).unwrap();
        let permits = Permits::sign(&wanted, None, &secret, second).unwrap();
        let key = secret.public().unwrap();
        for node in &config.nodes {
            let permit = permits.of(&node.name).unwrap().open_for(&node.name, &key).unwrap();
            for day in [TODAY, date(2026, 12, 24), date(2026, 12, 25)] {
                assert_eq!(permit.ports_at(day), config.allowlist.ports_of(node.subject(), day), "{day}");
            }
            assert_eq!(permit.number, 1_764_000_000);
        }
        assert!(changes(&permits.intent(TODAY), &wanted).is_empty());
        assert_eq!(permits.unsigned(&key).count(), 0);
        assert_eq!(permits.unsigned(&OperatorSecret::generate().unwrap().public().unwrap()).count(), 2);
        let again = Permits::sign(&wanted, Some(&permits), &secret, second).unwrap();
        assert_eq!(again.number(), 1_764_000_001, "also when the clock stands still");
    }

    #[test]
    fn a_change_is_told_by_node_port_and_day() {
        let (before, mut after) = (intent(&config(&LIST), TODAY), LIST);
        after[0].0 = "80,8443/tcp";
        after[1].1 = "labels = [\"edge\"]\nexpires = 2027-01-31";
        let wanted = [
            "- n1: 443/tcp",
            "- n1: 8080/tcp until 2026-12-24",
            "- n2: 443/tcp",
            "+ n1: 8443/tcp",
            "+ n1: 8080/tcp until 2027-01-31",
            "+ n2: 8443/tcp",
        ];
        assert_eq!(changes(&before, &intent(&config(&after), TODAY)), wanted);
        assert_eq!(changes(&Intent::new(), &before)[2], "+ n2: 80/tcp,443/tcp");
    }

    #[test]
    fn a_wide_range_is_refused_while_it_is_in_force() {
        let wide = |ports: &str, whose| check_width(&config(&[(ports, whose)]), TODAY);
        assert!(wide("8000-8099/tcp,9000/udp", "nodes = [\"*\"]").is_ok());
        let error = wide("8000-8100/udp", "nodes = [\"*\"]").unwrap_err().to_string();
        assert_eq!(error, "[[allow]] entry 1 (8000-8100/udp) has a range of more than 100 ports");
        assert!(wide("8000-8100/udp", "nodes = [\"*\"]\nexpires = 2026-11-24").is_ok());
        let any = intent(&config(&[("1-65535/tcp", "nodes = [\"*\"]")]), TODAY);
        let refused = Permits::sign(&any, None, &OperatorSecret::generate().unwrap(), Timestamp::UNIX_EPOCH);
        assert!(matches!(refused, Err(PermitsError::Sign { source: PermitError::Any(_), .. })));
    }

    #[test]
    fn the_file_is_read_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("permits.json");
        assert_eq!(Permits::load(&path).unwrap(), None);
        let unreadable = Permits::load(directory.path());
        assert!(matches!(unreadable, Err(PermitsError::Read { .. })), "what cannot be read is not as none");
        let secret = OperatorSecret::generate().unwrap();
        let permits = Permits::sign(&intent(&config(&LIST), TODAY), None, &secret, Timestamp::UNIX_EPOCH).unwrap();
        permits.save(&path).unwrap();
        assert_eq!(Permits::load(&path).unwrap(), Some(permits));
        let text = std::fs::read_to_string(&path).unwrap();
        for (bad, wanted) in [
            (text[..text.len() / 2].to_owned(), "JSON"),
            (text.replace("permits/v1", "permits/v2"), "schema is not"),
            (text.replace("n2", "n1"), "two permits are for n1"),
            (text.replace("permit/v1", "permit/v2"), "schema is not deadlight.permit/v1"),
        ] {
            std::fs::write(&path, bad).unwrap();
            let PermitsError::Malformed { source, .. } = Permits::load(&path).unwrap_err() else { panic!("{wanted}") };
            assert!(source.to_string().contains(wanted), "{source}");
        }
    }
}
