//! The SYN scan on real packets: what it sees, whatever this host's firewall, rights and links are.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use deadlight_tests::{
    docker_rules::{Backend::Nft, ForwardPolicy::Drop, Layout::V26},
    lab::{
        Family::{self, V4, V6},
        Lab, Wire,
    },
    netns::Netns,
    process::{run, run_with_input},
    programs::{Ended, Running, built, finish, scanner},
    server::Server,
    wait::wait_for,
    wan::{Wan, Weather},
};
use serde_json::Value;

const OPEN: [u16; 5] = [22, 80, 443, 8080, 60_000];

fn scan(vantage: &Netns, target: Family, words: &[&str]) -> Result<Ended> {
    let address = target.node(1).ip().to_string();
    finish(scanner(vantage)?.args(["scan", &address, "--output", "json", "--rate", "20000"]).args(words))
}

fn document(ended: &Ended) -> Result<Value> {
    serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))
}

/// Ports by state, as far as they are listed.
fn listed(document: &Value, state: &str) -> Vec<u64> {
    let observations = document["observations"].as_array().into_iter().flatten();
    observations.filter(|seen| seen["state"] == state).filter_map(|seen| seen["port"].as_u64()).collect()
}

fn open_ports() -> Vec<u64> {
    OPEN.map(u64::from).into()
}

fn serve(node: &Netns, family: Family) -> Result<Vec<Server>> {
    OPEN.map(|port| Server::tcp(node, family.any(port))).into_iter().collect()
}

/// Every TCP port of the lab's node with its state, out of nmap's grepable output.
fn nmap(lab: &Lab, family: Family, directory: &Path) -> Result<BTreeMap<u64, String>> {
    let file = directory.join("nmap");
    let mut nmap = lab.inet().command("nmap");
    nmap.args(["-sS", "-n", "-Pn", "-T4", "--min-rate", "10000", "-p-", "-d3", "-oG"]).arg(&file);
    if family == V6 {
        nmap.arg("-6");
    }
    run(nmap.arg(family.node(1).ip().to_string()))?;
    let text = std::fs::read_to_string(file)?;
    let ports = text.lines().find_map(|line| line.split_once("Ports: ")).context("nmap lists no ports")?.1;
    let state = |item: &str| {
        let mut parts = item.trim().split('/');
        Some((parts.next()?.parse().ok()?, parts.next()?.to_owned()))
    };
    Ok(ports.split(',').filter_map(state).collect())
}

fn the_same_as_nmap_says(family: Family) -> Result<()> {
    let lab = Lab::new(V26, Nft, Drop)?;
    let directory = tempfile::tempdir()?;
    let theirs = nmap(&lab, family, directory.path())?;
    ensure!(theirs.len() == 65_535, "nmap lists {} ports", theirs.len());
    for method in ["syn", "connect"] {
        // What is allowed is listed whatever its state.
        let ended = scan(lab.inet(), family, &["--allow", "1-65535/tcp", "--method", method])?;
        let document = document(&ended)?;
        let mut ours = BTreeMap::new();
        for state in ["open", "closed", "filtered", "unknown"] {
            ours.extend(listed(&document, state).into_iter().map(|port| (port, state.to_owned())));
        }
        let differences: Vec<_> = theirs.iter().filter(|(port, state)| ours.get(port) != Some(state)).collect();
        ensure!(differences.is_empty() && ours.len() == 65_535, "{method}: nmap says {differences:?}");
    }
    Ok(())
}

#[test]
fn the_same_as_nmap_port_by_port_ipv4() -> Result<()> {
    the_same_as_nmap_says(V4)
}

#[test]
fn the_same_as_nmap_port_by_port_ipv6() -> Result<()> {
    the_same_as_nmap_says(V6)
}

