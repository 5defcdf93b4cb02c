//! The first process of the cell: prepares the mounts, starts dockerd, reaps until it ends.

use std::{
    ffi::OsString,
    fs::File,
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    process::{Child, Command, ExitCode, ExitStatus},
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::wait::{WaitStatus, wait},
};

use crate::{ipvs, seccomp};

const WITHOUT_IPVS: &str = "--without-ipvs";
/// All writers of iptables-legacy, also those outside the cell, must agree on one lock.
const XTABLES_LOCK: &str = "/run/xtables.lock";

/// Returns when dockerd has ended, with its exit status.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let mut program = arguments.next();
    let without_ipvs = program.as_ref().is_some_and(|word| word == WITHOUT_IPVS);
    if without_ipvs {
        program = arguments.next();
    }
    let mut command = Command::new(program.context("usage: deadlight-lab-dockerd [--without-ipvs] DOCKERD …")?);
    command.args(arguments);

    private_run().context("prepare /run")?;
    let dockerd = if without_ipvs { start_answered(command)? } else { command.spawn().context("start dockerd")? };
    wait_for(&dockerd)
}

/// An empty /run, but for the lock that the whole machine shares.
fn private_run() -> Result<()> {
    let lock = File::options().create(true).append(true).open(XTABLES_LOCK)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    for directory in ["/run/netns", "/run/lock"] {
        std::fs::create_dir(directory)?;
    }
    File::create(XTABLES_LOCK)?;
    let shared = format!("/proc/self/fd/{}", lock.as_raw_fd());
    mount(Some(shared.as_str()), XTABLES_LOCK, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// The filter belongs to the thread that installs it and to what that thread starts; the rest of this process stays
/// free to answer.
fn start_answered(mut command: Command) -> Result<Child> {
    let started = thread::spawn(move || -> Result<_> {
        let calls = seccomp::watch_netlink().context("install the seccomp filter")?;
        Ok((calls, command.spawn().context("start dockerd")?))
    });
    let (calls, dockerd) = started.join().map_err(|_| anyhow!("the starting thread panicked"))??;
    thread::spawn(move || {
        let mut memory = ipvs::Memory::default();
        while let Ok(call) = calls.next() {
            let verdict = call.message().map_or(ipvs::Verdict::Pass, |message| memory.judge(&message));
            if let Err(error) = calls.answer(&call, verdict) {
                eprintln!("deadlight-lab-dockerd: a call was not answered: {error}");
            }
        }
    });
    Ok(dockerd)
}

/// The first process of a pid namespace inherits all orphans.
fn wait_for(dockerd: &Child) -> Result<ExitCode> {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == dockerd.id().cast_signed() => {
                return Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == dockerd.id().cast_signed() => {
                return Err(anyhow!("dockerd: {}", ExitStatus::from_raw(signal as i32)));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for dockerd"),
        }
    }
}
