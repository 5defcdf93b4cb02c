//! A scanner that stays: quick sweeps, another configuration, a sweep that somebody wants.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::hook::Hook;
use crate::program::{Deployment, Ended, is_run_alone, program};

const LONG: Duration = Duration::from_secs(60);

/// A scanner that runs, and what it says.
struct Daemon {
    child: Child,
    said: std::path::PathBuf,
}

impl Daemon {
    fn start(deployment: &Deployment) -> Self {
        let said = deployment.path("said");
        let out = File::create(&said).unwrap();
        let mut command = program();
        command.arg("run").arg("--config").arg(deployment.path("scanner.toml"));
        let child = command.stdout(out.try_clone().unwrap()).stderr(out).stdin(Stdio::null()).spawn().unwrap();
        Self { child, said }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    #[track_caller]
    fn says(&self, wanted: &str) {
        wait(|| self.said().contains(wanted), || format!("no {wanted:?} in {}", self.said()));
    }

    fn hang_up(&self) {
        self.signal(Signal::SIGHUP);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap();
    }
}

#[track_caller]
fn wait(is: impl Fn() -> bool, said: impl Fn() -> String) {
    let end = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < end, "{}", said());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Two ports that nobody listens on yet.
fn ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn configure(deployment: &Deployment, ports: &[u16], quick: &str, more: &str) {
    let path = deployment.configure(ports, "");
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.replace("[sweep]\n", &format!("[sweep]\nevery = \"24h\"\nquick = \"{quick}\"\n"));
    deployment.write(&format!("{text}{more}"));
}

#[test]
fn a_quick_sweep_sees_what_opens_again_and_what_is_gone() {
    if is_run_alone("schedule::a_quick_sweep_sees_what_opens_again_and_what_is_gone") {
        return;
    }
    let hook = Hook::start(|_| "200 OK".to_owned());
    let deployment = Deployment::new(&[]);
    let [port, _] = ports();
    let sink = format!("[[alert]]\nkind = \"webhook\"\nurl = \"http://{}/\"\n", hook.address);
    configure(&deployment, &[port], "1s", &sink);
    let open = TcpListener::bind(("127.0.0.1", port)).unwrap();
    deployment.run(&["run", "--once"]).expect(1, &[]);
    drop(open);
    deployment.run(&["run", "--once"]).expect(0, &[]);

    let daemon = Daemon::start(&deployment);
    daemon.says("RESULT");
    let before = daemon.said();
    let open = TcpListener::bind(("127.0.0.1", port)).unwrap();
    daemon.says("reopened");
    wait(|| hook.alerts().len() == 3, || format!("{:?}", hook.alerts()));
    assert_eq!(hook.alerts(), ["1 exposed", "2 resolved", "3 exposed"]);
    drop(open);
    daemon.says("is closed: ");
    assert_eq!(before.matches("SWEEP").count(), 1, "{before}");
    let status = deployment.run(&["status"]).expect(0, &[]);
    assert!(status.stdout.contains("Nothing unexpected is open."), "{status:?}");
}

#[test]
fn another_configuration_is_taken_over_and_one_with_errors_is_not() {
    if is_run_alone("schedule::another_configuration_is_taken_over_and_one_with_errors_is_not") {
        return;
    }
    let deployment = Deployment::new(&[]);
    let [first, second] = ports();
    configure(&deployment, &[first], "24h", "");
    let daemon = Daemon::start(&deployment);
    daemon.says("RESULT");
    let _open = TcpListener::bind(("127.0.0.1", second)).unwrap();

    configure(&deployment, &[second], "0s", "");
    daemon.hang_up();
    daemon.says("failed to read the configuration again: [sweep] quick = 0s: must be between 1s and 30d");
    wait(|| daemon.said().matches("RESULT").count() == 2, || daemon.said());
    assert!(!daemon.said().contains("OPEN"), "the old one is in force: {}", daemon.said());

    configure(&deployment, &[second], "24h", "[store]\nurl = \"sqlite:other.db\"\n");
    daemon.hang_up();
    daemon.says("[store] url is not what it was, and is settled when a scanner starts; nothing is taken over");
    wait(|| daemon.said().matches("RESULT").count() == 3, || daemon.said());
    assert!(!daemon.said().contains("OPEN"), "{}", daemon.said());

    configure(&deployment, &[second], "24h", "");
    daemon.hang_up();
    daemon.says("the configuration is read again");
    daemon.says(&format!("{second}/tcp"));
}

#[test]
fn a_sweep_can_be_had_now_and_only_where_a_scanner_runs() {
    if is_run_alone("schedule::a_sweep_can_be_had_now_and_only_where_a_scanner_runs") {
        return;
    }
    let deployment = Deployment::new(&[]);
    let [port, _] = ports();
    configure(&deployment, &[port], "24h", "");
    deployment.run(&["sweep", "now"]).expect(2, &["there is no database"]);
    let daemon = Daemon::start(&deployment);
    daemon.says("RESULT");
    let ended: Ended = deployment.run(&["sweep", "now"]).expect(0, &[]);
    assert!(ended.stdout.contains("has begun"), "{ended:?}");
    wait(|| daemon.said().matches("RESULT").count() == 2, || daemon.said());
    drop(daemon);
    let hint = "hint: start one: deadlight-scanner run";
    deployment.run(&["sweep", "now", "--wait", "1"]).expect(2, &["no scanner of office-a has begun", hint]);
    deployment.run(&["run", "--once"]).expect(0, &[]);
}

#[test]
fn a_monitor_that_never_answers_keeps_no_sweep_waiting() {
    if is_run_alone("schedule::a_monitor_that_never_answers_keeps_no_sweep_waiting") {
        return;
    }
    let monitor = TcpListener::bind("127.0.0.1:0").unwrap();
    let deployment = Deployment::new(&[]);
    let [port, _] = ports();
    let heartbeat = format!("[heartbeat]\nurl = \"http://{}/\"\n", monitor.local_addr().unwrap());
    configure(&deployment, &[port], "24h", &heartbeat);
    let text = std::fs::read_to_string(deployment.path("scanner.toml")).unwrap();
    deployment.write(&text.replace("every = \"24h\"", "every = \"10s\""));
    let daemon = Daemon::start(&deployment);
    daemon.says("[heartbeat] did not arrive");
    wait(|| daemon.said().matches("SWEEP").count() >= 3, || daemon.said());
}

#[test]
fn places_that_are_taken_away_keep_no_sign_of_life_back() {
    if is_run_alone("schedule::places_that_are_taken_away_keep_no_sign_of_life_back") {
        return;
    }
    let monitor = Hook::start(|_| "200 OK".to_owned());
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let deployment = Deployment::new(&[]);
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = [open.local_addr().unwrap().port()];
    let heartbeat = format!("[heartbeat]\nurl = \"http://{}/\"\n", monitor.address);
    let sink = format!("[[alert]]\nkind = \"webhook\"\nurl = \"http://{dead}/\"\n");
    configure(&deployment, &ports, "24h", &format!("{heartbeat}{sink}"));
    let daemon = Daemon::start(&deployment);
    daemon.says("alerts wait");
    assert!(monitor.heard().is_empty(), "not everybody is told");
    configure(&deployment, &ports, "24h", &heartbeat);
    daemon.hang_up();
    wait(|| !monitor.heard().is_empty(), || daemon.said());
}