/// The scanner's kernel resets what it did not ask for, so the node keeps no half-open connection.
#[test]
fn no_half_open_connection_is_left_on_the_node() -> Result<()> {
    for family in Family::BOTH {
        let wire = Wire::new()?;
        let _services = serve(&wire.node, family)?;
        let ended = scan(&wire.inet, family, &["--method", "syn", "--no-identify"])?.expect_code(1)?;
        ensure!(listed(&document(&ended)?, "open") == open_ports(), "{ended:?}");
        wait_for("no half-open connection", Duration::from_secs(5), || {
            let left = run(wire.node.command("ss").args(["-Htan", "state", "syn-recv"])).map_err(|e| e.to_string())?;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })?;
    }
    Ok(())
}

/// The packets are seen all the same; that the kernel cannot complete a handshake makes them unknown, never closed.
#[test]
fn the_scanners_own_firewall_does_not_blind_it() -> Result<()> {
    for family in Family::BOTH {
        let wire = Wire::new()?;
        let _services = serve(&wire.node, family)?;
        let deaf = "table inet deaf { chain in { type filter hook input priority 0; meta l4proto tcp drop; }; }\n";
        run_with_input(wire.inet.command("nft").args(["-f", "-"]), deaf)?;
        let ended = scan(&wire.inet, family, &["--method", "syn", "--ports", "1-1000,60000"])?.expect_code(3)?;
        let document = document(&ended)?;
        ensure!(listed(&document, "unknown") == [22, 80, 443, 60_000], "{ended:?}");
        ensure!(document["summary"]["closed"] == 1_001 - 4, "{ended:?}");
    }
    Ok(())
}

#[test]
fn cap_net_raw_alone_is_enough() -> Result<()> {
    let wire = Wire::new()?;
    let _services = serve(&wire.node, V4)?;
    let directory =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir()?;
    let program = directory.path().join("deadlight-scanner");
    std::fs::copy(built("deadlight-scanner")?, &program)?;
    let ordinary = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let target = V4.node(1).ip().to_string();
    for (rights, method, code) in
        [("-all", "syn", 2), ("-all", "auto", 1), ("-all,+net_raw", "syn", 1), ("-all,+net_raw", "auto", 1)]
    {
        let mut scan = wire.inet.command("setpriv");
        scan.args(ordinary).arg(format!("--inh-caps={rights}")).arg(format!("--ambient-caps={rights}"));
        scan.arg(format!("--bounding-set={rights}")).arg(&program);
        let ended = finish(scan.args(["scan", &target, "--ports", "1-1000", "--method", method, "--output", "json"]))?;
        let ended = ended.expect_code(code)?;
        let by_connect = ended.stderr.contains("is asked by connect");
        ensure!(by_connect == (rights == "-all" && method == "auto"), "{rights} {method}: {ended:?}");
        ensure!(code == 2 || listed(&document(&ended)?, "open") == [22, 80, 443], "{ended:?}");
    }
    Ok(())
}

/// A tunnel has no link header; nor has it a next hop that could be asked for its address.
#[test]
fn a_tunnel_without_link_header_is_scanned() -> Result<()> {
    let (here, there) = (Netns::new("here")?, Netns::new("there")?);
    let directory = tempfile::tempdir()?;
    let ends = [(&here, "198.51.100.1", "a", "b"), (&there, "198.51.100.11", "b", "a")];
    let mut tunnel = Vec::new();
    for (end, address, own, other) in ends {
        // Not a word before the other end is there to hear it.
        end.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        let path = |name: &str| directory.path().join(name).display().to_string();
        let mut socat = end.command("socat");
        socat.arg(format!("TUN:{address}/24,iff-up,tun-type=tun,iff-no-pi"));
        socat.arg(format!("UNIX-SENDTO:{},bind={}", path(other), path(own)));
        tunnel.push(Running::start(&mut socat, own, directory.path())?);
    }
    for (end, ..) in ends {
        wait_for("the tunnel", Duration::from_secs(5), || {
            let links = run(end.command("ip").args(["-br", "addr"])).map_err(|error| error.to_string())?;
            if links.contains("198.51.100") { Ok(()) } else { Err(links) }
        })?;
    }
    let _service = Server::tcp(&there, SocketAddr::from(([0, 0, 0, 0], 8_080)))?;
    let ended = scan(&here, V4, &["--method", "syn", "--ports", "8000-8100"])?.expect_code(1)?;
    ensure!(!ended.stderr.contains("asked by connect"), "{ended:?}");
    ensure!(listed(&document(&ended)?, "open") == [8_080], "{ended:?}");
    Ok(())
}

