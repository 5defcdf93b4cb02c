//! A node and a policy for rules and orders to meet.

use deadlight_agent::config::Config;
use deadlight_agent::firewall::Desired;
use deadlight_agent::ledger::Permitted;
use deadlight_agent::plan::Policy;
use deadlight_shared::PortSet;

/// The policy of an agent that was never configured.
pub(crate) fn policy() -> Policy {
    Config::default().policy(&[], false, Permitted::All)
}

/// What a node with `published` ports may want: nothing, the guard alone, all of them closed, and one half closed and
/// the other allowed.
pub(crate) fn states(published: &PortSet) -> [Desired; 4] {
    let policy = policy();
    let closable = || published.iter().filter(|port| policy.protection(*port).is_none());
    let half = |odd| closable().filter(move |port| (port.number.get() % 2 == 1) == odd).collect();
    let armed = Desired {
        armed: true,
        outside: ["eth0".to_owned(), "ens3".to_owned()].into(),
        trusted: ["203.0.113.0/24", "2001:db8:7::/48"].map(|net| net.parse().unwrap()).into(),
        peers: ["198.51.100.12", "2001:db8:51::12"].map(|peer| peer.parse().unwrap()).into(),
        docker_subnets: ["172.17.0.0/16", "fd00::/64"].map(|net| net.parse().unwrap()).into(),
        ..Desired::default()
    };
    [
        Desired::default(),
        armed.clone(),
        Desired { closed: closable().collect(), ..armed.clone() },
        Desired { closed: half(true), allowed: half(false), ..armed },
    ]
}
