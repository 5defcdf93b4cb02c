//! Several scanners with one real PostgreSQL: who looks after which node, and what becomes of it when one dies.

#![expect(clippy::unwrap_used, reason = "the story's own words are well-formed")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use deadlight_scanner::{
    assess::first_seen,
    store::{Database, Location, Past, Store, Why},
};
use deadlight_shared::{Finding, FindingId, FindingStatus, Name};
use deadlight_tests::{
    lab::plug,
    netns::Netns,
    postgres::Postgres,
    process::run,
    programs::{Running, finish, scanner},
    scratch,
    server::Server,
    wait::wait_for,
};
use jiff::Timestamp;

const LEASE: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(60);

#[test]
fn whoever_takes_a_node_over_remembers_all_and_owes_its_alerts() -> Result<()> {
    let postgres = Postgres::start()?;
    let location = Location::parse(&postgres.database("deadlight")?, Path::new("/"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let nodes: BTreeSet<Name> = ["n1", "n2"].map(name).into();
        let (a, b) = (database(&location, "office-a").await?, database(&location, "office-b").await?);
        let owed = a.untold("hook").await?;
        ensure!(owed.is_empty());
        ensure!(a.share(&nodes, LEASE).await?.nodes == nodes, "the first has all");
        let mut memory = Store::new(a.load().await?, Timestamp::now());
        memory.keep(&[finding("n1"), finding("n2")], Timestamp::now(), |_| Some(Why::Rescan));
        let told = memory.take_alerts();
        a.write(memory.unsaved()).await?;
        let known = a.load().await?;
        // One of them reached its place.
        a.tell("hook", told[0].number, None).await?;

        // The second wishes, the first gives, the second takes.
        ensure!(b.share(&nodes, LEASE).await?.nodes.is_empty());
        ensure!(a.share(&nodes, LEASE).await?.nodes.len() == 1);
        let part = b.share(&nodes, LEASE).await?;
        ensure!(part.nodes.len() == 1, "{part:?}");
        let given = part.nodes.first().context("a node")?.clone();
        ensure!(
            Past(&a).coverage(&name("office-a"), Timestamp::now()).await?.unswept == nodes,
            "nobody has swept anything"
        );

        // A node that stands in its configuration no more is not kept from the others.
        let none = a.share(&BTreeSet::new(), LEASE).await?;
        ensure!(none.nodes.is_empty() && a.share(&nodes, LEASE).await?.nodes.len() == 1, "{none:?}");
        a.give_leases().await?;
        let rest = b.share(&nodes, LEASE).await?;
        ensure!(rest.nodes == nodes, "whoever ends gives everything back at once: {rest:?}");
        let (left, taken) = (a.load().await?, b.load().await?);
        ensure!(left.findings.is_empty() && left.episodes.is_empty(), "{left:?}");
        ensure!(taken.findings.len() == 2 && taken.episodes == known.episodes, "{taken:?}");
        ensure!(a.load_all().await?.findings == taken.findings, "everybody sees what the holder knows");
        let owed = b.alerts_after(0).await?;
        ensure!(a.untold("hook").await?.iter().all(|left| owed.iter().all(|owed| owed.finding.id != left.finding.id)));
        let keys: Vec<_> = owed.iter().map(|alert| (alert.number, alert.episode.key(&alert.finding.id))).collect();
        let wanted = told[1].episode.key(&told[1].finding.id);
        ensure!(keys == [(1, wanted)], "{keys:?}, after {given} was given");
        ensure!(taken.alerts == 1, "the next alert has another number: {}", taken.alerts);

        // What the first still writes of a node that it has lost is seen by nobody.
        memory.keep(&[Finding { status: FindingStatus::Failed, ..finding("n1") }], Timestamp::now(), |_| None);
        a.write(memory.unsaved()).await?;
        ensure!(a.load_all().await?.findings == taken.findings);
        Ok(())
    })
}

