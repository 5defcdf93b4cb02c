//! The guard where the kernel has no nf_tables.
//!
//! TCP is dropped in mangle PREROUTING, which stands after conntrack and before every DNAT, as the
//! nftables guard does; Docker writes nothing there. UDP shall be rejected, so that a scanner sees
//! proof, and REJECT exists in `filter` only: there the rules stand first in INPUT and in DOCKER-USER,
//! which dockerd never rewrites. Answers of open sessions are dropped in mangle POSTROUTING.

use deadlight_shared::{Port, Protocol};
use ipnet::IpNet;

use super::{Family, MARK, Save};
use crate::firewall::{Desired, OwnPort};

/// Lines for table `mangle`; none when the guard stands there as `desired` says.
pub(super) fn mangle(save: &Save, family: Family, desired: &Desired) -> Vec<String> {
    let entry = |chain, jump| Entry { chain, jump: jump_to("", jump), wanted: true };
    let layer = Layer {
        table: "mangle",
        chains: chains(family, desired).into(),
        entries: vec![entry("PREROUTING", "DEADLIGHT-IN"), entry("POSTROUTING", "DEADLIGHT-OUT")],
    };
    let door = Layer {
        table: "mangle",
        chains: vec![("DEADLIGHT-DOOR", desired.own().map(|own| door(family, desired, own)).unwrap_or_default())],
        entries: vec![entry("INPUT", "DEADLIGHT-DOOR")],
    };
    let mut lines = layer.changes(save, desired.has_guard());
    lines.extend(door.changes(save, desired.own().is_some()));
    lines
}

/// Lines for table `filter`, where closed UDP ports are rejected; none when all is so.
pub(super) fn filter(save: &Save, family: Family, desired: &Desired) -> Vec<String> {
    let has_user = save.has_chain("filter", "DOCKER-USER");
    let entry = |chain, wanted| Entry { chain, jump: jump_to("-p udp ", REJECT), wanted };
    let rules = pass(family, desired, "s").chain(udp(desired).flat_map(|port| refuse(family, desired, port)));
    let layer = Layer {
        table: "filter",
        chains: vec![(REJECT, rules.collect())],
        entries: vec![entry("INPUT", true), entry("DOCKER-USER", has_user), entry("FORWARD", !has_user)],
    };
    layer.changes(save, udp(desired).next().is_some())
}

/// The rules that shut `port`.
pub(in crate::firewall) fn lines_for(port: Port, desired: &Desired) -> Vec<String> {
    let lines = |family: Family| {
        let shut = match port.protocol {
            Protocol::Tcp => vec![format!("-t mangle -A DEADLIGHT-SHUT {}", shut(port))],
            Protocol::Udp => refuse(family, desired, port).iter().map(|rule| format!("-A {REJECT} {rule}")).collect(),
        };
        let mute = format!("-t mangle -A DEADLIGHT-MUTE {}", mute(port));
        shut.into_iter().chain([mute]).map(|line| format!("{} {line}", family.tool())).collect::<Vec<_>>()
    };
    Family::ALL.map(lines).concat()
}

/// Closed UDP ports are rejected here.
const REJECT: &str = "DEADLIGHT-REJECT";

