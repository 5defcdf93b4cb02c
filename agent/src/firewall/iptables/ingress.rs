//! Tightening of `DOCKER-INGRESS`: the wide ACCEPT of a closed port gets the node's own Docker
//! subnets and the trusted networks as its sources.
//!
//! Rules are deleted by their full text, never by number: dockerd may write between our read and
//! our write, and then the delete fails as a whole and is tried again. Only one exact form of
//! Docker's rule is ever replaced, so its original text is a function of the port.

use std::collections::BTreeSet;

use deadlight_shared::{Port, Protocol};
use ipnet::IpNet;

use super::{Family, MARK, Save, dnat_rules};
use crate::firewall::Desired;

const CHAIN: &str = "DOCKER-INGRESS";

/// The tightened rules of `port`, one for each source of the family, without `-A CHAIN `.
pub(super) fn tightened(port: Port, family: Family, sources: &[IpNet]) -> Vec<String> {
    let (protocol, number) = (port.protocol, port.number);
    sources
        .iter()
        .filter(|net| family.holds(net.network()))
        .map(|net| format!("-s {net} -p {protocol} -m {protocol} --dport {number} {MARK} -j ACCEPT"))
        .collect()
}

/// Lines for `iptables-restore --noflush`, and the ports that they tighten.
pub(super) fn changes(save: &Save, family: Family, desired: &Desired) -> (Vec<String>, Vec<Port>) {
    let chain = Chain {
        rules: save.rules("filter", CHAIN).collect(),
        published: dnat_rules(save).into_iter().filter(|dnat| dnat.chain == CHAIN).map(|dnat| dnat.port).collect(),
        family,
        sources: desired.inner_sources(),
        desired,
    };
    let (current, wanted) = (chain.current(), chain.wanted());
    let ports = chain.tightened_ports();
    (edits(&current, &wanted), ports)
}

/// A run of rules that are ours to place, between two rules that stay where they are.
type Gap = Vec<String>;

enum Kind {
    Wide(Port),
    Ours(Port),
    Foreign,
}

struct Chain<'a> {
    rules: Vec<&'a str>,
    published: BTreeSet<Port>,
    family: Family,
    sources: Vec<IpNet>,
    desired: &'a Desired,
}

impl Chain<'_> {
    /// The gaps as they are.
    fn current(&self) -> Vec<Gap> {
        self.gaps(|rule, _| vec![rule.to_owned()])
    }

    /// The gaps as they shall be: for a closed port the tightened rules in place of its first
    /// ACCEPT; for any other port Docker's own text again; nothing for a port that Docker forgot.
    fn wanted(&self) -> Vec<Gap> {
        let wide: BTreeSet<Port> = self.rules.iter().filter_map(|rule| accept(rule, "")).collect();
        let mut done = BTreeSet::new();
        self.gaps(|_, port| {
            let closed = self.desired.closed.contains(port);
            let forgotten = !wide.contains(&port) && !self.published.contains(&port);
            let restored = !closed && wide.contains(&port);
            if forgotten || restored || !done.insert(port) {
                return Gap::new();
            }
            let tight = tightened(port, self.family, &self.sources);
            if closed && !tight.is_empty() { tight } else { vec![original(port)] }
        })
    }

    fn tightened_ports(&self) -> Vec<Port> {
        let closed = self.rules.iter().filter_map(|rule| match kind(rule) {
            Kind::Wide(port) | Kind::Ours(port) if self.desired.closed.contains(port) => Some(port),
            _ => None,
        });
        closed.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Splits the chain at every rule that stays and replaces each of the others by `place`.
    fn gaps(&self, mut place: impl FnMut(&str, Port) -> Gap) -> Vec<Gap> {
        let mut gaps = vec![Gap::new()];
        for rule in &self.rules {
            match kind(rule) {
                Kind::Wide(port) if self.desired.closed.contains(port) => extend_last(&mut gaps, place(rule, port)),
                Kind::Ours(port) => extend_last(&mut gaps, place(rule, port)),
                Kind::Wide(_) | Kind::Foreign => gaps.push(Gap::new()),
            }
        }
        gaps
    }
}

fn extend_last(gaps: &mut [Gap], rules: Gap) {
    if let Some(gap) = gaps.last_mut() {
        gap.extend(rules);
    }
}

/// Deletions by full text, then insertions at their places. A deletion takes the first rule of
/// its text, so a gap that shares a text with a changed gap is written anew as well.
fn edits(current: &[Gap], wanted: &[Gap]) -> Vec<String> {
    let mut changed: BTreeSet<usize> = (0..current.len()).filter(|gap| current[*gap] != wanted[*gap]).collect();
    loop {
        let texts: BTreeSet<&String> = changed.iter().flat_map(|gap| &current[*gap]).collect();
        let sharing = (0..current.len()).filter(|gap| current[*gap].iter().any(|rule| texts.contains(rule)));
        let before = changed.len();
        changed.extend(sharing.collect::<Vec<_>>());
        if changed.len() == before {
            break;
        }
    }
    let deleted = changed.iter().flat_map(|gap| &current[*gap]).map(|rule| format!("-D {CHAIN} {rule}"));
    let mut position = 0;
    let mut inserted = Vec::new();
    for (gap, rules) in wanted.iter().enumerate() {
        for rule in rules {
            position += 1;
            if changed.contains(&gap) {
                inserted.push(format!("-I {CHAIN} {position} {rule}"));
            }
        }
        position += 1;
    }
    deleted.chain(inserted).collect()
}

fn kind(rule: &str) -> Kind {
    if let Some(port) = accept(rule, "") {
        return Kind::Wide(port);
    }
    let unsourced = rule.strip_prefix("-s ").and_then(|rest| rest.split_once(' ')).map(|(_, rest)| rest);
    unsourced.and_then(|rest| accept(rest, MARK)).map_or(Kind::Foreign, Kind::Ours)
}

