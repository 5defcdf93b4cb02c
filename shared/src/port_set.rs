//! A set of ports, written `80,443/tcp,8000-8100/tcp,53/udp`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::port::{Port, Protocol};

/// Inclusive range of port numbers.
type Range = (u16, u16);

/// A set of ports of both protocols.
///
/// In text, items are separated by commas; an item is a number or a range, and `/tcp` or `/udp`
/// holds for the items before it that named no protocol themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortSet {
    tcp: Vec<Range>,
    udp: Vec<Range>,
}

/// Why a text is no port or port set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortSetError {
    /// Nothing between two commas, or no text at all.
    #[error("empty port list or empty item in it")]
    Empty,
    /// Not a decimal number.
    #[error("`{0}` is not a port number")]
    NotANumber(String),
    /// Port 0 or above 65535.
    #[error("port {0} is out of range: ports go from 1 to 65535")]
    OutOfRange(String),
    /// `443-80`.
    #[error("range {0} runs backwards: write the lower port first")]
    Backwards(String),
    /// Neither `tcp` nor `udp`.
    #[error("unknown protocol `{0}`: use tcp or udp")]
    UnknownProtocol(String),
    /// No protocol where one must be said.
    #[error("`{0}` names no protocol: write {0}/tcp or {0}/udp")]
    MissingProtocol(String),
    /// The same port twice.
    #[error("{0} overlaps another item of the same list")]
    Overlap(String),
    /// A list where a single port is wanted.
    #[error("`{0}` is not one port: write for example 8080/tcp")]
    NotOnePort(String),
}

impl PortSet {
    /// Reads a list in which items without a protocol are of `default`.
    pub fn parse_with_default(text: &str, default: Protocol) -> Result<Self, PortSetError> {
        Self::parse(text, Some(default))
    }

    /// Whether `port` is in the set.
    pub fn contains(&self, port: Port) -> bool {
        let number = port.number.get();
        let ranges = self.ranges(port.protocol);
        let after = ranges.partition_point(|&(low, _)| low <= number);
        after > 0 && number <= ranges[after - 1].1
    }

    /// Adds one port.
    pub fn insert(&mut self, port: Port) {
        let number = port.number.get();
        self.add(port.protocol, (number, number));
    }

    /// Adds every port of `other`.
    pub fn extend(&mut self, other: &Self) {
        for protocol in Protocol::ALL {
            for &range in other.ranges(protocol) {
                self.add(protocol, range);
            }
        }
    }

    /// The ports that both sets hold.
    pub fn intersection(&self, other: &Self) -> Self {
        self.iter().filter(|port| other.contains(*port)).collect()
    }

    /// The ports that `other` does not hold.
    pub fn difference(&self, other: &Self) -> Self {
        self.iter().filter(|port| !other.contains(*port)).collect()
    }

    /// A port that both sets hold, if any.
    pub fn common(&self, other: &Self) -> Option<Port> {
        Protocol::ALL.into_iter().find_map(|protocol| {
            self.ranges(protocol).iter().find_map(|&(low, high)| {
                let hit = other.ranges(protocol).iter().find(|&&(l, h)| l <= high && low <= h)?;
                Port::new(protocol, low.max(hit.0))
            })
        })
    }

    /// All ports: TCP first, each protocol in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Port> + '_ {
        Protocol::ALL.into_iter().flat_map(move |protocol| {
            self.ranges(protocol)
                .iter()
                .flat_map(|&(low, high)| low..=high)
                .filter_map(move |number| Port::new(protocol, number))
        })
    }

    /// The inclusive ranges of one protocol: ascending, disjoint, not adjacent.
    pub fn ranges(&self, protocol: Protocol) -> &[(u16, u16)] {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }

    /// Number of ports in the set.
    pub fn len(&self) -> usize {
        self.tcp.iter().chain(&self.udp).map(|&(low, high)| usize::from(high - low) + 1).sum()
    }

    /// Whether no port is in the set.
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }

    /// Each range as a text with its protocol: `80/tcp`, `8000-8100/tcp`.
    pub fn items(&self) -> Vec<String> {
        Protocol::ALL
            .into_iter()
            .flat_map(|protocol| {
                self.ranges(protocol).iter().map(move |&(low, high)| match low == high {
                    true => format!("{low}/{protocol}"),
                    false => format!("{low}-{high}/{protocol}"),
                })
            })
            .collect()
    }

    fn parse(text: &str, default: Option<Protocol>) -> Result<Self, PortSetError> {
        let mut set = Self::default();
        let mut waiting: Vec<(&str, Range)> = Vec::new();
        for item in text.split(',').map(str::trim) {
            let (numbers, protocol) = match item.split_once('/') {
                Some((numbers, protocol)) => (numbers, Some(protocol.parse()?)),
                None => (item, None),
            };
            waiting.push((numbers, parse_range(numbers)?));
            if let Some(protocol) = protocol {
                set.add_disjoint(protocol, &mut waiting)?;
            }
        }
        match (waiting.first(), default) {
            (None, _) => {}
            (Some(_), Some(protocol)) => set.add_disjoint(protocol, &mut waiting)?,
            (Some((item, _)), None) => return Err(PortSetError::MissingProtocol((*item).to_owned())),
        }
        Ok(set)
    }

    fn add_disjoint(&mut self, protocol: Protocol, items: &mut Vec<(&str, Range)>) -> Result<(), PortSetError> {
        for (text, (low, high)) in items.drain(..) {
            let ranges = self.ranges(protocol);
            let first = ranges.partition_point(|&(_, h)| h < low);
            if ranges.get(first).is_some_and(|&(l, _)| l <= high) {
                return Err(PortSetError::Overlap(format!("{text}/{protocol}")));
            }
            self.add(protocol, (low, high));
        }
        Ok(())
    }

    fn add(&mut self, protocol: Protocol, (low, high): Range) {
        let ranges = match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
        };
        let from = ranges.partition_point(|&(_, h)| h.saturating_add(1) < low);
        let to = ranges.partition_point(|&(l, _)| l <= high.saturating_add(1));
        let melt = |(low, high): Range, &(l, h): &Range| (low.min(l), high.max(h));
        let melted = ranges[from..to].iter().fold((low, high), melt);
        ranges.splice(from..to, [melted]);
    }
}

