//! What `iptables-save` prints, and the scripts that are made from it.

use std::collections::{BTreeMap, BTreeSet};

use deadlight_agent::firewall::iptables::{self, Family, Save, Script};
use deadlight_agent::firewall::{Desired, DockerRules};
use deadlight_agent::{explain, plan::Policy};
use deadlight_shared::{Port, PortSet};

use crate::text::assert_line;
use crate::world;

type Render = fn(&Save, Family, &Desired) -> Option<Script>;

/// Whatever stands: a script can be carried out, touches no rule of others, names no protected port, is not needed
/// twice, and the way back leads to where it began.
pub fn iptables_save(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let save = match Save::parse(&text) {
        Ok(save) => save,
        Err(error) => return assert_line(&error.to_string()),
    };
    let docker = DockerRules { dnat: iptables::dnat_rules(&save), lines: rules(&save) };
    let published = docker.published();
    for port in published.iter().take(4) {
        explain::path(port, &docker);
    }
    let Some(tables) = Tables::parse(&text) else { return };
    let meshed = docker.dnat.iter().filter(|dnat| dnat.chain == "DOCKER-INGRESS").map(|dnat| dnat.port).collect();
    let mut asked = published;
    asked.extend(&"22,2377,8080/tcp,4789/udp".parse().unwrap());
    for family in Family::ALL {
        for render in [iptables::script as Render, iptables::script_with_guard] {
            for desired in world::states(&asked) {
                check(&tables, family, render, &desired, &meshed);
            }
        }
    }
}

fn rules(save: &Save) -> Vec<String> {
    ["raw", "nat", "filter"].into_iter().flat_map(|table| save.all_rules(table)).map(str::to_owned).collect()
}

fn check(before: &Tables, family: Family, render: Render, desired: &Desired, published: &PortSet) {
    let policy = world::policy();
    let step = |tables: &Tables, desired: &Desired| {
        let script = render(&Save::parse(&tables.print()).expect("it was printed by us"), family, desired);
        let (script, ports) = script?;
        assert!(ports.iter().all(|port| policy.protection(*port).is_none()), "{ports:?}");
        script.lines().for_each(|line| assert_harmless(line, &policy));
        let mut after = tables.clone();
        after.restore(&script);
        assert_eq!(tables.foreign(), after.foreign(), "{script}");
        Some(after)
    };
    let after = step(before, desired).unwrap_or_else(|| before.clone());
    let whole = before.is_dockers(published);
    // A rule that Docker is about to delete is narrowed first and forgotten at the next look.
    let after = if whole { after } else { step(&after, desired).unwrap_or(after) };
    let again = step(&after, desired);
    assert!(again.is_none(), "not there:\n{}\nbut\n{}", after.print(), again.unwrap().print());
    if before.is_untouched() && whole {
        let back = step(&after, &Desired::default()).unwrap_or(after);
        assert_eq!(before.print(), back.print());
    }
}

/// A rule that is written shuts no protected port, and what is taken away is ours or Docker's wide ACCEPT.
fn assert_harmless(line: &str, policy: &Policy) {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["-F" | "-X", chain] => assert!(chain.starts_with("DEADLIGHT"), "{line}"),
        [declared, ..] if declared.starts_with(':') => assert!(declared.starts_with(":DEADLIGHT"), "{line}"),
        ["-D", chain, rest @ ..] => {
            let rule = rest.join(" ");
            let dockers = *chain == "DOCKER-INGRESS" && wide(&rule).is_some();
            assert!(dockers || iptables::is_ours(&rule), "{line}");
        }
        ["-A" | "-I", chain, ..] => {
            let shuts = line.ends_with(" -j DROP") || line.contains(" -j REJECT");
            let narrows = *chain == "DOCKER-INGRESS" && line.contains(" -s ");
            for port in named(&words).filter(|_| shuts || narrows) {
                assert!(policy.protection(port).is_none(), "{line}");
            }
        }
        _ => assert!(line.starts_with('*') || line == "COMMIT", "{line}"),
    }
}

/// The port of a rule, by whichever of its numbers.
fn named<'a>(words: &'a [&str]) -> impl Iterator<Item = Port> + 'a {
    let value =
        |options: &[&str]| words.iter().position(|word| options.contains(word)).and_then(|at| words.get(at + 1));
    let protocol = value(&["-p"]).copied().unwrap_or_default();
    let number = value(&["--dport", "--sport", "--ctorigdstport"]).copied().unwrap_or_default();
    format!("{number}/{protocol}").parse().into_iter()
}

/// The port of exactly Docker's rule.
fn wide(rule: &str) -> Option<Port> {
    let words: Vec<&str> = rule.split(' ').collect();
    let ["-p", protocol, "-m", again, "--dport", number, "-j", "ACCEPT"] = words.as_slice() else { return None };
    (protocol == again).then(|| format!("{number}/{protocol}").parse().ok())?
}

/// The tables of one family, as `iptables-restore --noflush` changes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tables(BTreeMap<String, Vec<Chain>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    name: String,
    rules: Vec<String>,
}

