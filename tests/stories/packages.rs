//! The Debian packages, in a clean Debian: installed, upgraded, removed, purged.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer},
    debian::{Debian, First},
    deployment::{AGENT_PORT, Deployment, NODE, Settings},
    docker_rules::{Backend::Nft, ForwardPolicy::Drop, Layout::V26},
    lab::{
        Family::{V4, V6},
        HOST, INGRESS, Lab, RUN,
    },
    netns::Netns,
    order, packages,
    syn_watch::SynWatch,
    wait::wait_for,
};

use crate::expect;

const AGENT: &str = "deadlight-agent.service";
const SOON: Duration = Duration::from_secs(30);

#[test]
fn they_come_and_go_bookworm() -> Result<()> {
    they_come_and_go("bookworm")
}

#[test]
fn they_come_and_go_trixie() -> Result<()> {
    they_come_and_go("trixie")
}

/// Both on one machine, without systemd at work, as where an image is made.
fn they_come_and_go(suite: &str) -> Result<()> {
    let network = Netns::new("clean")?;
    let debian = Debian::new(suite, &network, First::Sleep)?;
    let ours = || debian.sh("find / -xdev -name '*deadlight*' -printf '%M %u:%g %p\\n' | sort -k 3");
    ensure!(ours()?.is_empty(), "it is not clean: {}", ours()?);
    let [agent, scanner] = packages::current()?;
    debian.install(&[&agent, &scanner])?;

    let entries = ours()?;
    for entry in [
        "drwxr-x--- root:deadlight /etc/deadlight",
        "drwxr-x--- root:deadlight-scanner /etc/deadlight-scanner",
        "-rwxr-xr-x root:root /usr/bin/deadlight-agent",
        "-rwxr-xr-x root:root /usr/bin/deadlight-scanner",
        "-rw-r--r-- root:root /usr/lib/systemd/system/deadlight-restore.service",
        "-rw-r--r-- root:root /usr/lib/systemd/system/deadlight-docker.socket",
        "drwx------ deadlight:deadlight /var/lib/deadlight",
        "drwx------ deadlight-scanner:deadlight-scanner /var/lib/deadlight-scanner",
    ] {
        ensure!(entries.lines().any(|line| line == entry), "{entry}: {entries}");
    }
    let files =
        debian.sh("find /etc/deadlight/* /etc/deadlight-scanner/* /run/xtables.lock -printf '%M %u:%g %f\\n'")?;
    ensure!(
        files
            == "-rw-r--r-- root:root agent.toml\n-rw-r----- root:deadlight-scanner scanner.toml\n\
                -rw-r----- root:root xtables.lock\n",
        "{files}"
    );
    let packed = "dpkg --listfiles deadlight-agent deadlight-scanner | sort --unique";
    let writable = debian.sh(&format!("find $({packed}) -maxdepth 0 \\( -perm /022 -o ! -user root \\) ! -type l"))?;
    ensure!(writable.is_empty(), "others can write: {writable}");
    ensure!(debian.sh("find /etc/systemd -name '*deadlight*'")?.is_empty(), "something is enabled");

    for program in ["deadlight-agent", "deadlight-scanner"] {
        ensure!(debian.run(program, &["--version"])?.starts_with(program), "{program} does not say what it is");
        debian.sh(&format!("zcat /usr/share/man/man1/{program}.1.gz | grep '^.TH {program} 1'"))?;
        debian.sh(&format!("bash -c '. /usr/share/bash-completion/completions/{program}; complete -p {program}'"))?;
        debian.sh(&format!("test -s /usr/share/zsh/vendor-completions/_{program}"))?;
        debian.sh(&format!("test -s /usr/share/fish/vendor_completions.d/{program}.fish"))?;
    }
    debian.sh("cd /usr/share/man/man1; ls deadlight-agent-harden.1.gz deadlight-scanner-pki-init.1.gz")?;
    let units = format!("$({packed} | grep -E '/system/[^/]*\\.(service|socket)$')");
    let complaints = debian.sh(&format!("systemd-analyze verify --man=no {units} 2>&1"))?;
    ensure!(complaints.is_empty(), "{complaints}");

    debian.run("deadlight-agent", &["check-config"])?;
    let pki = "runuser -u deadlight-scanner -- deadlight-scanner pki";
    debian.sh(&format!(
        "for it in init 'issue-scanner office-a'; do {pki} $it --dir /var/lib/deadlight-scanner/pki; done"
    ))?;
    debian.run("deadlight-scanner", &["check-config", "--config", "/etc/deadlight-scanner/scanner.toml"])?;

    let said = debian.run("apt-get", &["purge", "--yes", "deadlight-agent", "deadlight-scanner"])?;
    ensure!(!said.contains("warning"), "{said}");
    let left = ours()?;
    ensure!(left == "drwx------ deadlight-scanner:deadlight-scanner /var/lib/deadlight-scanner\n", "{left}");
    ensure!(debian.sh("ls /var/lib/deadlight-scanner")? == "pki\n", "the CA is gone");
    debian.sh("getent passwd deadlight deadlight-scanner && test -z \"$(dpkg --audit)\"").map(drop)
}

