//! The real firewall of this machine.

use std::io::ErrorKind;
use std::sync::OnceLock;
use std::{fs, thread};

use deadlight_shared::Port;

use super::iptables::{self, Family, Flavour, Save};
use super::nftables::{self, Guard};
use super::runner::{FirewallError, run};
use super::{Change, Desired, DockerRules, Firewall, Inspection, Step};

/// The guard by nftables, tightening by the iptables flavour in which Docker's chains live.
#[derive(Debug, Default)]
pub struct Linux;

impl Firewall for Linux {
    fn inspect(&self, desired: &Desired) -> Result<Inspection, FirewallError> {
        if desired.outside.is_empty() && !desired.closed.is_empty() {
            return Err(FirewallError::NoOutside);
        }
        if !nftables_works()? {
            return inspect_without_nftables(desired);
        }
        let (guard, docker) = thread::scope(|scope| {
            let guard = scope.spawn(read_guard);
            let docker = read_docker();
            (guard.join(), docker)
        });
        let (standing, dropped) = guard.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let wanted = Guard::desired(desired);
        let mut inspection = Inspection { dropped, ..Inspection::default() };
        if let Some(script) = Guard::script(standing.as_ref(), wanted.as_ref()) {
            let ports = wanted.iter().flat_map(Guard::closed).collect();
            let program = ["nft", "-f", "-"].map(str::to_owned).into();
            inspection.change.steps.push(Step { program, script, ports });
        }
        inspection
            .owned
            .extend(standing.iter().flat_map(|guard| guard.render().lines().map(str::to_owned).collect::<Vec<_>>()));
        match docker.and_then(|(nft, legacy)| {
            let docker = docker_of(&nft, legacy.as_ref())?;
            if let Some((flavour, saves)) = docker {
                inspect_docker(flavour, saves, iptables::script, desired, &mut inspection);
            }
            Ok(legacy)
        }) {
            Ok(legacy) => inspection.legacy = legacy,
            Err(error) => inspection.fault = Some(error),
        }
        Ok(inspection)
    }

    fn apply(&self, change: &Change) -> Result<(), FirewallError> {
        change.steps.iter().try_for_each(|step| run(&step.program, &step.script).map(drop))
    }

    fn lines_for(&self, port: Port, desired: &Desired, docker: &DockerRules) -> Vec<String> {
        let guard = match nftables_works().unwrap_or(true) {
            true => nftables::lines_for(port),
            false => iptables::guard::lines_for(port, desired),
        };
        guard.into_iter().chain(iptables::lines_for(port, desired, docker)).collect()
    }
}

/// Whether the kernel takes tables for both families at once: asked once, by a check that writes nothing.
pub(super) fn nftables_works() -> Result<bool, FirewallError> {
    static WORKS: OnceLock<bool> = OnceLock::new();
    if let Some(works) = WORKS.get() {
        return Ok(*works);
    }
    let check: Vec<String> = ["nft", "--check", "-f", "-"].map(str::to_owned).into();
    let works = match run(&check, "table inet deadlight\n") {
        Ok(_) => true,
        Err(FirewallError::Refused { message, .. }) if message.contains("not supported") => false,
        Err(error) => return Err(error),
    };
    Ok(*WORKS.get_or_init(|| works))
}

/// Without nf_tables there is only iptables-legacy: the guard is in its table `mangle`.
fn inspect_without_nftables(desired: &Desired) -> Result<Inspection, FirewallError> {
    let saves = read_saves(Flavour::Legacy)?;
    let mut inspection = Inspection::default();
    inspect_docker(Flavour::Legacy, &saves, iptables::script_with_guard, desired, &mut inspection);
    inspection.legacy = Some(saves);
    Ok(inspection)
}

fn restore(family: Family, flavour: Flavour, script: String, ports: Vec<Port>) -> Step {
    let program = [&iptables::program(family, flavour, "restore"), "--noflush", "--wait", "5"];
    Step { program: program.map(str::to_owned).into(), script, ports }
}

