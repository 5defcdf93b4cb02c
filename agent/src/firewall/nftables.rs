//! The guard: an own table `inet deadlight` that shuts ports before any DNAT.
//!
//! Prerouting at priority -160 stands after conntrack (-200) and before every DNAT (-100), so one
//! match on the published port covers swarm ingress, host mode, `docker run -p`, docker-proxy and
//! host processes, in both families. The twin in postrouting silences the answers of sessions
//! that were open before. Text is written exactly as `nft list` prints it, so that what stands
//! can be compared with what shall stand.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use deadlight_shared::text::printable;
use deadlight_shared::{Port, Protocol};
use ipnet::IpNet;

use super::iptables::Family;
use super::{Desired, OwnPort};
use crate::inventory::interfaces::is_valid_name;

/// Sets and chains of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    sets: BTreeMap<String, Set>,
    chains: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Set {
    spec: Vec<String>,
    elements: BTreeSet<String>,
}

/// A line of `nft list` that no guard has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected line `{}`", printable(.0, 300))]
pub struct ParseGuardError(String);

impl Guard {
    /// The guard that closes what `desired` says; none when it shall not stand.
    pub fn desired(desired: &Desired) -> Option<Self> {
        if !desired.has_guard() {
            return None;
        }
        let [trusted4, trusted6] = address_elements(&desired.passing());
        let mut sets = vec![
            ("outside", "type ifname", desired.outside.iter().map(|name| format!("\"{name}\"")).collect()),
            ("trusted4", ADDRESSES4, trusted4),
            ("trusted6", ADDRESSES6, trusted6),
            ("closed_tcp", "type inet_service;counter", port_elements(desired, Protocol::Tcp)),
            ("closed_udp", "type inet_service;counter", port_elements(desired, Protocol::Udp)),
        ];
        let chain = |rules: &[&str]| rules.iter().map(|rule| (*rule).to_owned()).collect();
        let mut chains = BTreeMap::from([
            ("prerouting".to_owned(), chain(&PREROUTING)),
            ("postrouting".to_owned(), chain(&POSTROUTING)),
        ]);
        if let Some(own) = desired.own() {
            let [scanners4, scanners6] = address_elements(&IpNet::aggregate(&own.scanners));
            sets.extend([("scanners4", ADDRESSES4, scanners4), ("scanners6", ADDRESSES6, scanners6)]);
            chains.insert("input".to_owned(), input(own));
        }
        let set = |spec: &str, elements| Set { spec: spec.split(';').map(str::to_owned).collect(), elements };
        Some(Self {
            sets: sets.into_iter().map(|(name, spec, elements)| (name.to_owned(), set(spec, elements))).collect(),
            chains,
        })
    }

    /// Reads `nft -y list table inet deadlight`, and the packets counted for each closed port.
    pub fn parse(text: &str) -> Result<(Self, BTreeMap<Port, u64>), ParseGuardError> {
        let mut guard = Self::default();
        let mut dropped = BTreeMap::new();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        while let Some(line) = lines.next() {
            if let Some(name) = block("set", line) {
                let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "}").collect();
                let set = parse_set(name, &body.join(" "), &mut dropped)?;
                guard.sets.insert(name.to_owned(), set);
            } else if let Some(name) = block("chain", line) {
                let body = lines.by_ref().take_while(|line| *line != "}");
                guard.chains.insert(name.to_owned(), body.map(canonical_rule).collect());
            } else if line != "table inet deadlight {" && line != "}" {
                return Err(ParseGuardError(line.to_owned()));
            }
        }
        Ok((guard, dropped))
    }

    /// The transaction that turns `standing` into `desired`; none when they are equal. Where only
    /// elements differ they are added and deleted, so that counters go on.
    pub fn script(standing: Option<&Self>, desired: Option<&Self>) -> Option<String> {
        match (standing, desired) {
            (None, None) => None,
            (Some(_), None) => Some("delete table inet deadlight\n".to_owned()),
            (Some(standing), Some(desired)) if standing.same_shape(desired) && standing.is_plain() => {
                element_changes(standing, desired)
            }
            (_, Some(desired)) => {
                Some(format!("table inet deadlight\ndelete table inet deadlight\n{}", desired.render()))
            }
        }
    }

    /// The table as `nft` takes and prints it.
    pub fn render(&self) -> String {
        let mut text = String::from("table inet deadlight {\n");
        for (name, set) in &self.sets {
            let elements = match set.elements.is_empty() {
                true => String::new(),
                false => format!("\t\telements = {{ {} }}\n", join(&set.elements)),
            };
            let spec: String = set.spec.iter().map(|line| format!("\t\t{line}\n")).collect();
            let _infallible = writeln!(text, "\tset {name} {{\n{spec}{elements}\t}}");
        }
        for (name, rules) in &self.chains {
            let rules: String = rules.iter().map(|rule| format!("\t\t{rule}\n")).collect();
            let _infallible = writeln!(text, "\tchain {name} {{\n{rules}\t}}");
        }
        text.push_str("}\n");
        text
    }

    /// Ports that the guard shuts.
    pub fn closed(&self) -> Vec<Port> {
        Protocol::ALL
            .into_iter()
            .flat_map(|protocol| {
                let set = self.sets.get(&closed_set(protocol));
                set.into_iter()
                    .flat_map(|set| &set.elements)
                    .filter_map(move |number| Port::new(protocol, number.parse().ok()?))
            })
            .collect()
    }

    /// Whether every element is one that could be ours. Any other, such as one with a comment, cannot be named in a
    /// deletion: nft would refuse the whole transaction, again and again.
    fn is_plain(&self) -> bool {
        let plain = |element: &String| {
            let name = element.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            match name {
                Some(name) => is_valid_name(name),
                None => element.parse::<u16>().is_ok() || canonical_net(element).is_some(),
            }
        };
        self.sets.values().flat_map(|set| &set.elements).all(plain)
    }

    fn same_shape(&self, other: &Self) -> bool {
        let specs =
            |guard: &Self| guard.sets.iter().map(|(name, set)| (name.clone(), set.spec.clone())).collect::<Vec<_>>();
        self.chains == other.chains && specs(self) == specs(other)
    }
}

