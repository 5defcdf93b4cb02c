//! A real dockerd in swarm mode on the lab's node: the one in the node's /usr (see [`crate::engine`]).
//!
//! It lives in a cell (see `shim/`): namespaces of its own for processes and mounts, its data in a directory that goes
//! with it. On a kernel without IPVS a translation in the ingress sandbox stands in for the load balancer.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    cgroup,
    docker_rules::{Backend, ForwardPolicy},
    image,
    lab::{Family, Wire},
    netns::{Netns, command_in},
    process::run,
    programs::{Running, built},
    scratch,
    wait::wait_for,
};

/// The program that dockerd runs under.
const SHIM: &str = "deadlight-lab-dockerd";
const PATIENCE: Duration = Duration::from_secs(30);
/// Docker gives an overlay network named `ingress` this subnet.
const INGRESS_SUBNET: &str = "10.0.0.0/24";

/// A running engine; dropping it ends everything that it started.
#[derive(Debug)]
pub struct Dockerd<'a> {
    node: &'a Netns,
    backend: Backend,
    has_ipvs: bool,
    cgroup: String,
    directory: TempDir,
    cell: Option<Running>,
    published: BTreeMap<String, u16>,
}

impl<'a> Dockerd<'a> {
    /// Starts the engine, makes it a swarm of one, and loads the image that services use.
    ///
    /// With [`ForwardPolicy::Accept`] the node forwards already, as where sysctl.d says so.
    pub fn start(wire: &'a Wire, backend: Backend, forward: ForwardPolicy) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let node = &wire.node;
        if forward == ForwardPolicy::Accept {
            node.sysctl("net/ipv4/ip_forward", "1")?;
        }
        let directory = scratch::directory()?;
        let wrappers = directory.path().join("bin");
        fs::create_dir(&wrappers)?;
        let shim = built(SHIM)?;
        for name in ["iptables", "ip6tables"] {
            symlink(&shim, wrappers.join(name))?;
        }
        let mut dockerd = Self {
            node,
            backend,
            has_ipvs: has_ipvs(node)?,
            cgroup: format!("{}{}", scratch::prefix(), COUNTER.fetch_add(1, Ordering::Relaxed)),
            directory,
            cell: None,
            published: BTreeMap::new(),
        };
        dockerd.boot(&shim)?;
        let archive = image::archive(dockerd.directory.path())?;
        run(dockerd.docker().arg("import").arg(archive).arg(image::NAME))?;
        let address = Family::V4.node(0).ip().to_string();
        run(dockerd.docker().args(["swarm", "init", "--advertise-addr", &address]))?;
        Ok(dockerd)
    }

