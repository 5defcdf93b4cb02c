//! A private key is in its file and in memory, and nowhere else: not in a log, an error, a report or a core dump.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};
use deadlight_tests::{
    deployment::{AGENT_PORT, Deployment, NODE, Settings, VANTAGE},
    docker_rules::{Backend, ForwardPolicy, Layout},
    hostile::request,
    lab::{Family::V4, Lab},
    order::PATH,
    programs::{self, Running, built},
    secret::{Secret, Seen},
    test_ca::{TestCa, Validity},
};

/// Everything, of every library.
pub(crate) const ALL: (&str, &str) = ("DEADLIGHT_LOG", "trace");
const KEYS: [&str; 3] = ["ca.key", "agent-n1.key", "scanner-office-a.key"];

#[test]
fn no_output_shows_a_key() -> Result<()> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    let deployment = Deployment::new(&Settings { sweep: "1-100,8080", ..Settings::default() })?;
    let secrets = KEYS.map(|key| Secret::read(&deployment.path(key))).into_iter().collect::<Result<Vec<_>>>()?;
    let mut seen = Seen::none_of(secrets);

    let mut command = programs::agent(lab.node())?;
    command.env(ALL.0, ALL.1);
    let agent = deployment.start_agent_by(command, &lab.wire)?;
    let scanner = |words: &[&str]| -> Result<Command> {
        let mut command = programs::scanner(lab.inet())?;
        command.env(ALL.0, ALL.1).env("RUST_BACKTRACE", "full").args(words);
        Ok(command)
    };
    let with_config = |words: &[&str], file: &str| -> Result<Command> {
        let mut command = scanner(words)?;
        command.arg("--config").arg(deployment.path(file));
        Ok(command)
    };
    seen.ended(with_config(&["run", "--once"], "scanner.toml")?, 0)?;
    seen.ended(with_config(&["check-config"], "scanner.toml")?, 0)?;
    for words in [["--print-config"], ["--help"]] {
        seen.ended(scanner(&words)?, 0)?;
    }
    for words in [["status"].as_slice(), &["rules"], &["explain", "8080/tcp"], &["check-config"]] {
        let ended = deployment.agent(&lab.wire, words)?.expect_code(0)?;
        seen.text(&format!("{ended:?}"))?;
    }

    // Whoever is refused at the door, at every step of it.
    let strangers = [None, Some(TestCa::foreign()?.issue("spiffe://deadlight/scanner/office-a", Validity::Current)?)];
    for stranger in strangers {
        ensure!(request(lab.inet(), V4.node(AGENT_PORT), stranger, "GET", "/v1/status", "").is_err(), "let in");
    }
    let scanner_id = deployment.identity(&format!("spiffe://deadlight/scanner/{VANTAGE}"), Validity::Current)?;
    let order = fs::read_to_string(deployment.path("scanner-office-a.key"))?;
    let refused = request(lab.inet(), V4.node(AGENT_PORT), Some(scanner_id), "PUT", PATH, &order)?;
    ensure!(refused.status == 422, "{refused:?}");
    seen.text(&refused.text)?;

    for (name, spoil) in SPOILED {
        let key = deployment.path("spoiled.key");
        spoil(&deployment, &key)?;
        for (program, config, own) in [
            ("deadlight-scanner", "scanner.toml", format!("scanner-{VANTAGE}.key")),
            ("deadlight-agent", "agent.toml", format!("agent-{NODE}.key")),
        ] {
            let text = fs::read_to_string(deployment.path(config))?;
            let spoiled = text.replace(&own, "spoiled.key");
            ensure!(spoiled != text, "{config} names no {own}");
            fs::write(deployment.path("spoiled.toml"), spoiled)?;
            for word in ["check-config", "run"] {
                let mut command = lab.node().command(built(program)?);
                command.env(ALL.0, ALL.1).arg(word).arg("--config").arg(deployment.path("spoiled.toml"));
                // A scanner sees that a pair does not match when it sets up TLS.
                let lenient = (program, name, word) == ("deadlight-scanner", "of somebody else", "check-config");
                seen.ended(command, if lenient { 0 } else { 2 })?;
            }
        }
    }

    // A key where any other file belongs.
    let key = deployment.path("ca.key");
    let file = key.display().to_string();
    for words in [
        ["check-config", "--config", &file].as_slice(),
        &["diff", &file, &file],
        &["scan", "198.51.100.11", "--ports", "80", "--allowlist", &file],
        &["scan", "198.51.100.11", "--ports", "80", "--payloads", &file],
        &["scan", "198.51.100.11", "--ports", "80", "--resume", &file],
    ] {
        seen.ended(scanner(words)?, 2)?;
    }
    let mut command = programs::agent(lab.node())?;
    command.args(["check-config", "--config", &file]);
    seen.ended(command, 2)?;

    let log = agent.log();
    ensure!(log.contains("DEBUG") && log.contains("request refused"), "the agent's log is not whole: {log}");
    seen.text(&log)?;
    ensure!(seen.outputs >= 30, "only {} outputs were looked through", seen.outputs);
    Ok(())
}

