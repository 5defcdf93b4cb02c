//! What the facts mean, and what to do about them.

use deadlight_shared::doctor::Found;
use deadlight_shared::hint::causes;
use deadlight_shared::text::printable;
use deadlight_shared::wire::Mode;
use jiff::{SignedDuration, Timestamp};

use super::facts::{Door, Facts, Identity, Outside, StateDirectory};
use crate::config::OperatorFileError;
use crate::firewall::iptables::Flavour;
use crate::firewall::{FirewallError, Inspection, Survey, Tables};
use crate::identity::IdentityError;
use crate::inventory::docker::DockerError;
use crate::inventory::{Engine, Membership};
use crate::node::NodeError;

/// A certificate that ends so soon should have been renewed.
const SOON: SignedDuration = SignedDuration::from_hours(48);
/// Longest text of somebody else's that is shown.
const SHOWN: usize = 300;

/// Everything that there is to say, in the order in which it is shown.
pub(super) fn judge(facts: &Facts) -> Vec<Found> {
    let mut found = vec![rights(facts.has_net_admin), listeners(&facts.listeners)];
    if let Some(survey) = &facts.firewall {
        found.extend(programs(survey));
        found.push(nf_tables(&survey.nf_tables));
        found.extend(tables(survey));
    }
    found.extend(docker(&facts.docker, facts.has_ipvs, facts.firewall.as_ref()));
    found.extend(outside(&facts.outside));
    found.push(clock(facts));
    found.extend(identity(&facts.identity, facts.now));
    found.push(operator(&facts.operator));
    found.push(state(&facts.state));
    found.extend(facts.rules.as_ref().and_then(|rules| in_force(rules, facts.mode)));
    let remedy = "deadlight-agent --print-config explains each key; then: systemctl restart deadlight-agent";
    found.extend(facts.concerns.iter().map(|concern| Found::wrong("agent", printable(concern, SHOWN), remedy)));
    found.push(door(facts.door));
    found
}

fn rights(has_net_admin: bool) -> Found {
    match has_net_admin {
        true => Found::well("rights", "rules can be read and written"),
        false => Found::wrong(
            "rights",
            "without CAP_NET_ADMIN rules can be neither read nor written, and are not looked at here",
            "sudo deadlight-agent doctor; the agent itself: docker/systemd/deadlight-agent.service",
        ),
    }
}

fn listeners(listeners: &Result<(usize, usize), NodeError>) -> Found {
    match listeners {
        Ok((all, 0)) => Found::well("listeners", format!("{all} sockets listen, and it can be seen who holds them")),
        Ok((all, hidden)) => Found::doubt(
            "listeners",
            format!(
                "{all} sockets listen, and of {hidden} this container cannot see who holds them: of their ports it closes \
                 only what Docker publishes"
            ),
            "with --host: the node's /proc in DIRECTORY/proc, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, and no AppArmor; or the units of docker/systemd",
        ),
        Err(error) => wrong("listeners", error),
    }
}

/// One line where all are there.
fn programs(survey: &Survey) -> Vec<Found> {
    let missing = survey.programs.iter().filter_map(|(_, version)| version.as_ref().err());
    let missing: Vec<_> = missing.map(|error| Found::wrong("programs", causes(error), error.remedy())).collect();
    if !missing.is_empty() {
        return missing;
    }
    let versions: Vec<_> = survey.programs.iter().filter_map(|(_, version)| version.as_deref().ok()).collect();
    vec![Found::well("programs", printable(&versions.join(", "), SHOWN))]
}

fn nf_tables(works: &Result<bool, FirewallError>) -> Found {
    match works {
        Ok(true) => Found::well("guard", "the kernel takes it as a table of nftables"),
        Ok(false) => Found::doubt(
            "guard",
            "this kernel has no nf_tables for both families at once: the guard is in iptables' mangle, which is dearer",
            "a kernel of Linux 5.9 or later with nf_tables",
        ),
        Err(error) => Found::wrong("guard", causes(error), error.remedy()),
    }
}

fn tables(survey: &Survey) -> Vec<Found> {
    let tables = match &survey.tables {
        Ok(tables) => tables,
        Err(error) => return vec![Found::wrong("docker's rules", causes(error), error.remedy())],
    };
    let mut found = vec![flavour(tables, survey.default)];
    if !tables.docker.is_empty() {
        found.push(Found::well(
            "ipv6",
            match tables.has_v6 {
                true => "Docker has rules for it, too",
                false => "Docker has no rules for it; what its proxies serve by it, the guard shuts all the same",
            },
        ));
    }
    found.extend(docker_user(&tables.docker_user));
    found
}

