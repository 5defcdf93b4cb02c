//! Before any product is involved: the lab is as open as a real node, and leaves nothing behind.

use std::process::Command;

use anyhow::{Result, ensure};
use deadlight_tests::{
    answer::{Answer, tcp_answer, tcp_answer_from, udp_answer},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy::{self, Accept, Drop},
        Layout::{self, V20_10, V26, V28},
        ingress_accepts,
    },
    lab::{ALLOWED, Family, HOST, INGRESS, INGRESS_UDP, Lab, RUN},
    netns,
    outbound::connect_out,
    process::run,
    scratch,
    second_writer::{self, SecondWriter},
    server::Server,
    session::Session,
    syn_watch::SynWatch,
};

fn everything_answers(layout: Layout, backend: Backend, forward: ForwardPolicy) -> Result<()> {
    let lab = Lab::new(layout, backend, forward)?;
    let (v4, v6) = (Family::V4, Family::V6);
    for (to, expected) in [
        (v4.node(INGRESS), Answer::Data),
        (v6.node(INGRESS), Answer::OpenNoData),
        (v4.node(ALLOWED), Answer::Data),
        (v6.node(ALLOWED), Answer::OpenNoData),
        (v4.node(RUN), Answer::Data),
        (v6.node(RUN), Answer::Data),
        (v4.node(HOST), Answer::Data),
        (v6.node(HOST), Answer::Data),
        (v4.node(7), Answer::Refused),
        (v6.node(7), Answer::Refused),
    ] {
        let answer = tcp_answer(lab.inet(), to)?;
        ensure!(answer == expected, "{to}/tcp: {answer:?}, not {expected:?}");
    }
    let stranger = tcp_answer_from(lab.inet(), (v4.stranger(), 0).into(), v4.node(INGRESS))?;
    ensure!(stranger == Answer::Data, "8080 from a stranger: {stranger:?}");
    for to in [v4.node(INGRESS_UDP), v4.node(HOST), v6.node(HOST)] {
        let answer = udp_answer(lab.inet(), to)?;
        ensure!(answer == Answer::Data, "{to}/udp: {answer:?}");
    }
    let inside = tcp_answer(&lab.task, "172.18.0.1:8080".parse()?)?;
    ensure!(inside == Answer::Data, "container to 172.18.0.1:8080: {inside:?}");
    Ok(())
}

/// One test for each combination, so that a failure names it.
macro_rules! combinations {
    ($($name:ident: $layout:expr, $backend:expr, $forward:expr;)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            everything_answers($layout, $backend, $forward)
        })*
    };
}

combinations! {
    everything_answers_20_10_nft_drop: V20_10, Nft, Drop;
    everything_answers_20_10_nft_accept: V20_10, Nft, Accept;
    everything_answers_20_10_legacy_drop: V20_10, Legacy, Drop;
    everything_answers_20_10_legacy_accept: V20_10, Legacy, Accept;
    everything_answers_26_nft_drop: V26, Nft, Drop;
    everything_answers_26_nft_accept: V26, Nft, Accept;
    everything_answers_26_legacy_drop: V26, Legacy, Drop;
    everything_answers_26_legacy_accept: V26, Legacy, Accept;
    everything_answers_28_nft_drop: V28, Nft, Drop;
    everything_answers_28_nft_accept: V28, Nft, Accept;
    everything_answers_28_legacy_drop: V28, Legacy, Drop;
    everything_answers_28_legacy_accept: V28, Legacy, Accept;
}

#[test]
fn an_unpublished_port_of_a_container_is_closed_by_the_forward_policy() -> Result<()> {
    for (forward, expected) in [(Drop, Answer::Silent), (Accept, Answer::Data)] {
        let lab = Lab::new(V20_10, Nft, forward)?;
        // A neighbour that routes the containers' network by way of the node.
        lab.inet().ip("route add 172.17.0.0/16 via 198.51.100.11")?;
        let unpublished = Server::tcp(&lab.container, Family::V4.any(8081))?;
        let answer = tcp_answer(lab.inet(), ([172, 17, 0, 2], unpublished.address().port()).into())?;
        ensure!(answer == expected, "FORWARD {forward:?}: {answer:?}");
    }
    Ok(())
}

#[test]
fn syn_watch_sees_every_answer() -> Result<()> {
    let lab = Lab::new(V26, Nft, Drop)?;
    for family in Family::BOTH {
        let watch = SynWatch::start(lab.inet(), family.scanner(), family.node(INGRESS))?;
        let tried = watch.observe(100)?;
        ensure!(tried.answered + 3 >= tried.sent, "{family}: {tried:?}");

        let closed = SynWatch::start(lab.inet(), family.scanner(), family.node(7))?;
        let tried = closed.observe(100)?;
        ensure!(tried.answered == 0, "a closed port over {family}: {tried:?}");
    }
    Ok(())
}

