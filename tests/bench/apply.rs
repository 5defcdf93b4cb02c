//! `harden --once` beside the fix script that it replaces, and the agent at rest with all of it closed.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{self, Backend, ForwardPolicy, Layout},
    fix_script,
    lab::Lab,
    process::{run, run_with_input},
    programs::{agent, finish},
};
use nix::unistd::{SysconfVar, sysconf};

use crate::{RUNS, percentile, row};

const PUBLISHED: [u16; 3] = [1, 100, 1_000];
/// The lab itself publishes lower ports.
const FIRST: u16 = 20_000;
const REST: Duration = Duration::from_secs(60);

pub(crate) fn measure() -> Result<()> {
    for backend in [Backend::Nft, Backend::Legacy] {
        for count in PUBLISHED {
            let site = Site::new(backend, count)?;
            let [ours, script] = site.compare(|work| {
                let started = Instant::now();
                work()?;
                Ok(started.elapsed())
            })?;
            let published = format!("{count} more published than in the lab, {backend}");
            row(&format!("harden, {published}"), median(ours), Some(("fix script", median(script))));
            if backend == Backend::Legacy {
                let [ours, script] = site.compare(|work| held(&site.lock(), work))?;
                ensure!(!mean(&ours).is_zero() && !mean(&script).is_zero(), "the lock was never seen held");
                row(&format!("xtables lock held, {published}"), mean(&ours), Some(("fix script", mean(&script))));
            }
        }
    }
    Ok(())
}

/// What a daemon takes that has nothing to do but look.
pub(crate) fn measure_rest() -> Result<()> {
    for backend in [Backend::Nft, Backend::Legacy] {
        let site = Site::new(backend, PUBLISHED[PUBLISHED.len() - 1])?;
        site.harden()?;
        let agent = site.deployment.start_agent(&site.lab.wire)?;
        let before = cpu(agent.pid().as_raw())?;
        thread::sleep(REST);
        let used = cpu(agent.pid().as_raw())? - before;
        let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?.trim();
        let closed = PUBLISHED[PUBLISHED.len() - 1];
        let share = used.as_secs_f64() / REST.as_secs_f64() * 100.0;
        println!(
            "| agent at rest for {REST:?}, {closed} closed ports, {backend} | {share:.2} % of a core with the programs \
             it runs, {memory} | | |"
        );
    }
    Ok(())
}

type Work<'a> = &'a dyn Fn() -> Result<()>;

/// A node with many published ports.
struct Site {
    lab: Lab,
    deployment: Deployment,
    /// The tables as Docker left them.
    pristine: String,
}

impl Site {
    fn new(backend: Backend, count: u16) -> Result<Self> {
        let lab = Lab::new(Layout::V28, backend, ForwardPolicy::Drop)?;
        docker_rules::publish(lab.node(), backend, FIRST..FIRST + count)?;
        let deployment = Deployment::new(&Settings::default())?;
        let pristine = run(&mut lab.node().command(backend.tool("iptables", "-save")))?;
        Ok(Self { lab, deployment, pristine })
    }

    /// Ours and the script's, in turns.
    fn compare(&self, measure: impl Fn(Work<'_>) -> Result<Duration>) -> Result<[Vec<Duration>; 2]> {
        let (mut ours, mut script) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            ours.push(measure(&|| self.harden())?);
            self.deployment.agent(&self.lab.wire, &["revert", "--all"])?.expect_code(0)?;
            script.push(measure(&|| fix_script::run_once(self.lab.backend, |tool| self.program(&tool)))?);
            run_with_input(&mut self.program(&self.lab.backend.tool("iptables", "-restore")), &self.pristine)?;
        }
        Ok([ours, script])
    }

    fn harden(&self) -> Result<()> {
        let mut command = agent(self.lab.node())?;
        command.args(["harden", "--allow", "80/tcp,443/tcp", "--once", "--config"]);
        command.arg(self.deployment.path("agent.toml")).env("XTABLES_LOCKFILE", self.lock());
        finish(&mut command)?.expect_code(0).map(drop)
    }

    fn program(&self, tool: &str) -> Command {
        let mut command = self.lab.node().command(tool);
        command.env("XTABLES_LOCKFILE", self.lock());
        command
    }

    fn lock(&self) -> PathBuf {
        self.deployment.path("xtables.lock")
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    percentile(&times, 50)
}

fn mean(times: &[Duration]) -> Duration {
    times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(u32::MAX)
}

/// For how long `lock` is held during `work`, as seen by looking all the time: a single figure may be wrong, their mean
/// is not. Looking takes a core, so nothing else is measured meanwhile.
fn held(lock: &Path, work: Work<'_>) -> Result<Duration> {
    fs::File::create(lock)?;
    let inode = format!(":{} ", fs::metadata(lock)?.ino());
    let (stop, inode) = (AtomicBool::new(false), &inode);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let (mut held, mut looked) = (Duration::ZERO, Instant::now());
            while !stop.load(Ordering::SeqCst) {
                let locks = fs::read_to_string("/proc/locks")?;
                let now = Instant::now();
                // Those who wait for it are lines with an arrow.
                let is_held = |line: &str| line.contains("FLOCK") && line.contains(inode) && !line.contains("->");
                if locks.lines().any(is_held) {
                    held += now - looked;
                }
                looked = now;
            }
            Ok::<_, std::io::Error>(held)
        });
        let worked = work();
        stop.store(true, Ordering::SeqCst);
        let held = watching.join().ok().context("the watcher panicked")??;
        worked?;
        Ok(held)
    })
}

/// User and system time of a process and of the children that it waited for.
fn cpu(pid: i32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
    let ticks: f64 = fields.split(' ').skip(11).take(4).map(|field| field.parse::<f64>().unwrap_or(0.0)).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
    Ok(Duration::from_secs_f64(ticks / f64::from(u32::try_from(per_second)?)))
}
