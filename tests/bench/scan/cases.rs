//! The rows of the table.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use deadlight_tests::wan::Weather;

use super::{
    lab::{Families, Lab, Shut, Target, addresses},
    measure::{self, Run},
    programs::{Program, Question},
};

/// A run that takes longer is stopped.
const LIMIT: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(480);
const FAR: Weather = Weather { delay: Duration::from_millis(20), loss: 0.01, seed: 7 };

struct Case {
    name: &'static str,
    nodes: u16,
    families: Families,
    ports: &'static str,
    open_each: usize,
    shut: Shut,
    weather: Option<Weather>,
    udp: bool,
    limit: Duration,
    programs: Vec<Program>,
}

fn cases() -> Vec<Case> {
    use Program::{Deadlight, DeadlightConnect, Masscan, Nmap, NmapConnect, RustScan};
    let peers = |ours: u32| vec![Deadlight(ours), Nmap(10_000), Masscan(100_000), RustScan];
    let one = Case {
        name: "closed node",
        nodes: 1,
        families: Families::V4,
        ports: "1-65535",
        open_each: 12,
        shut: Shut::Refuse,
        weather: None,
        udp: false,
        limit: LIMIT,
        programs: [peers(500_000), vec![DeadlightConnect(50_000), NmapConnect]].concat(),
    };
    let filtered = |name| Case {
        name,
        shut: Shut::Drop,
        programs: vec![Deadlight(100_000), Nmap(10_000), RustScan],
        ..one_like(&one)
    };
    let many = |name| Case { nodes: 16, ports: "1-1000", ..filtered(name) };
    vec![
        Case {
            families: Families::V6,
            name: "closed node, IPv6",
            programs: vec![Deadlight(500_000), Nmap(10_000)],
            ..one_like(&one)
        },
        Case { programs: peers(100_000), ..filtered("filtered node") },
        Case {
            families: Families::V6,
            programs: vec![Deadlight(100_000), Nmap(10_000), RustScan],
            ..filtered("filtered node, IPv6")
        },
        Case { weather: Some(FAR), ..filtered("filtered node, 40 ms, 1 % loss each way") },
        Case { weather: Some(FAR), open_each: 600, ..filtered("filtered node, 600 open, 40 ms, 1 % loss each way") },
        many("16 nodes × 1,000 ports, filtered"),
        Case { weather: Some(FAR), ..many("16 nodes × 1,000 ports, filtered, 40 ms, 1 % loss each way") },
        Case {
            name: "UDP: DNS, NTP, SNMP among 200 ports",
            ports: "1-200",
            open_each: 0,
            udp: true,
            programs: vec![Deadlight(5_000), Nmap(5_000), Masscan(5_000)],
            ..one_like(&one)
        },
        one,
    ]
}

fn one_like(case: &Case) -> Case {
    Case { programs: Vec::new(), ..*case }
}

/// Runs every case whose name contains one of `wanted` (all, where nothing is wanted), `runs` times.
pub(crate) fn measure(runs: usize, wanted: &[String]) -> Result<()> {
    head();
    for case in cases() {
        if wanted.is_empty() || wanted.iter().any(|word| case.name.contains(word.as_str())) {
            row(&case, runs)?;
        }
    }
    Ok(())
}

/// A hundred runs of Deadlight alone at each loss: nothing may be missed, and nothing invented.
pub(crate) fn measure_long() -> Result<()> {
    head();
    for (name, loss) in
        [("1,000 ports, 40 ms, 1 % loss each way", 0.01), ("1,000 ports, 40 ms, 5 % loss each way", 0.05)]
    {
        let case = Case {
            name,
            nodes: 1,
            families: Families::V4,
            ports: "1-1000",
            open_each: 12,
            shut: Shut::Drop,
            weather: Some(Weather { loss, ..FAR }),
            udp: false,
            limit: LIMIT,
            programs: vec![Program::Deadlight(20_000)],
        };
        row(&case, 100)?;
    }
    Ok(())
}