impl FromIterator<Port> for PortSet {
    fn from_iter<I: IntoIterator<Item = Port>>(ports: I) -> Self {
        let mut set = Self::default();
        ports.into_iter().for_each(|port| set.insert(port));
        set
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.items().join(","))
    }
}

impl FromStr for PortSet {
    type Err = PortSetError;

    /// Reads a list in which every item has a protocol.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, None)
    }
}

impl Serialize for PortSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::deserialize(deserializer)
    }
}

/// For `#[serde(with = …)]`: a list with one text a range, which may be empty.
pub mod as_items {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::PortSet;

    const MAX_ITEMS: usize = 1_000;

    /// Writes the list.
    pub fn serialize<S: Serializer>(ports: &PortSet, serializer: S) -> Result<S::Ok, S::Error> {
        ports.items().serialize(serializer)
    }

    /// Reads the list.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortSet, D::Error> {
        let items = Vec::<String>::deserialize(deserializer)?;
        if items.len() > MAX_ITEMS {
            return Err(D::Error::custom(format!("more than {MAX_ITEMS} port ranges in one list")));
        }
        match items.is_empty() {
            true => Ok(PortSet::default()),
            false => items.join(",").parse().map_err(D::Error::custom),
        }
    }
}

fn parse_range(text: &str) -> Result<Range, PortSetError> {
    match text.split_once('-') {
        None => parse_number(text).map(|number| (number, number)),
        Some((low, high)) => {
            let (low, high) = (parse_number(low)?, parse_number(high)?);
            match low <= high {
                true => Ok((low, high)),
                false => Err(PortSetError::Backwards(text.to_owned())),
            }
        }
    }
}

fn parse_number(text: &str) -> Result<u16, PortSetError> {
    if text.is_empty() {
        return Err(PortSetError::Empty);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PortSetError::NotANumber(text.to_owned()));
    }
    match text.parse::<u16>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(PortSetError::OutOfRange(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_protocol_holds_for_the_items_before_it() {
        assert_eq!(set("80,443/tcp").items(), ["80/tcp", "443/tcp"]);
        assert_eq!(set("80,443/tcp,53,123/udp").to_string(), "80/tcp,443/tcp,53/udp,123/udp");
        assert_eq!(set("80/tcp,80/udp").len(), 2);
    }

    #[test]
    fn a_default_protocol_covers_the_rest() {
        let ports = PortSet::parse_with_default("1-65535", Protocol::Tcp).unwrap();
        assert_eq!(ports.len(), 65_535);
        assert_eq!("22".parse::<PortSet>(), Err(PortSetError::MissingProtocol("22".into())));
    }

    #[test]
    fn adjacent_ranges_melt_together() {
        assert_eq!(set("80/tcp,81-90/tcp,91/tcp").to_string(), "80-91/tcp");
    }

    #[test]
    fn refuses_by_name() {
        let cases = [
            ("", "empty"),
            ("80,,81/tcp", "empty"),
            ("0/tcp", "port 0 is out of range"),
            ("65536/tcp", "port 65536 is out of range"),
            ("443-80/tcp", "range 443-80 runs backwards"),
            ("80/sctp", "unknown protocol `sctp`"),
            ("http/tcp", "`http` is not a port number"),
            ("80,70-90/tcp", "70-90/tcp overlaps"),
            ("80-/tcp", "empty"),
        ];
        for (text, wanted) in cases {
            let error = text.parse::<PortSet>().unwrap_err().to_string();
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
    }

    #[test]
    fn finds_a_common_port() {
        assert_eq!(set("80,443/tcp").common(&set("400-500/tcp")), "443/tcp".parse().ok());
        assert_eq!(set("80/tcp").common(&set("80/udp")), None);
    }

    proptest! {
        #[test]
        fn prints_what_it_reads(numbers in proptest::collection::vec((1u16..=65535, any::<bool>()), 1..40)) {
            let ports: PortSet = numbers
                .iter()
                .filter_map(|&(number, tcp)| Port::new(if tcp { Protocol::Tcp } else { Protocol::Udp }, number))
                .collect();
            prop_assert_eq!(&set(&ports.to_string()), &ports);
            for &(number, tcp) in &numbers {
                let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
                prop_assert!(ports.contains(Port::new(protocol, number).unwrap()));
            }
            prop_assert_eq!(ports.iter().count(), ports.len());
        }

        #[test]
        fn parts_and_puts_together(
            one in proptest::collection::vec(1u16..200, 0..60),
            other in proptest::collection::vec(1u16..200, 0..60),
        ) {
            let set = |numbers: &[u16]| -> PortSet {
                numbers.iter().filter_map(|&number| Port::new(Protocol::Udp, number)).collect()
            };
            let (one, other) = (set(&one), set(&other));
            let (both, only) = (one.intersection(&other), one.difference(&other));
            prop_assert_eq!(both.common(&only), None);
            prop_assert_eq!(only.common(&other), None);
            prop_assert_eq!(both.difference(&other).len(), 0);
            let mut again = both;
            again.extend(&only);
            prop_assert_eq!(again, one);
        }

        #[test]
        fn never_panics(text in "[0-9,/tcpud -]{0,40}") {
            let _ignored = text.parse::<PortSet>();
        }
    }
}
