//! Listening sockets and who holds them. Source: `/proc/net/{tcp,tcp6,udp,udp6}` and `/proc/PID`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use deadlight_shared::{Port, Protocol};
use serde::{Deserialize, Serialize};

use super::{has_capability, is_initial};

mod helper;

pub use helper::tell;

const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_SYS_PTRACE: u32 = 19;

/// A socket that waits for anybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its port.
    pub port: Port,
    /// The address it listens on; unspecified for all.
    pub address: IpAddr,
    /// Who holds it; none for sockets of the kernel and of hidden processes.
    pub process: Option<Process>,
    /// Whether nobody is seen to hold it because the agent does not see everybody: it may be sshd's.
    #[serde(default)]
    pub is_hidden: bool,
}

/// Where it is seen who listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// In `/proc`, by this process.
    Own,
    /// In the node's `/proc` at this place, from within a container, which may be kept from looking into it.
    Host(PathBuf),
    /// By the helper behind this socket.
    Helper(PathBuf),
}

/// A process as far as it explains a socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Name of the program, as the kernel knows it (15 characters at most).
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its systemd unit, such as `ssh.service`.
    pub unit: Option<String>,
    /// Id of the container it runs in.
    pub container: Option<String>,
}

impl Listener {
    /// Whether a packet to `address` would reach this socket. An unspecified IPv6 socket takes
    /// IPv4 as well, unless it was set to IPv6 only, which `/proc` does not tell.
    pub fn takes(&self, address: Option<IpAddr>) -> bool {
        match address {
            None => !self.address.is_loopback(),
            Some(address) if self.address.is_unspecified() => self.address.is_ipv6() || address.is_ipv4(),
            Some(address) => self.address == address,
        }
    }
}