fn inspect_docker(
    flavour: Flavour,
    saves: &[Save; 2],
    script: fn(&Save, Family, &Desired) -> Option<iptables::Script>,
    desired: &Desired,
    inspection: &mut Inspection,
) {
    for (family, save) in Family::ALL.into_iter().zip(saves) {
        inspection.docker.dnat.extend(iptables::dnat_rules(save));
        inspection.docker.lines.extend(docker_lines(family, save));
        inspection.owned.extend(iptables::owned(save));
        if let Some((script, ports)) = script(save, family, desired) {
            inspection.change.steps.push(restore(family, flavour, script, ports));
        }
    }
}

fn read_guard() -> Result<(Option<Guard>, std::collections::BTreeMap<Port, u64>), FirewallError> {
    let program: Vec<String> = ["nft", "-y", "list", "table", "inet", "deadlight"].map(str::to_owned).into();
    match run(&program, "") {
        // A table of our name that is not ours in every line is written anew.
        Ok(text) => {
            let (guard, dropped) = Guard::parse(&text).unwrap_or_default();
            Ok((Some(guard), dropped))
        }
        Err(FirewallError::Refused { message, .. }) if message.contains("No such file or directory") => {
            Ok(Default::default())
        }
        Err(error) => Err(error),
    }
}

/// Both families in both flavours; iptables-legacy only where it is in use.
fn read_docker() -> Result<([Save; 2], Option<[Save; 2]>), FirewallError> {
    let nft = read_saves(Flavour::Nft)?;
    // Asking iptables-legacy loads its modules; the kernel lists its tables without that.
    let legacy = legacy_in_use().then(|| read_saves(Flavour::Legacy)).transpose()?;
    Ok((nft, legacy))
}

/// The flavour in which Docker's chains live, with what it has; none where Docker has no chains.
fn docker_of<'a>(
    nft: &'a [Save; 2],
    legacy: Option<&'a [Save; 2]>,
) -> Result<Option<(Flavour, &'a [Save; 2])>, FirewallError> {
    let has_docker = |saves: &&[Save; 2]| saves.iter().any(Save::has_docker);
    match (Some(nft).filter(has_docker), legacy.filter(has_docker)) {
        (Some(_), Some(_)) => Err(FirewallError::BothFlavours),
        (Some(nft), None) => Ok(Some((Flavour::Nft, nft))),
        (None, Some(legacy)) => Ok(Some((Flavour::Legacy, legacy))),
        (None, None) => Ok(None),
    }
}

pub(super) fn read_saves(flavour: Flavour) -> Result<[Save; 2], FirewallError> {
    let read = |family| {
        let program = iptables::program(family, flavour, "save");
        let text = run(std::slice::from_ref(&program), "")?;
        Save::parse(&text).map_err(|error| FirewallError::Unreadable { program, detail: error.to_string() })
    };
    let (v4, v6) = thread::scope(|scope| {
        let v6 = scope.spawn(|| read(Family::V6));
        (read(Family::V4), v6.join())
    });
    Ok([v4?, v6.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?])
}

/// The rules of iptables-legacy, for a cheap look at what nobody announces; none where there are no tables of it, or where
/// they cannot be read.
pub fn legacy_tables() -> Option<[Save; 2]> {
    legacy_in_use().then(|| read_saves(Flavour::Legacy).ok()).flatten()
}

/// Whether iptables-legacy has tables in this kernel: nobody is told when those change.
pub fn legacy_in_use() -> bool {
    ["/proc/self/net/ip_tables_names", "/proc/self/net/ip6_tables_names"].iter().any(|path| {
        match fs::read_to_string(path) {
            Ok(names) => !names.trim().is_empty(),
            // Who may not know has to ask, and is told.
            Err(error) => error.kind() != ErrorKind::NotFound,
        }
    })
}

fn docker_lines(family: Family, save: &Save) -> Vec<String> {
    ["raw", "nat", "filter"]
        .into_iter()
        .flat_map(|table| save.all_rules(table).map(move |rule| (table, rule)))
        .filter(|(_, rule)| !iptables::is_ours(rule))
        .map(|(table, rule)| format!("{} -t {table} {rule}", family.tool()))
        .collect()
}