/// Chains of ours in one table, those first that others enter.
struct Layer {
    table: &'static str,
    chains: Vec<(&'static str, Vec<String>)>,
    entries: Vec<Entry>,
}

/// Where packets enter: the first rule of a chain of the kernel's or of Docker's.
struct Entry {
    chain: &'static str,
    jump: String,
    wanted: bool,
}

impl Layer {
    /// Lines for `iptables-restore --noflush` that put it in place, or take it away.
    fn changes(&self, save: &Save, stands: bool) -> Vec<String> {
        let rules = |chain| save.rules(self.table, chain);
        let jumps = |entry: &Entry| rules(entry.chain).filter(|rule| **rule == entry.jump).count();
        let entered = |entry: &Entry| match entry.wanted && stands {
            true => rules(entry.chain).next() == Some(&entry.jump) && jumps(entry) == 1,
            false => jumps(entry) == 0,
        };
        let written = |(name, wanted): &(&'static str, Vec<String>)| {
            save.has_chain(self.table, name) && rules(name).eq(wanted.iter().map(String::as_str))
        };
        let mut lines = Vec::new();
        if stands && !self.chains.iter().all(written) {
            lines.extend(self.chains.iter().map(|(name, _)| format!(":{name} - [0:0]")));
            for (name, wanted) in &self.chains {
                lines.extend(wanted.iter().map(|rule| format!("-A {name} {rule}")));
            }
        }
        for entry in self.entries.iter().filter(|entry| !entered(entry)) {
            let Entry { chain, jump, wanted } = entry;
            lines.extend((0..jumps(entry)).map(|_| format!("-D {chain} {jump}")));
            if *wanted && stands {
                lines.push(format!("-I {chain} 1 {jump}"));
            }
        }
        if !stands {
            let standing = || self.chains.iter().filter(|(name, _)| save.has_chain(self.table, name));
            lines.extend(standing().map(|(name, _)| format!("-F {name}")));
            lines.extend(standing().map(|(name, _)| format!("-X {name}")));
        }
        lines
    }
}

/// All chains of table `mangle`.
fn chains(family: Family, desired: &Desired) -> [(&'static str, Vec<String>); 5] {
    let by = |direction: &'static str, matches: &'static str| {
        desired.outside.iter().map(move |interface| format!("-{direction} {interface} {matches}"))
    };
    let tcp = || desired.closed.iter().filter(|port| port.protocol == Protocol::Tcp);
    [
        (
            "DEADLIGHT-IN",
            loopback(family, desired)
                .chain(pass(family, desired, "s"))
                .chain(by("i", "-m conntrack --ctdir ORIGINAL -j DEADLIGHT-SHUT"))
                .chain(by("i", "-m conntrack --ctstate UNTRACKED -j DEADLIGHT-SHUT"))
                .collect(),
        ),
        (
            "DEADLIGHT-OUT",
            pass(family, desired, "d")
                .chain(by("o", "-m conntrack --ctdir REPLY -j DEADLIGHT-MUTE"))
                .chain(by("o", "-p tcp -m conntrack --ctstate NEW -m tcp --tcp-flags ACK ACK -j DEADLIGHT-STRAY"))
                .collect(),
        ),
        ("DEADLIGHT-SHUT", tcp().map(shut).collect()),
        ("DEADLIGHT-MUTE", desired.closed.iter().map(mute).collect()),
        ("DEADLIGHT-STRAY", tcp().map(|port| format!("-p tcp -m tcp --sport {} -j DROP", port.number)).collect()),
    ]
}

/// The agent's own port, for scanners alone.
fn door(family: Family, desired: &Desired, own: &OwnPort) -> Vec<String> {
    let scanners = IpNet::aggregate(&own.scanners).into_iter().filter(|network| family.holds(network.addr()));
    let pass = scanners.map(|network| format!("-s {network} -j RETURN"));
    let shut =
        desired.outside.iter().map(|interface| format!("-i {interface} -p tcp -m tcp --dport {} -j DROP", own.number));
    pass.chain(shut).collect()
}

/// Where Docker has switched route_localnet on, a neighbour reaches what is published on 127.0.0.1.
fn loopback(family: Family, desired: &Desired) -> impl Iterator<Item = String> {
    let interfaces = desired.outside.iter().filter(move |_| family == Family::V4);
    interfaces.map(|interface| format!("-d 127.0.0.0/8 -i {interface} -j DROP"))
}

/// Trusted sources or destinations, and the swarm's nodes, go their way.
fn pass(family: Family, desired: &Desired, direction: &'static str) -> impl Iterator<Item = String> {
    let passing = desired.passing().into_iter().filter(move |net| family.holds(net.addr()));
    passing.map(move |net| format!("-{direction} {net} -j RETURN"))
}

fn udp(desired: &Desired) -> impl Iterator<Item = Port> {
    desired.closed.iter().filter(|port| port.protocol == Protocol::Udp)
}

fn shut(port: Port) -> String {
    format!("-p {0} -m {0} --dport {1} -j DROP", port.protocol, port.number)
}

fn mute(port: Port) -> String {
    format!("-p {} -m conntrack --ctorigdstport {} -j DROP", port.protocol, port.number)
}

/// By the published port, which DNAT may have replaced; untracked packets meet no DNAT.
fn refuse(family: Family, desired: &Desired, port: Port) -> Vec<String> {
    let answer = if family == Family::V4 { "icmp-port-unreachable" } else { "icmp6-port-unreachable" };
    let matches = [
        format!("-m conntrack --ctorigdstport {} --ctdir ORIGINAL", port.number),
        format!("-m conntrack --ctstate UNTRACKED -m udp --dport {}", port.number),
    ];
    let on = |interface: &String| {
        matches
            .iter()
            .map(|by| format!("-i {interface} -p udp {by} -j REJECT --reject-with {answer}"))
            .collect::<Vec<_>>()
    };
    desired.outside.iter().flat_map(on).collect()
}

fn jump_to(matches: &str, chain: &str) -> String {
    format!("{matches}{MARK} -j {chain}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(closed: &str) -> Desired {
        Desired {
            closed: closed.parse().unwrap(),
            outside: ["eth0".to_owned()].into(),
            trusted: ["203.0.113.0/24", "2001:db8:7::/48"].map(|net| net.parse().unwrap()).into(),
            ..Desired::default()
        }
    }

    /// What stands after `lines` were written beside the built-in chains and `others`.
    fn written(table: &str, lines: &[String], others: &str) -> Save {
        let built_in = ["PREROUTING", "POSTROUTING", "INPUT", "FORWARD"].map(|name| format!(":{name} ACCEPT [0:0]\n"));
        let rules: String = lines.iter().map(|line| insertion(line) + "\n").collect();
        Save::parse(&format!("*{table}\n{}{rules}{others}COMMIT\n", built_in.concat())).unwrap()
    }

    fn insertion(line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["-I", chain, "1", rest @ ..] => format!("-A {chain} {}", rest.join(" ")),
            _ => line.to_owned(),
        }
    }

    #[test]
    fn what_is_written_stands_and_leaves_no_trace() {
        for family in Family::ALL {
            let wanted = desired("8080/tcp,5514/udp");
            for (table, layer, chains, entries) in [
                ("mangle", mangle as fn(&Save, Family, &Desired) -> Vec<String>, 5, 2),
                ("filter", filter as fn(&Save, Family, &Desired) -> Vec<String>, 1, 2),
            ] {
                let lines = layer(&Save::default(), family, &wanted);
                let save = written(table, &lines, "");
                assert!(layer(&save, family, &wanted).is_empty(), "{lines:#?}");
                assert!(!layer(&save, family, &desired("8080/tcp")).is_empty());
                let gone = layer(&save, family, &Desired::default()).join("\n");
                assert_eq!(gone.matches("-D ").count(), entries, "{gone}");
                assert_eq!((gone.matches("-F ").count(), gone.matches("-X ").count()), (chains, chains));
                let trusted = if family == Family::V4 { "-s 203.0.113.0/24" } else { "-s 2001:db8:7::/48" };
                assert!(lines.iter().any(|line| line.ends_with(&format!(" {trusted} -j RETURN"))));
                assert!(layer(&Save::default(), family, &Desired::default()).is_empty());
            }
        }
    }

    #[test]
    fn the_agents_own_port_is_for_scanners_alone_and_leaves_no_trace() {
        let scanners = ["203.0.113.5/32", "2001:db8::5/128"].map(|network| network.parse().unwrap()).into();
        let own = OwnPort { number: 7443.try_into().unwrap(), scanners };
        let wanted = Desired { own: Some(own), ..desired("8080/tcp") };
        for (family, scanner) in [(Family::V4, "203.0.113.5/32"), (Family::V6, "2001:db8::5/128")] {
            let lines = mangle(&Save::default(), family, &wanted);
            let door: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("-A DEADLIGHT-DOOR ")).collect();
            let shut = "-i eth0 -p tcp -m tcp --dport 7443 -j DROP";
            assert_eq!(door, [format!("-s {scanner} -j RETURN").as_str(), shut]);
            assert!(lines.contains(&"-I INPUT 1 -m comment --comment deadlight -j DEADLIGHT-DOOR".to_owned()));
            let save = written("mangle", &lines, "");
            assert!(mangle(&save, family, &wanted).is_empty());
            let without = mangle(&save, family, &desired("8080/tcp")).join("\n");
            let jump = "-m comment --comment deadlight -j DEADLIGHT-DOOR";
            assert_eq!(without, format!("-D INPUT {jump}\n-F DEADLIGHT-DOOR\n-X DEADLIGHT-DOOR"));
            let nothing = mangle(&save, family, &Desired { own: wanted.own.clone(), ..Desired::default() }).join("\n");
            assert!(nothing.contains("-X DEADLIGHT-DOOR") && nothing.contains("-X DEADLIGHT-SHUT"), "{nothing}");
        }
    }