#[test]
fn two_scanners_share_the_nodes_and_one_takes_all_when_the_other_is_killed() -> Result<()> {
    let (world, postgres) = (Netns::new("world")?, Postgres::start()?);
    let url = postgres.database("deadlight")?;
    let directory = scratch::directory()?;
    let listening = |node| Server::deaf(&world, format!("127.0.0.{node}:8080").parse().unwrap());
    let _open = [listening(1)?, listening(4)?];
    let [a, b] = ["office-a", "office-b"].map(|vantage| configured(directory.path(), vantage, &url));
    let (a, b) = (a?, b?);
    let start = |config: &Path| {
        let mut command = scanner(&world)?;
        command.args(["run", "--config"]).arg(config);
        Running::start(&mut command, "scanner", directory.path())
    };
    let held = || -> Result<String> {
        postgres.sql(
            "deadlight",
            "SELECT string_agg(holder || ' ' || nodes, ',' ORDER BY holder) FROM \
             (SELECT holder, COUNT(*) AS nodes FROM lease GROUP BY holder) AS held WHERE holder IS NOT NULL",
        )
    };
    let until_held = |wanted: &str| {
        wait_for(wanted, SOON, || match held() {
            Ok(held) if held == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        })
    };
    let first = start(&a)?;
    until_held("office-a 4")?;
    let second = start(&b)?;
    until_held("office-a 2,office-b 2")?;
    let status = |config: &Path, wanted: &str| {
        wait_for("status", SOON, || {
            let ended =
                scanner(&world).and_then(|mut command| finish(command.args(["status", "--config"]).arg(config)));
            let text = ended.map_err(|error| format!("{error:#}"))?.stdout;
            if text.contains(wanted) && !text.contains("not swept yet") { Ok(()) } else { Err(text) }
        })
    };
    // Each shows what both have found.
    status(&a, "Open and not allowed: 2 ports.")?;
    status(&b, "Open and not allowed: 2 ports.")?;

    first.kill()?;
    until_held("office-b 4")?;
    status(&b, "Open and not allowed: 2 ports.")?;
    let begun = "SELECT COUNT(*) FROM alert WHERE body LIKE '%\"kind\":\"exposed\"%'";
    ensure!(postgres.sql("deadlight", begun)? == "2", "nothing is told as new because another looks at it");

    // It comes back and gets its half; the other ends, and leaves it everything at once.
    let again = start(&a)?;
    until_held("office-a 2,office-b 2")?;
    second.stop()?;
    until_held("office-a 4")?;
    status(&a, "Open and not allowed: 2 ports.")?;
    ensure!(postgres.sql("deadlight", begun)? == "2");

    // A database that is away is asked every second, and told once.
    let door = |is_open: bool| {
        postgres.sql("postgres", &format!("ALTER DATABASE deadlight ALLOW_CONNECTIONS {is_open}"))?;
        postgres.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'deadlight'")
    };
    let until_logged = |words: &str, times: usize| {
        wait_for(words, SOON, || {
            let log = again.log();
            if log.matches(words).count() >= times { Ok(()) } else { Err(log) }
        })
    };
    door(false)?;
    until_logged("failed to write the database", 3)?;
    door(true)?;
    until_logged("the database says again which nodes are ours", 1)?;
    ensure!(again.log().matches("which nodes are ours is not known").count() == 1, "{}", again.log());
    Ok(())
}

