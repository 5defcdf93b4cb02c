//! The guard where the kernel has no nf_tables: the same match in table `mangle`.
//!
//! Mangle PREROUTING stands after conntrack and before every DNAT, as the nftables guard does, and
//! Docker writes nothing there. A UDP port is dropped, not rejected: REJECT exists in `filter` only.

use std::fmt::Write as _;

use deadlight_shared::{Port, Protocol};

use super::{Family, MARK, Save};
use crate::firewall::Desired;

const TABLE: &str = "mangle";

/// Where packets of the kernel enter our chains.
const ENTRIES: [(&str, &str); 2] = [("PREROUTING", "DEADLIGHT-IN"), ("POSTROUTING", "DEADLIGHT-OUT")];

/// The script for `iptables-restore --noflush` that brings the guard of one family in line with
/// `desired`, with the ports that it shuts; none when it stands so already.
pub fn script(save: &Save, family: Family, desired: &Desired) -> Option<(String, Vec<Port>)> {
    let wanted = chains(family, desired);
    let stands = |(name, rules): &(&str, Vec<String>)| {
        save.has_chain(TABLE, name) && save.rules(TABLE, name).eq(rules.iter().map(String::as_str))
    };
    let entered = |(entry, chain): &(&str, &str)| {
        let jump = jump(chain);
        save.rules(TABLE, entry).next() == Some(&jump)
            && save.rules(TABLE, entry).filter(|rule| **rule == *jump).count() == 1
    };
    let mut script = format!("*{TABLE}\n");
    match desired.has_guard() {
        true if wanted.iter().all(stands) && ENTRIES.iter().all(entered) => return None,
        true => {
            for (name, _) in &wanted {
                let _infallible = writeln!(script, ":{name} - [0:0]");
            }
            for (name, rules) in &wanted {
                script.extend(rules.iter().map(|rule| format!("-A {name} {rule}\n")));
            }
            for (entry, chain) in ENTRIES.iter().filter(|entry| !entered(entry)) {
                let _infallible = writeln!(script, "{}-I {entry} 1 {}", leave(save, entry, chain), jump(chain));
            }
        }
        false => {
            let standing: Vec<&str> =
                wanted.iter().map(|(name, _)| *name).filter(|name| save.has_chain(TABLE, name)).collect();
            let left: String = ENTRIES.iter().map(|(entry, chain)| leave(save, entry, chain)).collect();
            if standing.is_empty() && left.is_empty() {
                return None;
            }
            script.push_str(&left);
            script.extend(standing.iter().map(|name| format!("-F {name}\n")));
            script.extend(standing.iter().map(|name| format!("-X {name}\n")));
        }
    }
    script.push_str("COMMIT\n");
    Some((script, desired.closed.iter().collect()))
}

/// The rules of ours that stand in `save`.
pub fn owned(save: &Save) -> Vec<String> {
    let ours = |rule: &&str| rule.contains("DEADLIGHT");
    save.all_rules(TABLE).filter(ours).map(|rule| format!("{TABLE} {rule}")).collect()
}

/// The rules that shut `port`.
pub fn lines_for(port: Port) -> Vec<String> {
    let [shut, mute] = [("DEADLIGHT-SHUT", shut(port)), ("DEADLIGHT-MUTE", mute(port))];
    ["iptables", "ip6tables"]
        .into_iter()
        .flat_map(|program| [&shut, &mute].map(|(chain, rule)| format!("{program} -t {TABLE} -A {chain} {rule}")))
        .collect()
}

