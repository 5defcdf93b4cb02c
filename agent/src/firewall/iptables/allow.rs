//! The own chain `DEADLIGHT`, entered from `DOCKER-USER`: one ACCEPT for each allowlisted range.
//!
//! It matches the *published* port of flows that went through DNAT, so that it never opens the
//! same number of an unpublished container. The jump stands after the operator's own rules in
//! DOCKER-USER, so their drops still win.

use deadlight_shared::Protocol;

use super::{MARK, Save};
use crate::firewall::Desired;

const CHAIN: &str = "DEADLIGHT";
const ENTRY: &str = "DOCKER-USER";

/// Lines that make the chain, and lines that make the jump to it; both empty when all is so.
pub(super) fn changes(save: &Save, desired: &Desired) -> (Vec<String>, Vec<String>) {
    let wanted = if save.has_chain("filter", ENTRY) { rules(desired) } else { Vec::new() };
    let jump = format!("{MARK} -j {CHAIN}");
    let (ours, others): (Vec<&str>, Vec<&str>) = save.rules("filter", ENTRY).partition(|rule| *rule == jump);
    let gone = ours.iter().map(|jump| format!("-D {ENTRY} {jump}"));
    if wanted.is_empty() {
        let chain = [format!("-F {CHAIN}"), format!("-X {CHAIN}")];
        let chain = chain.into_iter().filter(|_| save.has_chain("filter", CHAIN));
        return (gone.chain(chain).collect(), Vec::new());
    }
    let same = save.has_chain("filter", CHAIN) && save.rules("filter", CHAIN).eq(wanted.iter().map(String::as_str));
    let chain = match same {
        true => Vec::new(),
        false => std::iter::once(format!(":{CHAIN} - [0:0]"))
            .chain(wanted.iter().map(|rule| format!("-A {CHAIN} {rule}")))
            .collect(),
    };
    let position = position(&others);
    let mut placed = others;
    placed.insert(position, &jump);
    let jump = match save.rules("filter", ENTRY).eq(placed) {
        true => Vec::new(),
        false => gone.chain([format!("-I {ENTRY} {} {jump}", position + 1)]).collect(),
    };
    (chain, jump)
}

fn rules(desired: &Desired) -> Vec<String> {
    let mut rules = Vec::new();
    for interface in &desired.outside {
        for protocol in Protocol::ALL {
            for &(low, high) in desired.allowed.ranges(protocol) {
                let ports = if low == high { low.to_string() } else { format!("{low}:{high}") };
                rules.push(format!(
                    "-i {interface} -p {protocol} -m conntrack --ctstate DNAT --ctorigdstport {ports} --ctdir ORIGINAL {MARK} -j ACCEPT"
                ));
            }
        }
    }
    rules
}

/// Before the RETURN that dockerd before 28.2 keeps at the end, else at the end.
fn position(others: &[&str]) -> usize {
    match others.last() {
        Some(&"-j RETURN") => others.len() - 1,
        _ => others.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUMP: &str = "-m comment --comment deadlight -j DEADLIGHT";
    const WEB: &str = "-i eth0 -p tcp -m conntrack --ctstate DNAT --ctorigdstport 80 --ctdir ORIGINAL -m comment --comment deadlight -j ACCEPT";

    fn desired(allowed: &str) -> Desired {
        let allowed = if allowed.is_empty() { Default::default() } else { allowed.parse().unwrap() };
        Desired { allowed, outside: ["eth0".to_owned()].into(), ..Desired::default() }
    }

    fn save(user: &[&str], own: Option<&[&str]>) -> Save {
        let lines =
            |chain: &str, rules: &[&str]| rules.iter().map(|rule| format!("-A {chain} {rule}\n")).collect::<String>();
        let declared = own.map_or("", |_| ":DEADLIGHT - [0:0]\n");
        let own = own.map_or_else(String::new, |rules| lines("DEADLIGHT", rules));
        let user = lines("DOCKER-USER", user);
        Save::parse(&format!("*filter\n:DOCKER-USER - [0:0]\n{declared}{own}{user}COMMIT\n")).unwrap()
    }

    #[test]
    fn the_jump_stands_after_the_operators_rules() {
        let (chain, jump) = changes(&save(&["-s 192.0.2.1/32 -j DROP", "-j RETURN"], None), &desired("80/tcp"));
        assert_eq!(chain, [":DEADLIGHT - [0:0]".to_owned(), format!("-A DEADLIGHT {WEB}")]);
        assert_eq!(jump, [format!("-I DOCKER-USER 2 {JUMP}")]);
        let (_, jump) = changes(&save(&["-s 192.0.2.1/32 -j DROP"], None), &desired("80/tcp"));
        assert_eq!(jump, [format!("-I DOCKER-USER 2 {JUMP}")], "no RETURN from Docker 28.2 on");
        let (_, jump) = changes(&save(&[], None), &desired("80/tcp"));
        assert_eq!(jump, [format!("-I DOCKER-USER 1 {JUMP}")]);
    }

    #[test]
    fn a_jump_that_somebody_moved_goes_back() {
        for moved in [[JUMP, "-s 192.0.2.1/32 -j DROP", "-j RETURN"], ["-s 192.0.2.1/32 -j DROP", "-j RETURN", JUMP]] {
            let (chain, jump) = changes(&save(&moved, Some(&[WEB])), &desired("80/tcp"));
            assert!(chain.is_empty());
            assert_eq!(jump, [format!("-D DOCKER-USER {JUMP}"), format!("-I DOCKER-USER 2 {JUMP}")]);
        }
    }

    #[test]
    fn nothing_is_written_twice() {
        let (chain, jump) = changes(&save(&[JUMP, "-j RETURN"], Some(&[WEB])), &desired("80/tcp"));
        assert!(chain.is_empty() && jump.is_empty());
        let (chain, jump) = changes(&save(&[JUMP, JUMP, "-j RETURN"], Some(&[WEB])), &desired("80/tcp"));
        let once =
            [format!("-D DOCKER-USER {JUMP}"), format!("-D DOCKER-USER {JUMP}"), format!("-I DOCKER-USER 1 {JUMP}")];
        assert_eq!((chain.len(), jump.as_slice()), (0, once.as_slice()));
        let (chain, jump) = changes(&save(&[JUMP, "-j RETURN"], Some(&[WEB])), &desired("80,8000-8100/tcp"));
        assert_eq!(chain.len(), 3);
        assert!(chain[2].contains("--ctorigdstport 8000:8100") && jump.is_empty());
    }

    #[test]
    fn an_empty_allowlist_leaves_no_trace() {
        let (lines, _) = changes(&save(&[JUMP, "-j RETURN"], Some(&[WEB])), &desired(""));
        assert_eq!(lines, [format!("-D DOCKER-USER {JUMP}"), "-F DEADLIGHT".into(), "-X DEADLIGHT".into()]);
        let docker_gone = Save::parse(&format!("*filter\n:DEADLIGHT - [0:0]\n-A DEADLIGHT {WEB}\nCOMMIT\n")).unwrap();
        assert_eq!(changes(&docker_gone, &desired("80/tcp")).0, ["-F DEADLIGHT", "-X DEADLIGHT"]);
        let (lines, jump) = changes(&save(&["-j RETURN"], None), &desired(""));
        assert!(lines.is_empty() && jump.is_empty());
    }
}