/// Reads all listening sockets of this network namespace. Not being allowed to see who holds them is an error, and in a
/// container makes them hidden: sshd's would look like anybody's.
pub fn read(view: &View) -> io::Result<Vec<Listener>> {
    match view {
        View::Own => {
            fs::read_dir("/proc/1/fd")?;
            if !has_capability(CAP_SYS_PTRACE) {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            // Elsewhere than in a whole system, this is a container of its own.
            let first = fs::read_to_string("/proc/1/comm")?;
            let is_system = ["systemd", "init"].contains(&first.trim_end());
            look(Path::new("/proc"), is_system || is_initial(Path::new("/proc/self/ns/pid")))
        }
        View::Host(proc) => {
            // Readable for whoever is let into root's processes; those of other users want more.
            let of_all_users = has_capability(CAP_DAC_READ_SEARCH) || has_capability(CAP_DAC_OVERRIDE);
            look(proc, of_all_users && is_initial(&proc.join("1/ns/pid")))
        }
        View::Helper(socket) => helper::ask(socket),
    }
}

fn look(proc: &Path, sees_everybody: bool) -> io::Result<Vec<Listener>> {
    let mut sockets = Vec::new();
    for (file, protocol) in
        [("tcp", Protocol::Tcp), ("tcp6", Protocol::Tcp), ("udp", Protocol::Udp), ("udp6", Protocol::Udp)]
    {
        match File::open(format!("/proc/self/net/{file}")) {
            // Line by line: under a flood of connections these are megabytes.
            Ok(table) => {
                for line in BufReader::new(table).lines().skip(1) {
                    sockets.extend(parse_socket(&line?, protocol));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let owners = socket_owners(proc);
    let listener = |(port, address, inode): (Port, IpAddr, u64)| {
        let process = owners.get(&inode).map(|pid| read_process(&proc.join(pid.to_string()), *pid));
        let is_hidden = !sees_everybody && process.is_none() && port.protocol == Protocol::Tcp;
        Listener { port, address, process, is_hidden }
    };
    Ok(sockets.into_iter().map(listener).collect())
}

/// A socket that waits for anybody. Columns: sl local_address rem_address st … (5 more) inode; `local_address` is
/// `HEX:HEX`.
fn parse_socket(line: &str, protocol: Protocol) -> Option<(Port, IpAddr, u64)> {
    let listening = if protocol == Protocol::Tcp { "0A" } else { "07" };
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (local, _, state) = (columns.next()?, columns.next()?, columns.next()?);
    if state != listening {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = Port::new(protocol, u16::from_str_radix(port, 16).ok()?)?;
    Some((port, parse_address(address)?, columns.nth(5)?.parse().ok()?))
}

/// The kernel prints each 32-bit word in its own byte order.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for start in (0..hex.len()).step_by(8) {
        let word = u32::from_str_radix(hex.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// Which process holds which socket inode. Processes that end meanwhile are passed over.
fn socket_owners(proc: &Path) -> BTreeMap<u64, u32> {
    let mut owners = BTreeMap::new();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            let inode = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                owners.insert(inode, pid);
            }
        }
    }
    owners
}

fn read_process(directory: &Path, pid: u32) -> Process {
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let cgroup = read("cgroup");
    Process {
        pid,
        program: read("comm").trim_end().to_owned(),
        arguments: read("cmdline").split_terminator('\0').map(str::to_owned).collect(),
        unit: cgroup_part(&cgroup, |part| part.ends_with(".service").then(|| part.to_owned())),
        container: cgroup_part(&cgroup, container_id),
    }
}

fn cgroup_part(cgroup: &str, pick: impl Fn(&str) -> Option<String>) -> Option<String> {
    cgroup.lines().flat_map(|line| line.split('/')).find_map(pick)
}

/// `docker-<64 hex>.scope` under systemd, `<64 hex>` under cgroupfs.
fn container_id(part: &str) -> Option<String> {
    let id = part.strip_prefix("docker-").and_then(|part| part.strip_suffix(".scope")).unwrap_or(part);
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sockets_that_wait_for_anybody() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
             1: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n\
             2: 0100007F:8000 0100007F:0016 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0\n";
        let sockets = table.lines().filter_map(|line| parse_socket(line, Protocol::Tcp));
        let shown: Vec<_> = sockets.map(|(port, address, inode)| format!("{port} {address} {inode}")).collect();
        assert_eq!(shown, ["8080/tcp 0.0.0.0 4711", "22/tcp 127.0.0.1 4712"]);
        assert_eq!(parse_address("B80D0120000000000000000001000000"), "2001:db8::1".parse().ok());
        assert_eq!(parse_address("0100007"), None);
    }

    #[test]
    fn a_container_is_told_by_its_cgroup() {
        let id = "a".repeat(64);
        assert_eq!(container_id(&format!("docker-{id}.scope")).as_deref(), Some(id.as_str()));
        assert_eq!(container_id(&id).as_deref(), Some(id.as_str()));
        assert_eq!(container_id("ssh.service"), None);
    }

    #[test]
    fn our_own_listener_is_found_with_our_pid_or_hidden_where_nobody_is_seen() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = Port::new(Protocol::Tcp, socket.local_addr().unwrap().port()).unwrap();
        let seen = |view| read(&view).unwrap().into_iter().find(|listener| listener.port == port).unwrap();
        for view in [View::Own, View::Host("/proc".into())] {
            let listener = seen(view);
            assert_eq!((listener.process.unwrap().pid, listener.is_hidden), (std::process::id(), false));
        }
        let empty = tempfile::tempdir().unwrap();
        let listener = seen(View::Host(empty.path().to_owned()));
        assert_eq!((listener.process, listener.is_hidden), (None, true));
        // The kernel lists UDP sockets of nobody, such as those of tunnels, and sshd has none.
        let call = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = Port::new(Protocol::Udp, call.local_addr().unwrap().port()).unwrap();
        let listeners = read(&View::Host(empty.path().to_owned())).unwrap();
        assert!(!listeners.into_iter().find(|listener| listener.port == port).unwrap().is_hidden);
    }
}