impl Tables {
    /// What a kernel can hold: every chain once, and no rule outside of one.
    fn parse(text: &str) -> Option<Self> {
        let mut tables = Self::default();
        for (table, chains) in [
            ("filter", ["INPUT", "FORWARD", "OUTPUT"].as_slice()),
            ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
            ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
        ] {
            let chain = |name: &&str| Chain { name: (*name).to_owned(), rules: Vec::new() };
            tables.0.insert(table.to_owned(), chains.iter().map(chain).collect());
        }
        let (mut seen, mut table) = (BTreeSet::new(), None);
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('*') {
                let fresh = tables.0.contains_key(name) && seen.insert(name.to_owned());
                table = Some(fresh.then_some(name)?);
            } else if let Some(declared) = line.strip_prefix(':') {
                let name = declared.split(' ').next().filter(|name| !name.is_empty() && name.is_ascii())?;
                if !seen.insert(format!("{} {name}", table?)) {
                    return None;
                }
                if tables.chain(table?, name).is_none() {
                    tables.0.get_mut(table?)?.push(Chain { name: name.to_owned(), rules: Vec::new() });
                }
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
                tables.chain(table?, chain)?.rules.push(rule.to_owned());
            }
        }
        Some(tables)
    }

    fn chain(&mut self, table: &str, name: &str) -> Option<&mut Chain> {
        self.0.get_mut(table)?.iter_mut().find(|chain| chain.name == name)
    }

    fn print(&self) -> String {
        let mut text = String::new();
        for (table, chains) in &self.0 {
            text += &format!("*{table}\n");
            chains.iter().for_each(|chain| text += &format!(":{} - [0:0]\n", chain.name));
            for Chain { name, rules } in chains {
                rules.iter().for_each(|rule| text += &format!("{}\n", format!("-A {name} {rule}").trim_end()));
            }
            text += "COMMIT\n";
        }
        text
    }

    /// As the program would: a line that cannot be carried out is a finding.
    fn restore(&mut self, script: &str) {
        let mut table = "";
        for line in script.lines() {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            match words.as_slice() {
                ["COMMIT"] => {}
                [name] if name.starts_with('*') => table = &name[1..],
                [declared, ..] if declared.starts_with(':') => match self.chain(table, &declared[1..]) {
                    Some(chain) => chain.rules.clear(),
                    None => {
                        let chain = Chain { name: declared[1..].to_owned(), rules: Vec::new() };
                        self.0.get_mut(table).expect("a table of the kernel's").push(chain);
                    }
                },
                ["-F", name] => self.chain(table, name).expect("a chain that stands").rules.clear(),
                ["-X", name] => {
                    let chains = self.0.get_mut(table).expect("a table of the kernel's");
                    let at = chains.iter().position(|chain| chain.name == *name).expect("a chain that stands");
                    assert!(chains[at].rules.is_empty(), "{line}");
                    chains.remove(at);
                }
                ["-A", name, rule] => self.chain(table, name).expect(line).rules.push((*rule).to_owned()),
                ["-D", name, rule] => {
                    let rules = &mut self.chain(table, name).expect(line).rules;
                    let at = rules.iter().position(|standing| standing == rule);
                    rules.remove(at.unwrap_or_else(|| panic!("{line}: no such rule among {rules:#?}")));
                }
                ["-I", name, rest] => {
                    let (position, rule) = rest.split_once(' ').expect(line);
                    let position: usize = position.parse().expect(line);
                    let rules = &mut self.chain(table, name).expect(line).rules;
                    assert!((1..=rules.len() + 1).contains(&position), "{line}: there are {} rules", rules.len());
                    rules.insert(position - 1, rule.to_owned());
                }
                _ => panic!("{line:?} is no line of a script"),
            }
        }
    }

    /// Every rule that is nobody's but others', in its order.
    fn foreign(&self) -> Vec<(&str, &str, &str)> {
        let mut foreign = Vec::new();
        for (table, chains) in &self.0 {
            for Chain { name, rules } in chains.iter().filter(|chain| !chain.name.starts_with("DEADLIGHT")) {
                let dockers = |rule: &str| table == "filter" && name == "DOCKER-INGRESS" && wide(rule).is_some();
                let others = rules.iter().filter(|rule| !iptables::is_ours(rule) && !dockers(rule));
                foreign.extend(others.map(|rule| (table.as_str(), name.as_str(), rule.as_str())));
            }
        }
        foreign
    }

    /// Whether no agent was ever here.
    fn is_untouched(&self) -> bool {
        !self.print().to_ascii_lowercase().contains("deadlight")
    }

    /// Whether Docker's wide rules are as Docker writes them: each once, beside its DNAT.
    fn is_dockers(&self, published: &PortSet) -> bool {
        let chains = self.0.get("filter").into_iter().flatten().filter(|chain| chain.name == "DOCKER-INGRESS");
        let ports: Vec<Port> = chains.flat_map(|chain| &chain.rules).filter_map(|rule| wide(rule)).collect();
        let once: BTreeSet<&Port> = ports.iter().collect();
        once.len() == ports.len() && ports.iter().all(|port| published.contains(*port) || policy_keeps(*port))
    }
}

fn policy_keeps(port: Port) -> bool {
    world::policy().protection(port).is_some()
}