#[test]
fn a_process_with_a_key_leaves_no_core_and_lets_nobody_look() -> Result<()> {
    let lab = Lab::new(Layout::V26, Backend::Nft, ForwardPolicy::Drop)?;
    let deployment = Deployment::new(&Settings { sweep: "1-100", ..Settings::default() })?;
    let agent = deployment.start_agent(&lab.wire)?;
    sealed(&agent)?;

    // As somebody whose own processes may look at each other.
    let everyone = fs::Permissions::from_mode(0o755);
    fs::set_permissions(deployment.path(""), everyone)?;
    let mut command = lab.inet().command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    command.arg(built("deadlight-scanner")?).args(["scan", "198.51.100.250", "--ports", "1-2000", "--rate", "10"]);
    let mut scanner = Running::start(&mut command, "scanner", &deployment.path(""))?;
    let owner = |process: &Running| {
        let status = fs::metadata(format!("/proc/{}/environ", process.pid()));
        status.map(|status| std::os::unix::fs::MetadataExt::uid(&status)).unwrap_or(u32::MAX)
    };
    let is_scanner = |process: &Running| {
        fs::read_link(format!("/proc/{}/exe", process.pid())).is_ok_and(|exe| exe.ends_with("deadlight-scanner"))
    };
    let pid = scanner.pid();
    scanner.wait_ready(Duration::from_secs(10), || {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        core_limit(&limits).is_some_and(|limit| limit == ["0", "0"])
    })?;
    ensure!(is_scanner(&scanner), "not yet the scanner");
    ensure!(owner(&scanner) == 0, "its user may look into it");
    sealed(&scanner)
}

/// Its memory is its own.
pub(crate) fn sealed(process: &Running) -> Result<()> {
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid()))?;
    ensure!(core_limit(&limits).is_some_and(|limit| limit == ["0", "0"]), "{limits}");
    Ok(())
}

/// Soft and hard.
fn core_limit(limits: &str) -> Option<[&str; 2]> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size"))?;
    let mut words = line.split_whitespace();
    Some([words.next()?, words.next()?])
}

type Spoil = fn(&Deployment, &Path) -> Result<()>;

/// What can be wrong with a key file, each made of real keys.
const SPOILED: [(&str, Spoil); 5] = [
    ("of somebody else", |deployment, key| place(deployment, key, |ca| ca.to_owned())),
    ("readable by all", |deployment, key| {
        place(deployment, key, |ca| ca.to_owned())?;
        Ok(fs::set_permissions(key, fs::Permissions::from_mode(0o644))?)
    }),
    ("cut short", |deployment, key| place(deployment, key, |ca| ca[..ca.len() / 2].to_owned())),
    ("with a letter that base64 has not", |deployment, key| place(deployment, key, |ca| ca.replacen("MIG", "M~G", 1))),
    ("without its ends", |deployment, key| {
        place(deployment, key, |ca| ca.lines().filter(|line| !line.starts_with('-')).collect())
    }),
];

fn place(deployment: &Deployment, key: &Path, change: impl FnOnce(&str) -> String) -> Result<()> {
    let ca = fs::read_to_string(deployment.path("ca.key"))?;
    fs::write(key, change(&ca))?;
    Ok(fs::set_permissions(key, fs::Permissions::from_mode(0o600))?)
}