#[test]
fn sessions_flow_both_ways() -> Result<()> {
    let lab = Lab::new(V28, Nft, Drop)?;
    let (v4, v6) = (Family::V4, Family::V6);
    let sessions = [
        Session::tcp(lab.inet(), v4.node(INGRESS), &lab.ingress)?,
        Session::tcp(lab.inet(), v6.node(RUN), &lab.proxy)?,
        Session::udp(lab.inet(), v4.node(INGRESS_UDP), &lab.ingress_udp)?,
        Session::udp(lab.inet(), v6.node(HOST), lab.host_udp(v6))?,
    ];
    let unclosed = std::time::Instant::now();
    for session in &sessions {
        session.ensure_flowing()?;
        let verdict = session.ensure_silent(unclosed, std::time::Duration::ZERO);
        ensure!(verdict.is_err(), "a flowing session passed for silent");
    }
    Ok(())
}

#[test]
fn the_node_connects_out_from_a_published_port() -> Result<()> {
    let lab = Lab::new(V20_10, Legacy, Drop)?;
    for family in Family::BOTH {
        let web = Server::tcp(lab.inet(), (family.scanner(), 7000).into())?;
        connect_out(lab.node(), INGRESS, web.address())?;
    }
    Ok(())
}

#[test]
fn dockerd_puts_its_wide_accept_back_on_top() -> Result<()> {
    for (layout, backend) in [(V20_10, Nft), (V26, Legacy), (V28, Nft)] {
        let lab = Lab::new(layout, backend, Drop)?;
        let fresh = ingress_accepts(lab.node(), backend, INGRESS)?;
        lab.reinsert_wide(INGRESS)?;
        ensure!(ingress_accepts(lab.node(), backend, INGRESS)? == fresh, "an unaltered rule is replaced");

        let mut narrow = lab.node().command(backend.tool("iptables", ""));
        run(narrow.args(["--wait", "-R", "DOCKER-INGRESS", "1"]).args([
            "-s",
            "172.18.0.0/16",
            "-p",
            "tcp",
            "--dport",
            "8080",
            "-j",
            "ACCEPT",
        ]))?;
        lab.reinsert_wide(INGRESS)?;
        let rules = ingress_accepts(lab.node(), backend, INGRESS)?;
        ensure!(rules.len() == 2 && rules[0] == fresh[0], "{layout:?} {backend}: {rules:#?}");
    }
    Ok(())
}

#[test]
fn a_second_writers_losses_are_seen() -> Result<()> {
    for backend in [Nft, Legacy] {
        let lab = Lab::new(V20_10, backend, Drop)?;
        let old = run(&mut lab.node().command(backend.tool("iptables", "-save")))?;
        let writer = SecondWriter::start(lab.node(), backend);
        writer.let_write(20)?;
        let written = writer.stop()?;
        let missing = second_writer::missing(lab.node(), backend, written)?;
        ensure!(missing.is_empty(), "nobody disturbed the writer, and yet: {missing:#?}");

        // What the known script does: the tables as they were, without what came meanwhile.
        let mut restore = lab.node().command(backend.tool("iptables", "-restore"));
        deadlight_tests::process::run_with_input(&mut restore, &old)?;
        let missing = second_writer::missing(lab.node(), backend, written)?;
        ensure!(missing.len() == usize::from(written) * 2, "{} of {written}", missing.len());
    }
    Ok(())
}

#[test]
fn leftovers_of_a_killed_run_are_swept() -> Result<()> {
    let mut ended = Command::new("true").spawn()?;
    ended.wait()?;
    let stale = format!("dl-{}-0-stale", ended.id());
    run(Command::new("ip").args(["netns", "add", &stale]))?;
    let files = std::env::temp_dir().join(format!("dl-{}-files", ended.id()));
    std::fs::create_dir(&files)?;
    let kept = netns::Netns::new("kept")?;
    scratch::sweep_stale()?;
    let names = netns::all()?;
    ensure!(!files.exists(), "{} is still there", files.display());
    ensure!(!names.contains(&stale) && names.iter().any(|name| name == kept.name()), "{names:?}");
    Ok(())
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    let machine = || -> Result<String> {
        let mut text = String::new();
        for tool in ["iptables-nft-save", "iptables-legacy-save", "ip6tables-nft-save", "ip6tables-legacy-save"] {
            let saved = run(&mut Command::new(tool))?;
            text.extend(saved.lines().filter(|line| line.starts_with('-')).map(|line| format!("{line}\n")));
        }
        Ok(text + &run(Command::new("ip").args(["-o", "link"]))?)
    };
    let mine = || -> Result<Vec<String>> {
        let names = netns::all()?;
        Ok(names.into_iter().filter(|name| scratch::owner(name) == Some(std::process::id())).collect())
    };
    let before = machine()?;
    let lab = Lab::new(V28, Legacy, Drop)?;
    let mut child = lab.task.command("sleep").arg("1000").spawn()?;
    ensure!(mine()?.len() == 5, "{:?}", mine()?);
    drop(lab);
    ensure!(!child.wait()?.success(), "the process in the namespace ended by itself");
    ensure!(mine()?.is_empty(), "left: {:?}", mine()?);
    let after = machine()?;
    ensure!(after == before, "the machine's own rules changed:\n{before}\n{after}");
    Ok(())
}
