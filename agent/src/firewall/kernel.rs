//! Reads rendered rules the way the kernel does, to show what they do to a packet. A word that it does not know is
//! a panic: nothing is passed over.

use std::collections::{BTreeMap, BTreeSet};

use deadlight_shared::Port;

use super::iptables::Save;

/// How connection tracking sees a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracked {
    Original,
    Reply,
    Untracked,
}

/// Each way that a packet can go; the port is the node's own.
pub(crate) const WAYS: [(&str, Tracked); 6] = [
    ("prerouting", Tracked::Original),
    ("prerouting", Tracked::Untracked),
    ("prerouting", Tracked::Reply),
    ("postrouting", Tracked::Reply),
    ("postrouting", Tracked::Original),
    ("input", Tracked::Original),
];

/// A table of nft, as text.
pub(crate) struct Table<'a> {
    sets: BTreeMap<&'a str, BTreeSet<&'a str>>,
    chains: BTreeMap<&'a str, Vec<Vec<&'a str>>>,
}

impl<'a> Table<'a> {
    pub(crate) fn parse(text: &'a str) -> Self {
        let mut table = Self { sets: BTreeMap::new(), chains: BTreeMap::new() };
        let mut lines = text.lines().map(str::trim);
        assert_eq!(lines.next(), Some("table inet deadlight {"));
        while let Some(head) = lines.next().filter(|line| *line != "}") {
            let (kind, name) = head.strip_suffix(" {").and_then(|head| head.split_once(' ')).expect("a block");
            let body = lines.by_ref().take_while(|line| *line != "}");
            match kind {
                "set" => {
                    let elements = body.filter_map(|line| line.strip_prefix("elements = { ")?.strip_suffix(" }"));
                    table.sets.insert(name, elements.flat_map(|elements| elements.split(", ")).collect());
                }
                "chain" => {
                    let rules = body.skip(1).map(|line| line.split(' ').collect());
                    table.chains.insert(name, rules.collect());
                }
                other => panic!("a {other}"),
            }
        }
        assert_eq!(lines.next(), None);
        table
    }

    /// Whether a packet of a stranger on an outside interface goes on.
    pub(crate) fn passes(&self, chain: &str, tracked: Tracked, port: Port) -> bool {
        let (protocol, number) = (port.protocol.to_string(), port.number.to_string());
        let Some(rules) = self.chains.get(chain) else {
            assert_eq!(chain, "input", "the others always stand");
            return true;
        };
        let verdict = rules.iter().find_map(|rule| self.verdict(rule, tracked, &protocol, &number));
        match verdict {
            None | Some("accept") => true,
            Some("drop" | "reject") => false,
            Some(other) => panic!("the verdict {other}"),
        }
    }

    fn verdict(&self, rule: &[&'a str], tracked: Tracked, protocol: &str, number: &str) -> Option<&'a str> {
        let mut words = rule;
        loop {
            let (matches, rest) = match words {
                [verdict] => return Some(verdict),
                // By an outside interface, from or to somebody whom nobody trusts.
                ["iifname" | "oifname", "!=", "@outside", rest @ ..] => (false, rest),
                ["ip", "saddr" | "daddr", "@trusted4", rest @ ..] => (false, rest),
                // The node by its own address, not by loopback.
                ["ip", "daddr", "127.0.0.0/8", rest @ ..] => (false, rest),
                ["ip6", "saddr" | "daddr", "@trusted6", rest @ ..] => (false, rest),
                ["ip", "saddr", "@scanners4", rest @ ..] | ["ip6", "saddr", "@scanners6", rest @ ..] => (false, rest),
                ["tcp", "dport", wanted, rest @ ..] if !wanted.starts_with('@') => {
                    (protocol == "tcp" && *wanted == number, rest)
                }
                ["ct", "direction", "original", rest @ ..] => (tracked == Tracked::Original, rest),
                ["ct", "direction", "reply", rest @ ..] => (tracked == Tracked::Reply, rest),
                ["ct", "state", "untracked", rest @ ..] => (tracked == Tracked::Untracked, rest),
                // A session that is picked up in the middle is new in its original direction.
                ["ct", "state", "new", rest @ ..] => (tracked == Tracked::Original, rest),
                ["meta", "l4proto", wanted, rest @ ..] => (*wanted == protocol, rest),
                ["ct", "original", "proto-dst", set, rest @ ..] => (self.holds(set, number), rest),
                ["tcp", "flags", "ack", rest @ ..] => (protocol == "tcp", rest),
                [wanted @ ("tcp" | "udp"), "dport" | "sport", set, rest @ ..] => {
                    (*wanted == protocol && self.holds(set, number), rest)
                }
                other => panic!("the words {other:?}"),
            };
            if !matches {
                return None;
            }
            words = rest;
        }
    }

    fn holds(&self, set: &str, number: &str) -> bool {
        self.sets[set.strip_prefix('@').expect("a set")].contains(number)
    }
}

/// The rules of `chain` after `iptables-restore --noflush` has taken `script`.
pub(crate) fn restored(save: &Save, chain: &str, script: &str) -> Vec<String> {
    let mut rules: Vec<String> = save.rules("filter", chain).map(str::to_owned).collect();
    for line in script.lines().filter(|line| !matches!(*line, "*filter" | "COMMIT")) {
        if let Some(declared) = line.strip_prefix(':') {
            if declared.split(' ').next() == Some(chain) {
                rules.clear();
            }
            continue;
        }
        let (verb, rest) = line.split_once(' ').expect("a verb");
        let Some(rule) = rest.strip_prefix(chain).and_then(|rest| rest.strip_prefix(' ')) else { continue };
        match verb {
            "-A" => rules.push(rule.to_owned()),
            "-D" => {
                let position = rules.iter().position(|standing| standing == rule).expect("deletes what stands");
                rules.remove(position);
            }
            "-I" => {
                let (position, rule) = rule.split_once(' ').expect("a position");
                rules.insert(position.parse::<usize>().expect("a number") - 1, rule.to_owned());
            }
            other => panic!("the verb {other}"),
        }
    }
    rules
}

/// The ports to which `rules` accept packets of strangers; none of them may do anything else.
pub(crate) fn accepted(rules: &[String]) -> BTreeSet<Port> {
    let port = |rule: &String| {
        let words: Vec<&str> = rule.split(' ').collect();
        let (mut words, mut is_for_strangers, mut protocol, mut number) = (words.as_slice(), true, None, None);
        loop {
            words = match words {
                ["-j", "ACCEPT"] => break,
                ["-s", _, rest @ ..] => {
                    is_for_strangers = false;
                    rest
                }
                ["-p" | "-m", wanted @ ("tcp" | "udp"), rest @ ..] => {
                    assert!(protocol.replace(*wanted).is_none_or(|before| before == *wanted), "two protocols: {rule}");
                    rest
                }
                ["--dport", wanted, rest @ ..] => {
                    number = Some(*wanted);
                    rest
                }
                ["-m", "comment", "--comment", "deadlight", rest @ ..] => rest,
                other => panic!("the words {other:?}"),
            };
        }
        let port = || format!("{}/{}", number.expect("one port"), protocol.expect("a protocol")).parse();
        is_for_strangers.then(|| port().expect("a port"))
    };
    rules.iter().filter_map(port).collect()
}