/// The port of exactly `-p P -m P --dport N [extra] -j ACCEPT`.
fn accept(rule: &str, extra: &str) -> Option<Port> {
    let matches = rule.strip_suffix(" -j ACCEPT")?.strip_suffix(extra)?.trim_end();
    let (head, number) = matches.rsplit_once(" --dport ")?;
    let protocol = Protocol::ALL.into_iter().find(|protocol| head == format!("-p {protocol} -m {protocol}"))?;
    Port::new(protocol, number.parse().ok()?)
}

fn original(port: Port) -> String {
    let (protocol, number) = (port.protocol, port.number);
    format!("-p {protocol} -m {protocol} --dport {number} -j ACCEPT")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: &str = "-p tcp -m tcp --dport 8080 -j ACCEPT";
    const REPLY: &str = "-p tcp -m tcp --sport 8080 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    const OTHER: &str = "-p tcp -m tcp --dport 80 -j ACCEPT";
    const SECOND: &str = "-s 172.18.0.0/16 -p tcp -m tcp --dport 8080 -m comment --comment deadlight -j ACCEPT";
    const OURS: &str = "-s 172.17.0.0/16 -p tcp -m tcp --dport 8080 -m comment --comment deadlight -j ACCEPT";

    fn desired(closed: &str) -> Desired {
        let subnets = ["172.17.0.0/16", "fd00::/64"].map(|net| net.parse().unwrap());
        let closed = if closed.is_empty() { Default::default() } else { closed.parse().unwrap() };
        let trusted = vec!["172.18.0.9/16".parse().unwrap()];
        Desired { closed, docker_subnets: subnets.into(), trusted, ..Desired::default() }
    }

    fn save(rules: &[&str], published: bool) -> Save {
        let rules: String = rules.iter().map(|rule| format!("-A DOCKER-INGRESS {rule}\n")).collect();
        let dnat = "-A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:8080\n";
        let nat = if published { dnat } else { "" };
        Save::parse(&format!(
            "*nat\n:DOCKER-INGRESS - [0:0]\n{nat}COMMIT\n*filter\n:DOCKER-INGRESS - [0:0]\n{rules}COMMIT\n"
        ))
        .unwrap()
    }

    /// What a chain holds after the edits, as the kernel would apply them.
    fn apply(rules: &[&str], edits: &[String]) -> Vec<String> {
        let mut chain: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
        for edit in edits {
            if let Some(rule) = edit.strip_prefix("-D DOCKER-INGRESS ") {
                let position = chain.iter().position(|standing| standing == rule).expect("deletes what stands");
                chain.remove(position);
            } else {
                let (position, rule) = edit.strip_prefix("-I DOCKER-INGRESS ").unwrap().split_once(' ').unwrap();
                chain.insert(position.parse::<usize>().unwrap() - 1, rule.to_owned());
            }
        }
        chain
    }

    #[test]
    fn each_state_of_the_chain_becomes_the_wanted_one() {
        type Rules<'a> = &'a [&'a str];
        let cases: [(&str, Rules<'_>, bool, &str, Rules<'_>); 8] = [
            (
                "tightened in place",
                &[OTHER, WIDE, REPLY, "-j RETURN"],
                true,
                "8080/tcp",
                &[OTHER, OURS, SECOND, REPLY, "-j RETURN"],
            ),
            ("already tight", &[OTHER, OURS, SECOND, REPLY], true, "8080/tcp", &[OTHER, OURS, SECOND, REPLY]),
            (
                "dockerd put the wide one back",
                &[WIDE, REPLY, OURS, SECOND, REPLY],
                true,
                "8080/tcp",
                &[OURS, SECOND, REPLY, REPLY],
            ),
            ("duplicates", &[WIDE, OURS, OURS, WIDE], true, "8080/tcp", &[OURS, SECOND]),
            ("Docker forgot the port", &[OURS, SECOND, "-j RETURN"], false, "8080/tcp", &["-j RETURN"]),
            ("reverted in place", &[OTHER, OURS, SECOND, REPLY], true, "", &[OTHER, WIDE, REPLY]),
            ("reverted after Docker put it back", &[WIDE, OURS, SECOND], true, "", &[WIDE]),
            (
                "not ours",
                &[OTHER, "-s 10.0.0.0/8 -p tcp -m tcp --dport 8080 -j ACCEPT"],
                true,
                "8080/tcp",
                &[OTHER, "-s 10.0.0.0/8 -p tcp -m tcp --dport 8080 -j ACCEPT"],
            ),
        ];
        for (name, rules, published, closed, wanted) in cases {
            let (edits, _) = changes(&save(rules, published), Family::V4, &desired(closed));
            let after = apply(rules, &edits);
            assert_eq!(after, wanted, "{name}: {edits:?}");
            let refs: Vec<&str> = after.iter().map(String::as_str).collect();
            let (again, _) = changes(&save(&refs, published), Family::V4, &desired(closed));
            assert!(again.is_empty(), "{name} is not a fixed point: {again:?}");
        }
    }

    #[test]
    fn udp_is_not_tcp_and_v6_takes_v6_subnets() {
        let (edits, _) = changes(&save(&[WIDE], true), Family::V4, &desired("8080/udp"));
        assert!(edits.is_empty());
        let (edits, ports) = changes(&save(&[WIDE], true), Family::V6, &desired("8080/tcp"));
        assert_eq!(
            edits[1],
            "-I DOCKER-INGRESS 1 -s fd00::/64 -p tcp -m tcp --dport 8080 -m comment --comment deadlight -j ACCEPT"
        );
        assert_eq!(ports, ["8080/tcp".parse().unwrap()]);
    }
}