    /// The engine's API.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("d.sock")
    }

    /// The `docker` client, its arguments still to be added.
    pub fn docker(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_CONFIG", self.directory.path()).arg("--host");
        command.arg(format!("unix://{}", self.socket().display()));
        command
    }

    /// Creates a service of one web server, published in ingress mode; returns when it answers behind the mesh.
    pub fn create_service(&mut self, name: &str, port: u16) -> Result<()> {
        let (publish, listen) = (format!("{port}:{port}"), port.to_string());
        run(self
            .docker()
            .args(["service", "create", "--detach", "--no-resolve-image", "--name", name])
            .args(["--stop-signal", "SIGKILL", "--update-delay", "0s", "--restart-delay", "0s"])
            .args(["--publish", &publish, image::NAME, "httpd", "-f", "-h", "/www", "-p", &listen]))?;
        self.published.insert(name.to_owned(), port);
        self.settle(None)
    }

    /// `docker service update --force`: the task is replaced, and with it Docker's rules for the port.
    pub fn update_force(&mut self, name: &str) -> Result<()> {
        let old = self.task(name)?;
        run(self.docker().args(["service", "update", "--detach", "--force", name]))?;
        self.settle(old)
    }

    /// `docker service rm`; returns when the task is gone.
    pub fn remove_service(&mut self, name: &str) -> Result<()> {
        run(self.docker().args(["service", "rm", name]))?;
        self.published.remove(name);
        wait_for("the end of the service", PATIENCE, || match self.task(name) {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        })
    }

    /// `docker run -p PORT:80` of a web server.
    pub fn run_published(&self, name: &str, port: u16) -> Result<()> {
        let publish = format!("{port}:80");
        run(self
            .docker()
            .args(["run", "--detach", "--stop-signal", "SIGKILL", "--name", name, "--publish", &publish, image::NAME])
            .args(["httpd", "-f", "-h", "/www", "-p", "80"]))
        .map(drop)
    }

    /// Stops the engine as its init script would, rules and all.
    pub fn stop(&mut self) -> Result<()> {
        let Some(cell) = self.cell.take() else { return Ok(()) };
        let dockerd = child_of(child_of(cell.pid(), SHIM)?, "dockerd")?;
        kill(dockerd, Signal::SIGTERM)?;
        cell.wait(PATIENCE).map(drop)
    }

    /// Stops and starts it; returns when all services have their tasks again.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// The rest of [`Self::restart`]: with all data, and the engine that the node has now.
    pub fn start_again(&mut self) -> Result<()> {
        self.boot(&built(SHIM)?)?;
        self.settle(None)
    }

    fn boot(&mut self, shim: &Path) -> Result<()> {
        let directory = self.directory.path();
        let path = |name: &str| directory.join(name);
        fs::write(path("daemon.json"), "{}")?;
        let mut command = self.node.command("unshare");
        command
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .arg(shim)
            .args((!self.has_ipvs).then_some("--without-ipvs"))
            .arg("dockerd")
            .arg("--config-file")
            .arg(path("daemon.json"))
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent"])
            .arg(format!("/{}", self.cgroup))
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", path("bin").display()))
            .env("DEADLIGHT_LAB_BACKEND", self.backend.name());
        let cell = self.cell.insert(Running::start(&mut command, "dockerd", directory)?);
        let (socket, client) = (directory.join("d.sock"), directory.to_owned());
        cell.wait_ready(PATIENCE, || {
            let mut version = Command::new("docker");
            version.env("DOCKER_CONFIG", &client).arg("--host").arg(format!("unix://{}", socket.display()));
            socket.exists() && run(version.arg("version")).is_ok()
        })
    }

    /// Waits until each service has its task (not `old`) on the mesh, and leads the published ports there.
    fn settle(&self, old: Option<String>) -> Result<()> {
        let mut routes = Vec::new();
        for (name, port) in &self.published {
            let address = wait_for(&format!("the task of {name}"), PATIENCE, || {
                let task = self.task(name).map_err(|error| error.to_string())?;
                let task = task.filter(|task| Some(task) != old.as_ref()).ok_or("no new task yet")?;
                self.ingress_address(&task).map_err(|error| error.to_string())
            })?;
            routes.push((*port, address));
        }
        let sandbox = wait_for("the ingress sandbox", PATIENCE, || {
            let path = self.sandbox().map_err(|error| error.to_string())?;
            if path.exists() { Ok(path) } else { Err(format!("no {}", path.display())) }
        })?;
        if !self.has_ipvs {
            self.stand_in(&sandbox, &routes)?;
        }
        Ok(())
    }

    /// In place of IPVS: the sandbox passes each published port on to the task.
    fn stand_in(&self, sandbox: &Path, routes: &[(u16, IpAddr)]) -> Result<()> {
        let iptables = |words: &str| {
            let mut command = command_in(sandbox, self.backend.tool("iptables", ""));
            run(command.args(["--wait", "-t", "nat"]).args(words.split(' ')))
        };
        crate::netns::enter(sandbox, || Ok(fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
        iptables("-F PREROUTING")?;
        for (port, task) in routes {
            iptables(&format!("-A PREROUTING -i eth1 -p tcp --dport {port} -j DNAT --to-destination {task}:{port}"))?;
        }
        let masquerade = format!("POSTROUTING -d {INGRESS_SUBNET} -j MASQUERADE");
        if iptables(&format!("-C {masquerade}")).is_err() {
            iptables(&format!("-A {masquerade}"))?;
        }
        Ok(())
    }

    /// The container that runs a service.
    fn task(&self, service: &str) -> Result<Option<String>> {
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let listing = run(self.docker().args(["ps", "--quiet", "--filter", &filter]))?;
        Ok(listing.lines().next().map(str::to_owned))
    }

    fn ingress_address(&self, container: &str) -> Result<IpAddr> {
        let format = "{{.NetworkSettings.Networks.ingress.IPAddress}}";
        let text = run(self.docker().args(["inspect", "--format", format, container]))?;
        text.trim().parse().with_context(|| format!("the ingress address of {container}: {text:?}"))
    }

    fn sandbox(&self) -> Result<PathBuf> {
        let cell = self.cell.as_ref().context("dockerd is stopped")?;
        let root = PathBuf::from(format!("/proc/{}/root", child_of(cell.pid(), SHIM)?));
        let directory = self.directory.path().strip_prefix("/")?;
        Ok(root.join(directory).join("exec/netns/ingress_sbox"))
    }

    fn end(&mut self) -> Result<()> {
        if let Some(cell) = self.cell.take() {
            // With its first process the kernel ends the whole pid namespace, containers included. It has none where
            // dockerd ended by itself.
            if let Ok(first) = child_of(cell.pid(), SHIM) {
                kill(first, Signal::SIGKILL)?;
            }
            cell.wait(PATIENCE)?;
        }
        cgroup::remove(&self.cgroup)
    }
}

impl Drop for Dockerd<'_> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(cell) = &self.cell
        {
            eprintln!("{}", cell.log());
        }
        if let Err(error) = self.end() {
            eprintln!("dockerd left something behind: {error:#}");
        }
    }
}

/// Whether the kernel balances load; where it is a module, asking loads it.
fn has_ipvs(node: &Netns) -> Result<bool> {
    // No modprobe, or no such module: then there is no IPVS.
    Command::new("modprobe").args(["--quiet", "ip_vs"]).status().ok();
    node.enter(|| Ok(Path::new("/proc/thread-self/net/ip_vs").exists()))
}

fn child_of(parent: Pid, program: &str) -> Result<Pid> {
    // The kernel keeps 15 characters of a name. By name, because the first process of the cell inherits orphans.
    let name = format!("Name:\t{program:.15}");
    let parent_line = format!("PPid:\t{parent}");
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        if status.lines().any(|line| line == name) && status.lines().any(|line| line == parent_line) {
            return Ok(Pid::from_raw(pid));
        }
    }
    bail!("process {parent} has no child {program}")
}