    #[test]
    fn a_jump_that_does_not_stand_first_is_put_back() {
        let wanted = desired("8080/tcp");
        let mut lines = mangle(&Save::default(), Family::V4, &wanted);
        let place = lines.iter().position(|line| line.starts_with("-I PREROUTING")).unwrap();
        lines.insert(place, "-A PREROUTING -j ACCEPT".to_owned());
        let jump = "-m comment --comment deadlight -j DEADLIGHT-IN";
        assert_eq!(
            mangle(&written("mangle", &lines, ""), Family::V4, &wanted),
            [format!("-D PREROUTING {jump}"), format!("-I PREROUTING 1 {jump}")]
        );
    }

    #[test]
    fn udp_is_rejected_where_docker_never_rewrites() {
        let wanted = desired("5514/udp");
        let without_docker = filter(&Save::default(), Family::V4, &wanted);
        let jump = "-p udp -m comment --comment deadlight -j DEADLIGHT-REJECT";
        assert!(without_docker.contains(&format!("-I FORWARD 1 {jump}")));
        let with_docker = written("filter", &without_docker, ":DOCKER-USER - [0:0]\n");
        assert_eq!(
            filter(&with_docker, Family::V4, &wanted),
            [format!("-I DOCKER-USER 1 {jump}"), format!("-D FORWARD {jump}")]
        );
        assert!(filter(&with_docker, Family::V4, &desired("8080/tcp")).contains(&"-X DEADLIGHT-REJECT".to_owned()));
        assert!(!mangle(&Save::default(), Family::V4, &wanted).iter().any(|line| line.contains("SHUT -p udp")));
    }
}
