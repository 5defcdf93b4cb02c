//! The scanner's container on a machine of its own, by the lines of docker/README.md: on this machine's engine, in
//! namespaces and without the lab.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use deadlight_tests::{
    docker_rules::{Backend::Nft, ForwardPolicy},
    dockerd::Dockerd,
    lab::{Family, Wire},
    process::run,
    programs::finish,
    scratch,
    server::Server,
    wait::wait_for,
};

use crate::images;

const PAGE: &str = include_str!("../../docker/README.md");
const BEFORE: &str = "On a machine outside, once the CA and then the scanner:\n\n";
const CONFIG: &str = "[store] url = \"sqlite:/var/lib/deadlight-scanner/deadlight.db\"` and `[pki] directory = \
                      \"/var/lib/deadlight-scanner/pki\"`";
const COMMAND_LINE: &str = "exec deadlight-scanner /usr/bin/deadlight-scanner";
const OPEN: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn as_printed() -> Result<()> {
    let wire = Wire::new()?;
    let dockerd = Dockerd::start(&wire, Nft, ForwardPolicy::Drop)?;
    let directory = scratch::directory()?;
    images::contexts(directory.path())?;
    let image = images::SCANNER;
    run(dockerd.docker().args(["build", "--quiet", "--tag", image]).arg(directory.path().join("images/scanner")))?;

    // Somebody's machine, and what stands open there.
    let target = Family::V4.scanner();
    let _open = Server::tcp(&wire.inet, (target, OPEN).into())?;
    ensure!(PAGE.contains(CONFIG), "the page has another configuration");
    let config = format!(
        "[vantage]\nid = \"office-a\"\n[sweep]\ntcp = \"8000-8099\"\nudp = \"\"\n\
         [[node]]\nname = \"n1\"\naddresses = [\"{target}\"]\n\
         [pki]\ndirectory = \"/var/lib/deadlight-scanner/pki\"\n\
         [store]\nurl = \"sqlite:/var/lib/deadlight-scanner/deadlight.db\"\n"
    );
    fs::write(directory.path().join("scanner.toml"), config)?;

    let (_, rest) = PAGE.split_once(BEFORE).context("the page has no such lines")?;
    let lines: String = rest.lines().take_while(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect();
    let lines = lines.replace("IMAGE", image).replace("NAME", "office-a");
    let shell = |line: &str| {
        let mut command = Command::new("sh");
        command.args(["-e", "-c", line]).current_dir(directory.path()).env("DOCKER_CONFIG", directory.path());
        finish(command.env("DOCKER_HOST", format!("unix://{}", dockerd.socket().display())))
    };
    shell(&lines)?.expect_code(0)?;
    ensure!(PAGE.contains(COMMAND_LINE), "the page has another command line");
    wait_for("the open port to be found", PATIENCE, || match shell(&format!("docker {COMMAND_LINE} findings")) {
        Ok(ended) if ended.stdout.contains(&format!("{OPEN}/tcp")) => Ok(()),
        other => Err(format!("{other:?}\n{:?}", shell("docker logs deadlight-scanner"))),
    })?;
    // By packets of its own, as a user who is not root.
    shell(&format!("docker {COMMAND_LINE} scan {target} --ports {OPEN} --method syn"))?.expect_code(1)?;
    shell("docker rm --force deadlight-scanner")?.expect_code(0).map(drop)
}