/// The lines of the guard that shut `port`.
pub fn lines_for(port: Port) -> Vec<String> {
    let (protocol, number) = (port.protocol, port.number);
    let verdict = if protocol == Protocol::Tcp { "drop" } else { "reject" };
    vec![
        format!(
            "nft inet deadlight prerouting: iifname @outside ct direction original {protocol} dport {number} {verdict}"
        ),
        format!(
            "nft inet deadlight postrouting: oifname @outside ct direction reply ct original proto-dst {number} ({protocol}) drop"
        ),
    ]
}

/// Where Docker has switched route_localnet on, a neighbour reaches what is published on 127.0.0.1 for the node alone.
/// `ct direction` matches no packet that somebody exempted from tracking; for those the port decides.
const PREROUTING: [&str; 9] = [
    "type filter hook prerouting priority -160; policy accept;",
    "iifname != @outside accept",
    "ip daddr 127.0.0.0/8 drop",
    "ip saddr @trusted4 accept",
    "ip6 saddr @trusted6 accept",
    "ct direction original tcp dport @closed_tcp drop",
    "ct direction original udp dport @closed_udp reject",
    "ct state untracked tcp dport @closed_tcp drop",
    "ct state untracked udp dport @closed_udp reject",
];

/// A session that was open before anything tracked connections is picked up in the middle: by the
/// client's next packet, which the guard drops, or by the server's, which would pass for a
/// connection that the node itself began. The last rule stops the latter.
const POSTROUTING: [&str; 7] = [
    "type filter hook postrouting priority 290; policy accept;",
    "oifname != @outside accept",
    "ip daddr @trusted4 accept",
    "ip6 daddr @trusted6 accept",
    "ct direction reply meta l4proto tcp ct original proto-dst @closed_tcp drop",
    "ct direction reply meta l4proto udp ct original proto-dst @closed_udp drop",
    "ct state new tcp sport @closed_tcp tcp flags ack drop",
];

const ADDRESSES4: &str = "type ipv4_addr;flags interval";
const ADDRESSES6: &str = "type ipv6_addr;flags interval";

/// What comes in for the node itself: of the agent's own port, what is forwarded to others is not its business.
fn input(own: &OwnPort) -> Vec<String> {
    let rules = ["iifname != @outside accept", "ip saddr @scanners4 accept", "ip6 saddr @scanners6 accept"];
    let head = "type filter hook input priority -160; policy accept;".to_owned();
    let shut = format!("tcp dport {} drop", own.number);
    [head].into_iter().chain(rules.map(str::to_owned)).chain([shut]).collect()
}

fn closed_set(protocol: Protocol) -> String {
    format!("closed_{protocol}")
}