#[test]
fn rules_stay_until_the_purge_bookworm() -> Result<()> {
    rules_stay_until_the_purge("bookworm")
}

#[test]
fn rules_stay_until_the_purge_trixie() -> Result<()> {
    rules_stay_until_the_purge("trixie")
}

fn rules_stay_until_the_purge(suite: &str) -> Result<()> {
    let lab = Lab::new(V26, Nft, Drop)?;
    let debian = Debian::new(suite, lab.node(), First::Sleep)?;
    let [agent, _] = packages::current()?;
    let rules = || rules(&debian);
    let before = rules()?;
    debian.install(&[&agent])?;
    debian.run("deadlight-agent", &["harden", "--allow", "80/tcp", "--once"])?;
    let hardened = rules()?;
    ensure!(hardened != before, "nothing was written: {before}");

    let said = debian.finish("dpkg", &["--remove", "deadlight-agent"])?.expect_code(0)?;
    ensure!(said.stderr.contains("stays closed until the next boot"), "{said:?}");
    debian.sh("! test -e /usr/bin/deadlight-agent")?;
    ensure!(rules()? == hardened, "the removal wrote rules");
    expect::closed(&lab.wire, &[(V4, INGRESS), (V6, INGRESS), (V4, RUN), (V6, RUN)])?;

    debian.install(&[&agent])?;
    let plan = debian.run("deadlight-agent", &["plan"])?;
    ensure!(plan.starts_with("nothing to do"), "the ledger is not taken up: {plan}");
    debian.sh("! test -e /var/lib/deadlight-revert")?;

    // A purge that cannot do all does nothing, and is done again.
    debian.run("dpkg", &["--remove", "deadlight-agent"])?;
    debian.sh("mv /usr/sbin/nft /usr/sbin/nft.away")?;
    let refused = debian.finish("dpkg", &["--purge", "deadlight-agent"])?.expect_code(1)?;
    ensure!(refused.stderr.contains("hint: apt-get install iptables nftables"), "{refused:?}");
    debian.sh("mv /usr/sbin/nft.away /usr/sbin/nft")?;
    ensure!(rules()? == hardened, "half of the rules are gone");
    debian.run("dpkg", &["--purge", "deadlight-agent"])?;
    ensure!(rules()? == before, "{}, not {before}", rules()?);
    expect::tcp(lab.inet(), V4.node(INGRESS), Answer::Data)?;
    debian.sh(
        "for it in /etc/deadlight /var/lib/deadlight /var/lib/deadlight-revert; do ! test -e $it || exit 1; done",
    )?;

    // Also where the ledger is in another place.
    debian.install(&[&agent])?;
    debian.sh("echo 'state_dir = \"/srv/deadlight\"' > /etc/deadlight/agent.toml")?;
    debian.run("deadlight-agent", &["harden", "--allow", "80/tcp", "--once"])?;
    ensure!(rules()? != before, "nothing was written");
    debian.run("dpkg", &["--purge", "deadlight-agent"])?;
    ensure!(rules()? == before, "{}, not {before}", rules()?);
    Ok(())
}

#[test]
fn an_upgrade_restarts_and_opens_nothing_bookworm() -> Result<()> {
    an_upgrade_restarts_and_opens_nothing("bookworm")
}

#[test]
fn an_upgrade_restarts_and_opens_nothing_trixie() -> Result<()> {
    an_upgrade_restarts_and_opens_nothing("trixie")
}