/// All chains, those first that others enter.
fn chains(family: Family, desired: &Desired) -> [(&'static str, Vec<String>); 5] {
    let trusted = || desired.trusted.iter().map(ipnet::IpNet::trunc).filter(|net| family.holds(net.addr()));
    let pass = |direction: &'static str| trusted().map(move |net| format!("-{direction} {net} -j RETURN"));
    let by = |direction: &'static str, matches: &'static str| {
        desired.outside.iter().map(move |interface| format!("-{direction} {interface} {matches}"))
    };
    let tcp = || desired.closed.iter().filter(|port| port.protocol == Protocol::Tcp);
    [
        (
            "DEADLIGHT-IN",
            pass("s")
                .chain(by("i", "-m conntrack --ctdir ORIGINAL -j DEADLIGHT-SHUT"))
                .chain(by("i", "-m conntrack --ctstate UNTRACKED -j DEADLIGHT-SHUT"))
                .collect(),
        ),
        (
            "DEADLIGHT-OUT",
            pass("d")
                .chain(by("o", "-m conntrack --ctdir REPLY -j DEADLIGHT-MUTE"))
                .chain(by("o", "-p tcp -m conntrack --ctstate NEW -m tcp --tcp-flags ACK ACK -j DEADLIGHT-STRAY"))
                .collect(),
        ),
        ("DEADLIGHT-SHUT", desired.closed.iter().map(shut).collect()),
        ("DEADLIGHT-MUTE", desired.closed.iter().map(mute).collect()),
        ("DEADLIGHT-STRAY", tcp().map(|port| format!("-p tcp -m tcp --sport {} -j DROP", port.number)).collect()),
    ]
}

fn shut(port: Port) -> String {
    format!("-p {0} -m {0} --dport {1} -j DROP", port.protocol, port.number)
}

fn mute(port: Port) -> String {
    format!("-p {} -m conntrack --ctorigdstport {} -j DROP", port.protocol, port.number)
}

fn jump(chain: &str) -> String {
    format!("{MARK} -j {chain}")
}

/// Lines that delete every jump to `chain`.
fn leave(save: &Save, entry: &str, chain: &str) -> String {
    let jump = jump(chain);
    save.rules(TABLE, entry).filter(|rule| **rule == *jump).map(|rule| format!("-D {entry} {rule}\n")).collect()
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

    /// What stands after `script` was written on nothing.
    fn written(script: &str) -> Save {
        let jumps =
            script.replace("-I PREROUTING 1 ", "-A PREROUTING ").replace("-I POSTROUTING 1 ", "-A POSTROUTING ");
        Save::parse(&jumps.replace("*mangle\n", "*mangle\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"))
            .unwrap()
    }

    #[test]
    fn what_is_written_stands_and_leaves_no_trace() {
        for family in Family::ALL {
            let wanted = desired("8080/tcp,5514/udp");
            let (text, ports) = script(&Save::default(), family, &wanted).unwrap();
            assert_eq!(ports.len(), 2);
            let save = written(&text);
            assert_eq!(script(&save, family, &wanted), None);
            assert!(script(&save, family, &desired("8080/tcp")).is_some());
            let (gone, _) = script(&save, family, &Desired::default()).unwrap();
            assert_eq!(gone.matches("-D ").count(), 2);
            assert_eq!((gone.matches("-F ").count(), gone.matches("-X ").count()), (5, 5));
            let trusted = if family == Family::V4 { "-s 203.0.113.0/24" } else { "-s 2001:db8:7::/48" };
            assert!(text.contains(&format!("-A DEADLIGHT-IN {trusted} -j RETURN")));
        }
        assert_eq!(script(&Save::default(), Family::V4, &Desired::default()), None);
    }

    #[test]
    fn a_jump_that_does_not_stand_first_is_put_back() {
        let wanted = desired("8080/tcp");
        let (text, _) = script(&Save::default(), Family::V4, &wanted).unwrap();
        let behind = text.replace("-I PREROUTING 1 ", "-A PREROUTING -j ACCEPT\n-I PREROUTING 1 ");
        let (again, _) = script(&written(&behind), Family::V4, &wanted).unwrap();
        let jump = "-m comment --comment deadlight -j DEADLIGHT-IN";
        assert!(again.contains(&format!("-D PREROUTING {jump}\n-I PREROUTING 1 {jump}\n")), "{again}");
        assert!(!again.contains("POSTROUTING 1"));
    }
}