fn port_elements(desired: &Desired, protocol: Protocol) -> BTreeSet<String> {
    desired.closed.iter().filter(|port| port.protocol == protocol).map(|port| port.number.to_string()).collect()
}

/// IPv4 and IPv6.
fn address_elements(networks: &[IpNet]) -> [BTreeSet<String>; 2] {
    [Family::V4, Family::V6]
        .map(|family| networks.iter().filter(|network| family.holds(network.addr())).map(address_element).collect())
}

/// nft prints a single address without its prefix length.
fn address_element(net: &IpNet) -> String {
    match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.to_string(),
    }
}

/// nft prints some IPv6 addresses in another form than we do.
fn canonical_element(value: &str) -> String {
    canonical_net(value).map_or_else(|| value.to_owned(), |net| address_element(&net))
}

fn canonical_net(value: &str) -> Option<IpNet> {
    value.parse().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))
}

fn block<'a>(kind: &str, line: &'a str) -> Option<&'a str> {
    line.strip_prefix(kind)?.strip_prefix(' ')?.strip_suffix(" {")
}

/// nft leaves out what is the default of the family, depending on its version.
fn canonical_rule(line: &str) -> String {
    line.replace(" with icmpx port-unreachable", "").replace(" with icmpx type port-unreachable", "")
}

fn parse_set(name: &str, body: &str, dropped: &mut BTreeMap<Port, u64>) -> Result<Set, ParseGuardError> {
    let (spec, elements) = match body.split_once("elements = {") {
        Some((spec, elements)) => (spec, elements.trim_end_matches('}').trim_end().trim_end_matches('}')),
        None => (body, ""),
    };
    let mut set = Set { spec: spec_lines(spec), elements: BTreeSet::new() };
    for element in elements.split(',').map(str::trim).filter(|element| !element.is_empty()) {
        let (value, counter) = match element.split_once(" counter packets ") {
            Some((value, counter)) => (value, counter.split(' ').next()),
            None => (element, None),
        };
        if let Some(counter) = counter {
            let port = Protocol::ALL
                .into_iter()
                .find(|protocol| name == closed_set(*protocol))
                .and_then(|protocol| Port::new(protocol, value.parse().ok()?))
                .ok_or_else(|| ParseGuardError(element.to_owned()))?;
            dropped.insert(port, counter.parse().map_err(|_| ParseGuardError(element.to_owned()))?);
        }
        set.elements.insert(canonical_element(value));
    }
    Ok(set)
}