/// Where Docker's rules are, and whether they will be there.
fn flavour(tables: &Tables, default: Option<Flavour>) -> Found {
    let subject = "docker's rules";
    let also = match (&tables.docker[..], tables.has_legacy) {
        ([Flavour::Nft], true) => "; iptables-legacy has tables of somebody else's besides",
        _ => "",
    };
    match (&tables.docker[..], default) {
        ([], _) => Found::well(subject, "there are none: nothing is published, or Docker has not started"),
        ([in_use], Some(default)) if *in_use != default => Found::doubt(
            subject,
            format!(
                "they are in iptables-{}, and `iptables` is iptables-{}: dockerd may write both",
                word(*in_use),
                word(default)
            ),
            format!("update-alternatives --set iptables /usr/sbin/iptables-{}; the same for ip6tables", word(*in_use)),
        ),
        ([in_use], _) => Found::well(subject, format!("they are in iptables-{}{also}", word(*in_use))),
        (_, _) => Found::wrong(subject, FirewallError::BothFlavours, FirewallError::BothFlavours.remedy()),
    }
}

fn word(flavour: Flavour) -> &'static str {
    if flavour == Flavour::Nft { "nft" } else { "legacy" }
}

/// What others have put before Docker's rules.
fn docker_user(rules: &[String]) -> Vec<Found> {
    let accepts = |rule: &&String| rule.contains(" --dport ") && rule.ends_with(" -j ACCEPT");
    let by_script = rules.iter().filter(accepts).count();
    let by_ufw = rules.iter().filter(|rule| rule.contains("ufw-")).count();
    let note = |count: usize, whose: &str, besides: &str| {
        let text = format!(
            "{count} rules of {whose} stand; the guard goes before them, and none of them opens what it shuts{besides}"
        );
        (count > 0).then(|| Found::well("DOCKER-USER", text))
    };
    let script = note(by_script, "the known fix script", "");
    let ufw = note(by_ufw, "ufw-docker", "; what they drop stays dropped, whatever is allowed here");
    [script, ufw].into_iter().flatten().collect()
}

fn docker(docker: &Result<Engine, DockerError>, has_ipvs: bool, survey: Option<&Survey>) -> Vec<Found> {
    let engine = match docker {
        Ok(engine) => engine,
        Err(error) => {
            let remedy = "systemctl status docker; as root or with --helpers; docker_socket = … names its socket";
            let text = format!("{error}; ports are closed all the same, and causes read unknown");
            return vec![Found::wrong("docker", printable(&text, SHOWN), remedy)];
        }
    };
    let version = engine.version.as_deref().unwrap_or("which says no version");
    let part = match engine.membership {
        Membership::None => return vec![Found::well("docker", format!("engine {version}, in no swarm"))],
        Membership::Worker => "worker",
        Membership::Manager => "manager",
    };
    let mesh = match (survey.and_then(|survey| survey.tables.as_ref().ok()), has_ipvs) {
        (_, false) => {
            Found::doubt("mesh", "the kernel has no IPVS loaded: the routing mesh reaches no task", "modprobe ip_vs")
        }
        (Some(tables), true) if !tables.has_mesh => Found::doubt(
            "mesh",
            "Docker has no chain DOCKER-INGRESS: nothing goes through the routing mesh here",
            "docker network inspect ingress; systemctl restart docker",
        ),
        (_, true) => Found::well("mesh", "IPVS is there"),
    };
    vec![Found::well("docker", format!("engine {version}, {part} of a swarm")), mesh]
}

fn outside(Outside { names, rp_filter }: &Outside) -> Vec<Found> {
    let names = match names {
        Ok(names) if names.is_empty() => {
            let error = FirewallError::NoOutside;
            return vec![Found::wrong("outside", &error, error.remedy())];
        }
        Ok(names) => names,
        Err(error) => return vec![wrong("outside", error)],
    };
    let listed: Vec<_> = names.iter().map(String::as_str).collect();
    let mut found = vec![Found::well("outside", listed.join(", "))];
    let strict: Vec<_> = rp_filter.iter().filter(|(_, value)| **value == 1).map(|(name, _)| name.as_str()).collect();
    found.push(match (strict.first(), names.len()) {
        (Some(first), 2..) => Found::doubt(
            "rp_filter",
            format!(
                "strict on {}: what comes by one interface and is answered by another is dropped",
                strict.join(", ")
            ),
            format!("sysctl -w net.ipv4.conf.{first}.rp_filter=2, and the same for net.ipv4.conf.all"),
        ),
        _ => Found::well("rp_filter", "it stands in nobody's way"),
    });
    found
}

