//! The demonstration of `docker/images/compose.demo.yml`, as docker/README.md prints it: the whole loop on one machine.

use std::{fs, path::PathBuf};

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer},
    image,
    lab::Family,
    programs::Ended,
    wait::wait_for,
};

use crate::{
    images::{self, AGENT, BUILDER, SCANNER},
    newcomer::printed_in,
    swarm::{PATIENCE, Swarm},
};

const PAGE: &str = include_str!("../../docker/README.md");
const FILES: [&str; 4] = ["compose.demo.yml", "demo/agent.toml", "demo/scanner.toml", "demo/token"];
const EXPORT: &str = "export DEADLIGHT_AGENT=IMAGE DEADLIGHT_SCANNER=IMAGE";
const UP: &str = "docker compose -f compose.demo.yml up";
const STOP: &str = "docker compose -f compose.demo.yml stop agent scanner";
const REVERT: &str = "docker compose -f compose.demo.yml run --rm --no-deps agent revert --all";
const DOWN: &str = "docker compose -f compose.demo.yml down -v";
/// The machine's addresses in the network that plays the outside.
const ADDRESSES: [&str; 2] = ["203.0.113.129", "2001:db8:dead::1"];
const STATS: u16 = 8080;
const SITE: u16 = 8081;
const AGENT_PORT: u16 = 7443;
const WEB: u16 = 7480;

pub(crate) fn as_printed(swarm: &Swarm) -> Result<()> {
    let demo = Demo::new(swarm)?;
    let told = demo.tell();
    // Its last lines take all of it away, where it comes to them.
    let removed = if told.is_err() { demo.remove() } else { Ok(()) };
    told.and(removed)
}

/// A directory of the fastest node with the files, and both images there.
struct Demo<'a> {
    swarm: &'a Swarm,
    directory: PathBuf,
}

impl<'a> Demo<'a> {
    fn new(swarm: &'a Swarm) -> Result<Self> {
        printed_in(PAGE, EXPORT)?;
        images::build(swarm)?;
        let directory = swarm.lab().shared().join("compose");
        for file in FILES {
            let to = directory.join(file);
            fs::create_dir_all(to.parent().unwrap_or(&directory))?;
            fs::copy(images::source(file), to)?;
        }
        Ok(Self { swarm, directory })
    }

    fn tell(&self) -> Result<()> {
        let up = format!("setsid {} >up.log 2>&1 & echo $! >/run/story-compose", printed_in(PAGE, UP)?);
        self.shell(&up)?;
        let log = || fs::read_to_string(self.directory.join("up.log"));
        // Seven containers start, most of them one after the other.
        let closed = wait_for("the proof", 2 * PATIENCE, || match log() {
            Ok(log) if log.contains("2 proven closed, 0 unproven, 0 still open") => Ok(log),
            other => Err(format!("{other:?}")),
        })?;
        for address in ADDRESSES {
            for what in ["OPEN     demo", "PROOF    demo"] {
                ensure!(closed.contains(&format!("{what} {address} {STATS}/tcp")), "{closed}");
            }
            ensure!(self.answers(address, SITE)?, "{address}: the site is closed too");
            ensure!(!self.answers(address, STATS)?, "{address}: it is not closed");
        }
        self.page()?;
        // Whoever is really outside reaches nothing of all this.
        for (family, port) in
            Family::BOTH.iter().flat_map(|family| [STATS, SITE, AGENT_PORT, WEB].map(|port| (family, port)))
        {
            let answer = tcp_answer(self.swarm.inet(), BUILDER.at(*family, port))?;
            ensure!(answer == Answer::Refused, "{family:?} {port}: {answer:?}");
        }

        self.shell(printed_in(PAGE, STOP)?)?;
        self.shell(printed_in(PAGE, REVERT)?)?;
        for address in ADDRESSES {
            ensure!(self.answers(address, STATS)?, "{address}: it is still closed");
        }
        self.shell(printed_in(PAGE, DOWN)?)?;
        let left = self.shell(
            "docker ps --all --quiet --filter label=com.docker.compose.project; docker volume ls --quiet --filter \
             label=com.docker.compose.project; \
             iptables-save | grep -i deadlight; ip6tables-save | grep -i deadlight; ip link | grep deadlight || :",
        )?;
        ensure!(left.is_empty(), "left behind: {left}");
        Ok(())
    }

    /// The page wants the password, at the address that is printed.
    fn page(&self) -> Result<()> {
        let token = fs::read_to_string(images::source("demo/token"))?;
        ensure!(
            PAGE.contains("http://127.0.0.1:7480") && PAGE.contains(token.trim()),
            "the README has no way to the page"
        );
        let ask = |more: &str| self.ask(&format!("busybox wget -q -O - {more} http://127.0.0.1:{WEB}/findings"));
        let page = ask(&format!("--header 'Authorization: Bearer {}'", token.trim()))?.expect_code(0)?.stdout;
        ensure!(page.contains(&format!("{STATS}/tcp")), "{page}");
        ensure!(ask("")?.expect_code(1)?.stderr.contains("401"), "everybody sees the page");
        Ok(())
    }

    /// Whether a neighbour of the scanner gets something from there.
    fn answers(&self, address: &str, port: u16) -> Result<bool> {
        let to =
            if address.contains(':') { format!("TCP6:[{address}]:{port}") } else { format!("TCP4:{address}:{port}") };
        let image = image::NAME;
        let ask = format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | docker run --rm --interactive --network deadlight-demo_outside {image} \
             socat -t 5 STDIO {to},connect-timeout=4"
        );
        Ok(self.ask(&ask)?.stdout.contains("HTTP/1."))
    }

    /// Whatever the story has left.
    fn remove(&self) -> Result<()> {
        self.ask(&format!("{STOP}; {REVERT}"))?;
        self.shell(&format!("{DOWN} --timeout 0")).map(drop)
    }

    fn shell(&self, line: &str) -> Result<String> {
        self.swarm.on(BUILDER, &self.line(line))
    }

    fn ask(&self, line: &str) -> Result<Ended> {
        self.swarm.lab().ask(BUILDER, &self.line(line))
    }

    fn line(&self, line: &str) -> String {
        let export = EXPORT.replacen("IMAGE", AGENT, 1).replacen("IMAGE", SCANNER, 1);
        format!("cd /lab/compose && {export} DEMO_WEB={} && {{ {line}; }}", image::NAME)
    }
}