/// `type`, `flags` and `counter` come in lines of their own, which joining has put on one.
fn spec_lines(spec: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in spec.split_whitespace() {
        match lines.last_mut() {
            Some(line) if !matches!(word, "type" | "flags" | "counter") => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn element_changes(standing: &Guard, desired: &Guard) -> Option<String> {
    let mut script = String::new();
    for (name, set) in &desired.sets {
        let Some(old) = standing.sets.get(name) else { continue };
        let (gone, new) = (&old.elements - &set.elements, &set.elements - &old.elements);
        for (verb, elements) in [("delete", gone), ("add", new)] {
            if !elements.is_empty() {
                let _infallible = writeln!(script, "{verb} element inet deadlight {name} {{ {} }}", join(&elements));
            }
        }
    }
    (!script.is_empty()).then_some(script)
}

fn join(elements: &BTreeSet<String>) -> String {
    elements.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(closed: &str) -> Desired {
        Desired {
            closed: closed.parse().unwrap(),
            outside: ["eth0", "ens3"].map(str::to_owned).into(),
            trusted: ["203.0.113.0/24", "198.51.100.7/32", "2001:db8::/32"].map(|net| net.parse().unwrap()).into(),
            ..Desired::default()
        }
    }

    /// Printed by nft 1.0.6 after it took the golden script.
    const LISTED: &str = include_str!("golden/guard.listed");
    const GOLDEN: &str = include_str!("golden/guard.nft");

    #[test]
    fn renders_the_golden_table() {
        let guard = Guard::desired(&desired("9000/tcp,8080/tcp,5514/udp")).unwrap();
        assert_eq!(guard.render(), GOLDEN);
    }

    #[test]
    fn what_nft_lists_is_what_was_written() {
        let guard = Guard::desired(&desired("9000/tcp,8080/tcp,5514/udp")).unwrap();
        let (listed, dropped) = Guard::parse(LISTED).unwrap();
        assert_eq!(listed, guard);
        assert_eq!(Guard::script(Some(&listed), Some(&guard)), None);
        let counts: Vec<_> = dropped.iter().map(|(port, packets)| format!("{port} {packets}")).collect();
        assert_eq!(counts, ["8080/tcp 12", "9000/tcp 0", "5514/udp 3"]);
        assert_eq!(guard.closed().len(), 3);
    }

    #[test]
    fn only_elements_change_when_only_elements_differ() {
        let old = Guard::desired(&desired("8080/tcp,9000/tcp")).unwrap();
        let new = Guard::desired(&desired("8080/tcp,53/udp")).unwrap();
        assert_eq!(
            Guard::script(Some(&old), Some(&new)).unwrap(),
            "delete element inet deadlight closed_tcp { 9000 }\nadd element inet deadlight closed_udp { 53 }\n"
        );
    }

    #[test]
    fn a_tampered_table_is_written_anew() {
        let wanted = Guard::desired(&desired("8080/tcp")).unwrap();
        for (from, to) in [
            ("tcp dport @closed_tcp drop", "tcp dport @closed_tcp accept"),
            ("priority -160", "priority -90"),
            ("\t\tiifname != @outside accept\n", "\t\taccept\n"),
            ("type inet_service", "type inet_service\n\t\tflags timeout"),
        ] {
            let (tampered, _) = Guard::parse(&wanted.render().replacen(from, to, 1)).unwrap();
            let script = Guard::script(Some(&tampered), Some(&wanted)).unwrap();
            assert!(script.starts_with("table inet deadlight\ndelete table inet deadlight\ntable inet deadlight {"));
        }
    }

    /// Printed by nft 1.0.6 after `add element … { 9999 comment "a, b" }`.
    #[test]
    fn elements_that_nobody_could_name_are_written_anew() {
        let wanted = Guard::desired(&desired("8080/tcp")).unwrap();
        let commented =
            "elements = { 8080 counter packets 0 bytes 0, 9999 counter packets 0 bytes 0 comment \"a, b\" }";
        let listed = wanted.render().replacen("elements = { 8080 }", commented, 1);
        let script = Guard::script(Some(&Guard::parse(&listed).unwrap().0), Some(&wanted)).unwrap();
        assert!(script.starts_with("table inet deadlight\ndelete table inet deadlight\n"), "{script}");
    }

    #[test]
    fn nothing_closed_is_no_table() {
        assert_eq!(Guard::desired(&Desired::default()), None);
        let guard = Guard::desired(&desired("8080/tcp")).unwrap();
        assert_eq!(Guard::script(Some(&guard), None).unwrap(), "delete table inet deadlight\n");
        assert_eq!(Guard::script(None, None), None);
        assert!(Guard::desired(&Desired { armed: true, ..Desired::default() }).unwrap().closed().is_empty());
    }

    #[test]
    fn addresses_are_compared_not_their_spelling() {
        let trusted = ["::1.2.3.4/128".parse().unwrap(), "2001:db8:0:0::/64".parse().unwrap()];
        let guard = Guard::desired(&Desired { trusted: trusted.into(), ..desired("8080/tcp") }).unwrap();
        let spelled = guard.render().replace("::102:304", "::1.2.3.4");
        assert_eq!(Guard::parse(&spelled).unwrap().0, guard);
    }

    #[test]
    fn the_agents_own_port_is_for_scanners_alone() {
        let scanners = ["203.0.113.5", "203.0.113.4", "2001:db8::5"].map(|address| IpNet::from(ip(address)));
        let own = OwnPort { number: 7443.try_into().unwrap(), scanners: scanners.into() };
        let wanted = Desired { armed: true, own: Some(own), ..Desired::default() };
        let text = Guard::desired(&wanted).unwrap().render();
        for line in [
            "elements = { 203.0.113.4/31 }",
            "elements = { 2001:db8::5 }",
            "type filter hook input priority -160; policy accept;",
            "tcp dport 7443 drop",
        ] {
            assert!(text.contains(&format!("\t\t{line}\n")), "{text}");
        }
        let (parsed, _) = Guard::parse(&text).unwrap();
        assert_eq!(Guard::script(Some(&parsed), Guard::desired(&wanted).as_ref()), None);
        assert!(parsed.closed().is_empty(), "no order names it");
        // Neither revert --all nor an agent that never armed leaves it behind.
        assert_eq!(Guard::desired(&Desired { armed: false, ..wanted }), None);
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn foreign_text_is_refused() {
        assert!(Guard::parse("table inet other {\n}\n").is_err());
    }
}
