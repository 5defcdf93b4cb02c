//! What a node has to keep rules with, for who asks how it is. Changes nothing.

use deadlight_shared::text::printable;

use super::iptables::{self, Family, Flavour, Save};
use super::linux::{legacy_in_use, nftables_works, read_saves};
use super::runner::{FirewallError, run};

/// Programs, kernel and rules.
#[derive(Debug)]
pub struct Survey {
    /// The programs that the agent runs, each with its version.
    pub programs: Vec<(String, Result<String, FirewallError>)>,
    /// What `iptables` is here, and with it what dockerd writes; none where it does not say, or is not there.
    pub default: Option<Flavour>,
    /// Whether the kernel takes the guard as a table of nftables.
    pub nf_tables: Result<bool, FirewallError>,
    /// Docker's rules.
    pub tables: Result<Tables, FirewallError>,
}

/// Where Docker's rules are.
#[derive(Debug, Default)]
pub struct Tables {
    /// The flavours in which Docker has chains.
    pub docker: Vec<Flavour>,
    /// Whether it has any for IPv6.
    pub has_v6: bool,
    /// Whether it has a routing mesh.
    pub has_mesh: bool,
    /// Whether iptables-legacy has tables, whoever's.
    pub has_legacy: bool,
    /// Rules of DOCKER-USER that are not ours, such as `-A DOCKER-USER -j RETURN`.
    pub docker_user: Vec<String>,
}

impl Survey {
    /// Of this machine.
    pub fn take() -> Self {
        let nf_tables = nftables_works();
        // Asking iptables-legacy loads its modules.
        let (takes_nft, has_legacy) = (!matches!(nf_tables, Ok(false)), legacy_in_use());
        let flavours = [(takes_nft, Flavour::Nft), (has_legacy || !takes_nft, Flavour::Legacy)];
        let flavours: Vec<_> =
            flavours.into_iter().filter(|(is_there, _)| *is_there).map(|(_, flavour)| flavour).collect();
        let nft = takes_nft.then(|| "nft".to_owned());
        let saves =
            flavours.iter().flat_map(|flavour| Family::ALL.map(|family| iptables::program(family, *flavour, "save")));
        let programs = nft.into_iter().chain(saves).map(|name| {
            let version = version(&name);
            (name, version)
        });
        Self {
            programs: programs.collect(),
            default: version("iptables").ok().and_then(|version| flavour(&version)),
            tables: tables(&flavours, has_legacy),
            nf_tables,
        }
    }
}

fn tables(flavours: &[Flavour], has_legacy: bool) -> Result<Tables, FirewallError> {
    let mut tables = Tables { has_legacy, ..Tables::default() };
    for flavour in flavours {
        let [v4, v6] = read_saves(*flavour)?;
        if v4.has_docker() || v6.has_docker() {
            tables.docker.push(*flavour);
        }
        tables.has_v6 |= v6.has_docker();
        tables.has_mesh |= v4.has_chain("nat", "DOCKER-INGRESS");
        tables.docker_user.extend([&v4, &v6].into_iter().flat_map(docker_user));
    }
    Ok(tables)
}

fn docker_user(save: &Save) -> impl Iterator<Item = String> {
    let rules = save.all_rules("filter").filter(|rule| rule.starts_with("-A DOCKER-USER ") && !iptables::is_ours(rule));
    rules.map(str::to_owned)
}

fn version(program: &str) -> Result<String, FirewallError> {
    let said = run(&[program, "--version"].map(str::to_owned), "")?;
    Ok(printable(said.lines().next().unwrap_or_default(), 100))
}

fn flavour(version: &str) -> Option<Flavour> {
    if version.contains("(nf_tables)") {
        Some(Flavour::Nft)
    } else {
        version.contains("(legacy)").then_some(Flavour::Legacy)
    }
}