/// Every port of a large swarm's nodes, by Deadlight alone. Of those that answer nothing there are half as many: each of
/// their ports is asked twice.
pub(crate) fn measure_every(runs: usize) -> Result<()> {
    head();
    for (name, nodes, shut, rate) in [
        ("500 nodes × 65,535 ports, closed", 500, Shut::Refuse, 300_000),
        ("250 nodes × 65,535 ports, filtered", 250, Shut::Drop, 150_000),
    ] {
        let case = Case {
            name,
            nodes,
            families: Families::Both,
            ports: "1-65535",
            open_each: 2,
            shut,
            weather: None,
            udp: false,
            limit: LONGEST,
            programs: vec![Program::Deadlight(rate)],
        };
        row(&case, runs)?;
    }
    Ok(())
}

fn head() {
    println!(
        "\n| case | program | wall s | CPU s | peak MB | packets | open found | missed | invented | wall / nmap's |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
}

/// Open ports that are the same in each run.
fn open_ports(case: &Case) -> BTreeSet<Target> {
    let mut rng = fastrand::Rng::with_seed(case.open_each as u64);
    let last = case.ports.rsplit('-').next().and_then(|last| last.parse().ok()).unwrap_or(u16::MAX);
    let mut open = BTreeSet::new();
    for address in addresses(case.nodes, case.families) {
        let mut ports = BTreeSet::new();
        while ports.len() < case.open_each {
            ports.insert(rng.u16(1..=last));
        }
        open.extend(ports.into_iter().map(|port| (address, port)));
    }
    open
}

fn row(case: &Case, runs: usize) -> Result<()> {
    let nodes = addresses(case.nodes, case.families);
    let udp: &[_] = if case.udp { &nodes } else { &[] };
    let lab = Lab::new(open_ports(case), udp, case.shut, case.weather)?;
    let question = Question { addresses: nodes.clone(), ports: case.ports.to_owned(), udp: case.udp };
    let mut results = Vec::new();
    for &program in &case.programs {
        if !program.is_here() {
            println!("| {} | {}: not installed | | | | | | | | |", case.name, program.name(case.udp));
            continue;
        }
        let mut taken = Taken::default();
        for _ in 0..runs {
            lab.packets()?;
            let run = measure::run(&mut program.command(&lab.line.scanner, &question)?, case.limit)?;
            let found = program.open(&run.stdout);
            taken.add(&run, lab.packets()?, &lab.open, &found);
        }
        results.push((program, taken));
    }
    let nmap = results.iter().find(|(program, _)| matches!(program, Program::Nmap(_))).map(|(_, taken)| taken.wall());
    for (program, taken) in &results {
        println!("| {} | {} | {} |", case.name, program.name(case.udp), taken.columns(runs, lab.open.len(), nmap));
    }
    Ok(())
}

/// All runs of one program.
#[derive(Default)]
struct Taken {
    wall: Vec<f64>,
    cpu: Vec<f64>,
    peak: Vec<f64>,
    packets: Vec<f64>,
    missed: usize,
    invented: usize,
    stopped: usize,
}

impl Taken {
    fn add(&mut self, run: &Run, packets: u64, open: &BTreeSet<Target>, found: &BTreeSet<Target>) {
        self.wall.push(run.wall.as_secs_f64());
        self.cpu.push(run.cpu.as_secs_f64());
        self.peak.push(run.peak_kib as f64 / 1024.0);
        self.packets.push(packets as f64);
        self.missed += open.difference(found).count();
        self.invented += found.difference(open).count();
        self.stopped += usize::from(!run.ended);
    }

    fn wall(&self) -> f64 {
        median(&self.wall)
    }

    fn columns(&self, runs: usize, open: usize, nmap: Option<f64>) -> String {
        let stopped = if self.stopped > 0 { format!(" ({} stopped)", self.stopped) } else { String::new() };
        let ratio = nmap.map(|nmap| format!("{:.2}", self.wall() / nmap)).unwrap_or_default();
        format!(
            "{:.2}{stopped} | {:.2} | {:.0} | {:.0} | {} of {} | {} | {} | {ratio}",
            self.wall(),
            median(&self.cpu),
            median(&self.peak),
            median(&self.packets),
            runs * open - self.missed,
            runs * open,
            self.missed,
            self.invented,
        )
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
