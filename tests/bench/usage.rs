//! What processes take of the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeVal,
    },
    unistd::{Pid, SysconfVar, sysconf},
};

/// A process that runs.
#[derive(Debug)]
pub(crate) struct Process {
    directory: PathBuf,
}

impl Process {
    /// The one with this number.
    pub(crate) fn of(pid: i32) -> Self {
        Self { directory: Path::new("/proc").join(pid.to_string()) }
    }

    /// Processor time so far, in user and system.
    pub(crate) fn spent(&self) -> Result<Duration> {
        let stat = fs::read_to_string(self.directory.join("stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("stat")?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        let ticks: u32 = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
        let per_second = u32::try_from(sysconf(SysconfVar::CLK_TCK)?.context("ticks")?)?;
        Ok(Duration::from_secs(ticks.into()) / per_second)
    }

    /// The most memory that it has had; 0 when it is gone.
    pub(crate) fn peak_kib(&self) -> u64 {
        let text = fs::read_to_string(self.directory.join("status")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }
}

/// The scanner itself, where `pid` is what has started it.
pub(crate) fn scanner_of(pid: Pid) -> Result<Process> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
    if name.trim().starts_with("deadlight-scann") {
        return Ok(Process::of(pid.as_raw()));
    }
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let child = children.split_whitespace().next().with_context(|| format!("{} {pid} has no child", name.trim()))?;
    ensure!(Path::new("/proc").join(child).exists(), "{child} is gone");
    scanner_of(Pid::from_raw(child.parse()?))
}

/// Processor time so far of this process, or of its children that have ended.
pub(crate) fn spent_by(whom: UsageWho) -> Result<Duration> {
    let usage = getrusage(whom)?;
    let seconds = |time: TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs()) + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// A share of one core.
pub(crate) fn percent(spent: Duration, of: Duration) -> f64 {
    100.0 * spent.as_secs_f64() / of.as_secs_f64()
}