/// Many addresses without a host are looked for at once, and are unknown: nobody was asked.
#[test]
fn addresses_without_a_host_are_unknown() -> Result<()> {
    let wire = Wire::new()?;
    let _services = serve(&wire.node, V4)?;
    let words = ["scan", "198.51.100.8/29", "2001:db8:51::10/126", "--ports", "22,81", "--output", "json"];
    let ended = finish(scanner(&wire.inet)?.args(words))?.expect_code(1)?;
    let document = document(&ended)?;
    ensure!(listed(&document, "open") == [22] && document["summary"]["closed"] == 3, "{ended:?}");
    // Of 6 and 4 host addresses two have a host; one of them serves port 22.
    ensure!(document["summary"]["unknown"] == 2 * (6 + 4 - 2), "{ended:?}");
    ensure!(ended.stdout.contains("does not say its link address"), "{ended:?}");
    Ok(())
}

#[test]
fn who_answers_everything_is_not_believed() -> Result<()> {
    for family in Family::BOTH {
        let wire = Wire::new()?;
        let _service = Server::tcp(&wire.node, family.any(9_999))?;
        let proxy = "table inet proxy { chain pre { type nat hook prerouting priority -100; \
                     meta l4proto tcp redirect to :9999; }; }\n";
        run_with_input(wire.node.command("nft").args(["-f", "-"]), proxy)?;
        for (method, ports) in [("syn", "1-2000"), ("connect", "1-200"), ("syn", "80,443"), ("connect", "443")] {
            let words = ["--method", method, "--ports", ports, "--no-identify"];
            let ended = scan(&wire.inet, family, &words)?.expect_code(3)?;
            let document = document(&ended)?;
            ensure!(document["findings"] == serde_json::json!([]), "{method} {ports}: {ended:?}");
            ensure!(document["liars"][0]["address"] == family.node(1).ip().to_string(), "{method} {ports}: {ended:?}");
        }
    }
    Ok(())
}

/// Both methods, both families, one line that loses a tenth of what passes to and fro.
#[test]
fn loss_hides_nothing() -> Result<()> {
    for (family, method) in [(V4, "syn"), (V6, "syn"), (V4, "connect"), (V6, "connect")] {
        let (inet, node) = (Netns::new("inet")?, Netns::new("node")?);
        let weather = Weather { delay: Duration::from_millis(10), loss: 0.05, seed: 3 };
        let _wan = Wan::new(&inet, &node, "eth0", weather)?;
        for (end, v4, v6) in [(&inet, "198.51.100.1", "2001:db8:51::1"), (&node, "198.51.100.11", "2001:db8:51::11")] {
            end.ip(&format!("addr add {v4}/24 dev eth0"))?;
            end.ip(&format!("addr add {v6}/64 dev eth0 nodad"))?;
        }
        let _services = serve(&node, family)?;
        let filter = "table inet f { chain in { type filter hook input priority 0; policy drop; iif lo accept; \
                      meta l4proto { icmp, ipv6-icmp } accept; tcp dport { 22, 80, 443, 8080, 60000 } accept; }; }\n";
        run_with_input(node.command("nft").args(["-f", "-"]), filter)?;
        let words = ["--method", method, "--ports", "1-1000,8080,60000", "--no-identify"];
        let ended = scan(&inet, family, &words)?.expect_code(1)?;
        let document = document(&ended)?;
        ensure!(listed(&document, "open") == open_ports(), "{family} {method}: {ended:?}");
        ensure!(document["summary"]["filtered"] == 997, "{family} {method}: {ended:?}");
    }
    Ok(())
}

/// The tools that these stories cannot do without.
#[test]
fn the_tools_are_here() -> Result<()> {
    for tool in ["nmap", "socat", "ethtool", "setpriv", "ss"] {
        ensure!(Command::new(tool).arg("--version").output().is_ok(), "{tool} is missing\nhint: tests/install.sh");
    }
    Ok(())
}