/// On a node that runs systemd and a real agent.
fn an_upgrade_restarts_and_opens_nothing(suite: &str) -> Result<()> {
    let lab = Lab::new(V26, Nft, Drop)?;
    let debian = Debian::new(suite, lab.node(), First::Systemd)?;
    let [agent, scanner] = packages::current()?;
    let older = packages::older(&agent, debian.outside())?;
    let rules = || rules(&debian);
    let before = rules()?;
    debian.sh("groupadd --system docker")?;
    debian.install(&[&older, &scanner])?;
    let running = || debian.run("systemctl", &["list-units", "--all", "--plain", "--no-legend", "deadlight-*"]);
    ensure!(running()?.is_empty(), "installing starts something: {}", running()?);
    ensure!(debian.sh("find /etc/systemd -name '*deadlight*'")?.is_empty(), "installing enables something");

    let deployment = Deployment::new(&Settings::default())?;
    enrol(&debian, &deployment)?;
    debian.sh(&format!(
        "systemctl enable --now deadlight-restore.service {AGENT} || {{ journalctl --no-pager --unit {AGENT}; exit 1; }}"
    ))?;
    listens(&debian, &lab)?;
    let closed = [(V4, "tcp", HOST), (V4, "tcp", INGRESS)];
    let watch = SynWatch::start(lab.inet(), V4.scanner(), V4.node(HOST))?;
    watch.see_open()?;
    order::enforce(&deployment, &lab.wire, 1, &closed)?;
    let mark = watch.so_far();
    let enforced = rules()?;
    let process = || debian.run("systemctl", &["show", "--value", "--property", "MainPID", AGENT]);
    let (old, config) = (process()?, debian.sh("cat /etc/deadlight/agent.toml")?);

    debian.install(&[&agent])?;
    listens(&debian, &lab)?;
    ensure!(process()? != old, "it was not restarted");
    ensure!(debian.sh("cat /etc/deadlight/agent.toml")? == config, "the administrator's file is gone");
    debian.sh("grep '^max_new_per_hour = 20' /etc/deadlight/agent.toml.dpkg-dist")?;
    ensure!(rules()? == enforced, "the upgrade wrote rules: {}, not {enforced}", rules()?);
    order::enforce(&deployment, &lab.wire, 2, &closed)?;

    debian.run("apt-get", &["remove", "--yes", "deadlight-agent"])?;
    debian.sh("! cat /proc/[0-9]*/comm | grep deadlight")?;
    ensure!(rules()? == enforced, "the removal wrote rules");
    expect::closed(&lab.wire, &[(V4, HOST), (V6, HOST), (V4, INGRESS)])?;

    // Enabled it was, and is.
    debian.install(&[&agent])?;
    listens(&debian, &lab)?;
    ensure!(rules()? == enforced, "the ledger is not taken up");
    watch.observe(20)?;
    let tried = watch.since(mark);
    ensure!(tried.answered == 0, "open for a while: {tried:?}");

    debian.run("apt-get", &["purge", "--yes", "deadlight-agent"])?;
    ensure!(rules()? == before, "{}, not {before}", rules()?);
    debian.sh("for it in /etc/deadlight /var/lib/deadlight /var/lib/deadlight-revert /run/deadlight/*; do \
         ! test -e $it || exit 1; done")?;
    let links = debian.sh("find /etc/systemd /var/lib/systemd -name '*deadlight-agent*'")?;
    ensure!(links.is_empty(), "{links}");
    ensure!(running()?.is_empty(), "{}", running()?);
    Ok(())
}

/// What an administrator does, who has the agent's files from the CA. The agent's port is closed to others: such a rule is in
/// the configuration, not in the ledger.
fn enrol(debian: &Debian, deployment: &Deployment) -> Result<()> {
    for (from, to) in [("ca.crt", "ca.crt"), ("agent-n1.crt", "agent.crt"), ("agent-n1.key", "agent.key")] {
        fs::copy(deployment.path(from), debian.packages().join(to))?;
        debian.sh(&format!("install -o deadlight -g deadlight -m 600 /packages/{to} /etc/deadlight/"))?;
    }
    let file = |name: &str| Path::new("/etc/deadlight").join(name);
    let [ca, certificate, key] = ["ca.crt", "agent.crt", "agent.key"].map(file);
    let tls = format!("[tls]\nca = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n");
    fs::write(
        debian.packages().join("agent.toml"),
        format!("node = {NODE:?}\nmode = \"enforce\"\nscanners = [\"{}\"]\n{tls}", V4.scanner()),
    )?;
    debian.sh("cat /packages/agent.toml > /etc/deadlight/agent.toml").map(drop)
}

fn listens(debian: &Debian, lab: &Lab) -> Result<()> {
    wait_for("the agent", SOON, || match tcp_answer(lab.inet(), V4.node(AGENT_PORT)) {
        Ok(Answer::OpenNoData | Answer::Data) => Ok(()),
        other => Err(format!("{other:?}\n{:?}", debian.finish("journalctl", &["--no-pager", "--unit", AGENT]))),
    })
}

/// All tables of the node, as the tools of its own release print them, without counters.
fn rules(debian: &Debian) -> Result<String> {
    debian.sh(
        "for it in iptables-save ip6tables-save; do $it | sed '/^#/d; s/ \\[.*//'; done; nft --stateless list ruleset",
    )
}