#[test]
fn a_port_that_hides_from_one_vantage_point_is_not_proven_closed() -> Result<()> {
    let postgres = Postgres::start()?;
    let url = postgres.database("deadlight")?;
    let directory = scratch::directory()?;
    let node = Netns::new("node")?;
    node.ip("addr add 203.0.113.10/32 dev lo")?;
    let vantages = [("office-a", "198.51.100.1"), ("office-b", "198.51.100.5")].map(|(vantage, address)| {
        let here = Netns::new(vantage)?;
        plug(&here, "wan", &node, vantage)?;
        let last: u8 = address.rsplit('.').next().unwrap().parse()?;
        let gateway = format!("198.51.100.{}", last + 1);
        node.ip(&format!("addr add {gateway}/30 dev {vantage}"))?;
        here.ip(&format!("addr add {address}/30 dev wan"))?;
        here.ip(&format!("route add 203.0.113.10 via {gateway}"))?;
        let seconded = if vantage == "office-a" { "[prove]\nvantages = 2\n" } else { "" };
        let text = format!(
            "[vantage]\nid = \"{vantage}\"\n{seconded}[sweep]\nevery = \"1h\"\nquick = \"1s\"\ntcp = \"8080\"\nudp = \"\"\n\
             [store]\nurl = \"{url}\"\n[[node]]\nname = \"n1\"\naddresses = [\"203.0.113.10\"]\ncontrol = \"22/tcp\"\n"
        );
        let config = directory.path().join(format!("{vantage}.toml"));
        fs::write(&config, text)?;
        anyhow::Ok((vantage, here, config))
    });
    let [a, b] = vantages;
    let (a, b) = (a?, b?);
    let listening = |port| Server::deaf(&node, format!("203.0.113.10:{port}").parse().unwrap());
    let _services = [listening(22)?, listening(8080)?];
    let start = |(vantage, here, config): &(&str, Netns, PathBuf)| {
        let mut command = scanner(here)?;
        command.args(["run", "--config"]).arg(config);
        Running::start(&mut command, vantage, directory.path())
    };
    let said = |wanted: &str| {
        wait_for(wanted, SOON, || {
            let words = scanner(&a.1).and_then(|mut command| finish(command.args(["history", "--config"]).arg(&a.2)));
            let text = words.map_err(|error| format!("{error:#}"))?.stdout;
            if text.contains(wanted) { Ok(text) } else { Err(text) }
        })
    };
    let _first = start(&a)?;
    said("open")?;
    let _second = start(&b)?;
    wait_for("both to live", SOON, || {
        match postgres.sql("deadlight", "SELECT COUNT(*) FROM scanner WHERE alive IS NOT NULL") {
            Ok(living) if living == "2" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    let drop = |from: &str| {
        let rule = format!("-A INPUT {from} -p tcp --dport 8080 -j DROP");
        run(node.command("iptables-nft").args(rule.split_whitespace()))
    };
    drop("-s 198.51.100.1")?;
    let told = said("failed")?;
    ensure!(!told.contains("resolved"), "{told}");
    drop("")?;
    let told = said("resolved")?;
    ensure!(told.contains("from office-b too: "), "{told}");
    Ok(())
}

async fn database(location: &Location, vantage: &str) -> Result<Database> {
    Ok(Database::open_alone(location, &name(vantage)).await?)
}

/// Four nodes on this host, at which 8080/tcp is asked.
fn configured(directory: &Path, vantage: &str, url: &str) -> Result<PathBuf> {
    let nodes: String =
        (1..=4).map(|node| format!("[[node]]\nname = \"n{node}\"\naddresses = [\"127.0.0.{node}\"]\n")).collect();
    let text = format!(
        "[vantage]\nid = \"{vantage}\"\nlease = \"{}s\"\n[sweep]\nevery = \"10s\"\nquick = \"1s\"\ntcp = \"8080\"\nudp = \"\"\n\
         [store]\nurl = \"{url}\"\n{nodes}",
        LEASE.as_secs()
    );
    let path = directory.join(format!("{vantage}.toml"));
    fs::write(&path, text)?;
    Ok(path)
}

fn finding(node: &str) -> Finding {
    let (node, address, port) = (name(node), "192.0.2.1".parse().unwrap(), "8080/tcp".parse().unwrap());
    first_seen(&FindingId::of(&node, address, port), node, address, port, Timestamp::now())
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}