fn clock(facts: &Facts) -> Found {
    let remedy = "timedatectl set-ntp true";
    let began = facts.identity.as_ref().ok().map(|identity| identity.validity.from);
    match (began, facts.is_synchronised) {
        (Some(began), _) if facts.now < began => {
            let text = format!("it says {:.0}, and our certificate was made for {began:.0} and later", facts.now);
            Found::wrong("clock", text, remedy)
        }
        (_, Some(true)) => Found::well("clock", "it is kept right"),
        (_, Some(false)) => Found::doubt("clock", "nothing keeps it right: certificates and orders end by it", remedy),
        (_, None) => Found::doubt("clock", "nobody says whether it is kept right", "timedatectl, or chronyc tracking"),
    }
}

fn identity(identity: &Result<Identity, IdentityError>, now: Timestamp) -> Vec<Found> {
    let (subject, renewal) = ("certificate", "deadlight-scanner run renews it within 30 days; after that: enroll");
    let Identity { validity, generation } = match identity {
        Ok(identity) => identity,
        Err(error @ IdentityError::None) => {
            let text = "none: no scanner can be answered; `harden` needs none";
            return vec![Found::doubt(subject, text, error.remedy())];
        }
        Err(error) => return vec![Found::wrong(subject, printable(&causes(error), SHOWN), error.remedy())],
    };
    let to = validity.to;
    let certificate = match to.duration_since(now) {
        left if left.is_negative() => Found::wrong(subject, format!("ended on {to:.0}"), renewal),
        left if left < SOON => {
            let remedy = "deadlight-scanner run renews it; its log says why not";
            Found::doubt(subject, format!("ends on {to:.0}: it should have been renewed"), remedy)
        }
        _ => Found::well(subject, format!("until {to:.0}")),
    };
    let trust = match generation {
        0 => "the CA of our files; no scanner has told of another yet".to_owned(),
        generation => format!("as a scanner has told, generation {generation}"),
    };
    vec![certificate, Found::well("trust", trust)]
}

fn operator(operator: &Result<bool, OperatorFileError>) -> Found {
    let subject = "operator's key";
    match operator {
        Ok(true) => Found::well(subject, "scanners open only what it has signed"),
        Ok(false) => Found::well(subject, "none: scanners open what their allowlists name"),
        Err(error) => Found::wrong(
            subject,
            format!("{}: allowlists open nothing meanwhile", printable(&causes(error), SHOWN)),
            "copy operator.pub, which `deadlight-scanner pki init --operator-key` wrote beside the CA",
        ),
    }
}

fn state(StateDirectory { path, is_there, is_writable, closed }: &StateDirectory) -> Found {
    let path = path.display();
    match (closed, is_writable, is_there) {
        (Err(error), ..) => wrong("state", error),
        (Ok(_), false, _) => Found::wrong(
            "state",
            format!("{path} cannot be written: what is closed is forgotten at the next start"),
            "run as root, or as the service's user; make room, or name another state_dir",
        ),
        (Ok(_), true, false) => Found::well("state", format!("{path} is not there yet and can be made")),
        (Ok(closed), true, true) => Found::well("state", format!("{path}: {closed} closed ports")),
    }
}

fn in_force(rules: &Result<Inspection, NodeError>, mode: Mode) -> Option<Found> {
    let subject = "rules";
    let inspection = match rules {
        Ok(Inspection { fault: None, .. }) => rules.as_ref().ok()?,
        // Said of Docker's rules.
        Ok(Inspection { fault: Some(FirewallError::BothFlavours), .. }) => return None,
        Ok(Inspection { fault: Some(error), .. }) => {
            return Some(Found::wrong(subject, printable(&causes(error), SHOWN), error.remedy()));
        }
        Err(error) => return Some(wrong(subject, error)),
    };
    Some(match (mode, inspection.change.is_empty()) {
        (Mode::Observe, _) => {
            Found::doubt(subject, "it observes: it closes nothing", "mode = \"enforce\" in the configuration")
        }
        (Mode::Enforce, true) => {
            Found::well(subject, format!("in force: {} lines of ours stand", inspection.owned.len()))
        }
        (Mode::Enforce, false) => Found::wrong(
            subject,
            "the kernel does not hold the rules that it should",
            "deadlight-agent plan shows them; a running agent writes them: systemctl status deadlight-agent",
        ),
    })
}

fn door(door: Door) -> Found {
    match door {
        Door::None => Found::well("door", "none: the agent calls its scanners and does not listen"),
        Door::Networks(count) => Found::well("door", format!("{count} networks alone reach the agent's port")),
        Door::Everybody => Found::doubt(
            "door",
            "everybody reaches the agent's port, and its certificate decides alone",
            "scanners = [their addresses] in the configuration",
        ),
    }
}

fn wrong(subject: &str, error: &NodeError) -> Found {
    Found::wrong(subject, printable(&causes(error), SHOWN), error.remedy().unwrap_or("deadlight-agent status"))
}
