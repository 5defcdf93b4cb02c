//! What `nft list table inet deadlight` prints, and the transactions that are made from it.

use std::collections::{BTreeMap, BTreeSet};

use deadlight_agent::firewall::nftables::Guard;
use ipnet::IpNet;

use crate::text::assert_line;
use crate::world;

const ANEW: &str = "table inet deadlight\ndelete table inet deadlight\n";

/// Whatever stands under our name: one transaction makes it what it shall be, and shuts no protected port.
pub fn nft(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let standing = match Guard::parse(&text) {
        Ok((standing, _)) => standing,
        Err(error) => return assert_line(&error.to_string()),
    };
    let policy = world::policy();
    let mut published = "22,2377,8080/tcp,4789,5514/udp".parse().unwrap();
    standing.closed().into_iter().for_each(|port| deadlight_shared::PortSet::insert(&mut published, port));
    for desired in world::states(&published) {
        let wanted = Guard::desired(&desired);
        for port in wanted.iter().flat_map(Guard::closed) {
            assert!(policy.protection(port).is_none(), "{port}");
        }
        let Some(script) = Guard::script(Some(&standing), wanted.as_ref()) else {
            assert_eq!(Some(&standing), wanted.as_ref());
            continue;
        };
        let Some(wanted) = wanted else {
            assert_eq!(script, "delete table inet deadlight\n");
            continue;
        };
        match script.strip_prefix(ANEW) {
            Some(table) => assert_eq!(Guard::parse(table).unwrap().0, wanted),
            None => assert_eq!(changed(&standing, &script), elements(&wanted), "{script}"),
        }
        assert_eq!(Guard::script(Some(&wanted), Some(&wanted)), None);
    }
}

type Sets = BTreeMap<String, BTreeSet<String>>;

/// The elements of every set, read off the printed table.
fn elements(guard: &Guard) -> Sets {
    let (mut sets, mut name) = (Sets::new(), String::new());
    for line in guard.render().lines().map(str::trim) {
        if let Some(set) = line.strip_prefix("set ").and_then(|line| line.strip_suffix(" {")) {
            sets.insert(set.to_owned(), BTreeSet::new());
            name = set.to_owned();
        }
        let listed = line.strip_prefix("elements = { ").and_then(|line| line.strip_suffix(" }"));
        if let (Some(listed), Some(set)) = (listed, sets.get_mut(&name)) {
            set.extend(listed.split(", ").map(str::to_owned));
        }
    }
    sets
}

/// What stands after `script`, each line of which adds or deletes elements that nft understands.
fn changed(standing: &Guard, script: &str) -> Sets {
    let mut sets = elements(standing);
    for line in script.lines() {
        let (verb, rest) = line.split_once(" element inet deadlight ").expect(line);
        let (set, listed) = rest.strip_suffix(" }").and_then(|rest| rest.split_once(" { ")).expect(line);
        for element in listed.split(", ") {
            assert!(is_element(element), "{line}");
            let elements = sets.get_mut(set).expect(line);
            let fits = match verb {
                "add" => elements.insert(element.to_owned()),
                "delete" => elements.remove(element),
                _ => panic!("{line}"),
            };
            assert!(fits, "{line}");
        }
    }
    sets
}

/// A port, an address, a network, or the quoted name of an interface.
fn is_element(element: &str) -> bool {
    let name = element.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let is_name = |name: &str| name.chars().all(|it| it.is_ascii_graphic() && !"\"\\;{},".contains(it));
    element.parse::<u16>().is_ok()
        || element.parse::<std::net::IpAddr>().is_ok()
        || element.parse::<IpNet>().is_ok()
        || name.is_some_and(is_name)
}
