//! Runs the firewall programs: no shell, scripts on standard input.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use deadlight_shared::Port;
use deadlight_shared::text::printable;
use rustix::process::{Pid, Signal, kill_process};

/// Longer than the 5 s for which a restore waits for the xtables lock. `iptables-nft-save` starts
/// over while others write, and can starve.
const LIMIT: Duration = Duration::from_secs(10);

/// Why the firewall could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The program is not there or cannot be started.
    #[error("failed to run {program}")]
    Run {
        /// Program name.
        program: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The program said no.
    #[error("{program} failed: {message}")]
    Refused {
        /// Program name.
        program: String,
        /// Its first lines on standard error.
        message: String,
    },
    /// The program did not end in time and was killed. Each script is one transaction: it was
    /// carried out whole or not at all.
    #[error("{program} took longer than {} s and was stopped", LIMIT.as_secs())]
    Slow {
        /// Program name.
        program: String,
    },
    /// Another program holds the xtables lock.
    #[error("another program holds the xtables lock")]
    Locked,
    /// The output cannot be understood, so nothing can be said about the rules.
    #[error("cannot read back what {program} prints: {detail}")]
    Unreadable {
        /// Program name.
        program: String,
        /// The line or reason.
        detail: String,
    },
    /// Docker's chains live in both iptables flavours.
    #[error("Docker's chains are in iptables-nft and in iptables-legacy at once; cannot tell which one dockerd uses")]
    BothFlavours,
    /// No interface faces the outside.
    #[error("no interface has a default route, so the outside is unknown")]
    NoOutside,
    /// A script would shut a protected port. A bug in planning, stopped here.
    #[error("refused to write a rule against the protected port {0}")]
    Protected(Port),
    /// Written, but not there when read back.
    #[error("the rules were written but do not stand as written; still missing:\n{0}")]
    NotInForce(String),
}

impl FirewallError {
    /// Whether waiting may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Locked | Self::Slow { .. })
    }

    /// What an operator can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Run { .. } => "install the packages nftables and iptables, and run as root",
            Self::Refused { .. } => {
                "run as root; the guard needs nf_tables of Linux 5.9 or later, `nft list ruleset` shows whether it is there"
            }
            Self::Slow { .. } => "look for a program that rewrites the firewall all the time",
            Self::Locked => "wait, or find the holder with: fuser -v /run/xtables.lock",
            Self::Unreadable { .. } => "look at `iptables-save` and `nft list ruleset` for rules of another tool",
            Self::BothFlavours => {
                "remove the chains of the flavour that dockerd does not use (update-alternatives --display iptables), then restart docker"
            }
            Self::NoOutside => "name the interfaces in the configuration: outside = [\"eth0\"]",
            Self::Protected(_) => "report this as a bug",
            Self::NotInForce(_) => "look for another program that rewrites the rules",
        }
    }
}

/// The programs that were run last: when, and by which process id.
static OWN: Mutex<VecDeque<(Instant, u32)>> = Mutex::new(VecDeque::new());
/// More than one look at the kernel and the write after it need.
const REMEMBERED: usize = 64;
/// What a program wrote is announced by then; later its number may be another's.
const MOMENT: Duration = LIMIT.saturating_mul(3);

/// Whether `pid` is, or was a moment ago, a program that this agent ran: what it wrote is no news.
pub fn is_own_program(pid: u32) -> bool {
    let own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    own.iter().any(|(since, own)| *own == pid && since.elapsed() < MOMENT)
}

fn remember(pid: u32) {
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    own.push_back((Instant::now(), pid));
    let surplus = own.len().saturating_sub(REMEMBERED);
    own.drain(..surplus);
}

/// Runs `program` with `input` on its standard input and returns its standard output.
pub(super) fn run(program: &[String], input: &str) -> Result<String, FirewallError> {
    let name = program.first().cloned().unwrap_or_default();
    let failed = |source| FirewallError::Run { program: name.clone(), source };
    let path = std::env::var("PATH").unwrap_or_default();
    let child = Command::new(&name)
        .args(program.iter().skip(1))
        .env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"))
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    remember(child.id());
    let output = output_within(child, input.to_owned()).map_err(failed)?;
    let output = output.ok_or_else(|| FirewallError::Slow { program: name.clone() })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    match message.contains("xtables lock") {
        true => Err(FirewallError::Locked),
        false => Err(FirewallError::Refused { program: name, message: printable(message.trim(), 300) }),
    }
}

/// Feeds `child` and waits for its end; one that takes longer than [`LIMIT`] is killed.
fn output_within(child: Child, input: String) -> io::Result<Option<Output>> {
    let pid = Pid::from_child(&child);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(feed(child, &input)));
    match receiver.recv_timeout(LIMIT) {
        Ok(output) => output.map(Some),
        Err(_) => {
            kill_process(pid, Signal::KILL)?;
            Ok(None)
        }
    }
}

fn feed(mut child: Child, input: &str) -> io::Result<Output> {
    if let Some(mut stdin) = child.stdin.take() {
        // A program that refuses early closes its input; its exit status tells more than EPIPE.
        match stdin.write_all(input.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_its_input_and_gives_its_output() {
        assert_eq!(run(&["cat".to_owned()], "add table inet x\n").unwrap(), "add table inet x\n");
        assert!(!is_own_program(std::process::id()));
        let shell = run(&["sh".to_owned(), "-c".to_owned(), "echo $$".to_owned()], "").unwrap();
        assert!(is_own_program(shell.trim().parse().unwrap()));
        assert!(matches!(run(&["false".to_owned()], ""), Err(FirewallError::Refused { .. })));
        assert!(matches!(run(&["no-such-program".to_owned()], ""), Err(FirewallError::Run { .. })));
    }

    #[test]
    fn a_program_that_never_ends_is_given_up() {
        let error = run(&["sleep".to_owned(), "3600".to_owned()], "").unwrap_err();
        assert!(matches!(error, FirewallError::Slow { .. }) && error.is_temporary());
    }
}
