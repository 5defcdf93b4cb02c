//! Rules that are flushed, deleted, moved, replaced and added by hand.

use anyhow::{Result, ensure};
use deadlight_tests::{
    docker_rules::{
        self,
        Backend::{self, Legacy, Nft},
        ForwardPolicy,
        Layout::{V20_10, V26, V28},
    },
    lab::{Family, HOST, INGRESS, Lab, RUN},
    order::{order, send},
    process::{run, run_with_input},
    syn_watch::SynWatch,
};

use super::{
    Loss::{Docker, Guard, Nothing},
    close, put_back,
};
use crate::expect;

const TOOLS: [&str; 2] = ["iptables", "ip6tables"];
const DROP: &str = "-s 203.0.113.99/32 -j DROP";
const JUMP: &str = "-m comment --comment deadlight -j DEADLIGHT";

/// One test for each event and flavour, so that a failure names both.
macro_rules! events {
    ($($name:ident: $loss:expr, $layout:expr, $event:expr;)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn nft() -> Result<()> {
                put_back(($layout, Nft), $loss, operator, |lab, ()| $event(lab))
            }

            #[test]
            fn legacy() -> Result<()> {
                put_back(($layout, Legacy), $loss, operator, |lab, ()| $event(lab))
            }
        })*
    };
}

events! {
    the_filter_table_is_flushed: Docker, V28, |lab| both(lab, "-F");
    docker_user_is_flushed: Docker, V28, |lab| both(lab, "-F DOCKER-USER");
    the_jump_is_deleted: Docker, V28, unhook;
    the_jump_is_moved: Docker, V20_10, move_the_jump;
    our_chain_is_deleted: Docker, V28, delete_our_chain;
    dockerd_publishes_again: Docker, V20_10, |lab: &Lab| lab.reinsert_wide(INGRESS);
    the_engine_is_upgraded: Docker, V20_10, upgrade;
    the_other_flavour_is_written: Nothing, V28, write_the_other_flavour;
    the_ruleset_is_flushed: Guard, V28, |lab: &Lab| run(lab.node().command("nft").args(["flush", "ruleset"])).map(drop);
}

#[test]
fn an_old_dump_is_restored_nft() -> Result<()> {
    an_old_dump_is_restored(Nft)
}

#[test]
fn an_old_dump_is_restored_legacy() -> Result<()> {
    an_old_dump_is_restored(Legacy)
}

fn an_old_dump_is_restored(backend: Backend) -> Result<()> {
    let save = |lab: &mut Lab| {
        TOOLS
            .into_iter()
            .map(|tool| run(&mut lab.node().command(backend.tool(tool, "-save"))))
            .collect::<Result<Vec<_>>>()
    };
    put_back((V28, backend), Docker, save, |lab, dumps| {
        let restore =
            |(tool, dump): (_, &String)| run_with_input(&mut lab.node().command(backend.tool(tool, "-restore")), dump);
        TOOLS.into_iter().zip(dumps).try_for_each(restore)
    })
}

#[test]
fn what_iptables_cannot_read_is_failed_until_it_goes_nft() -> Result<()> {
    what_iptables_cannot_read_is_failed_until_it_goes(Nft)
}

#[test]
fn what_iptables_cannot_read_is_failed_until_it_goes_legacy() -> Result<()> {
    what_iptables_cannot_read_is_failed_until_it_goes(Legacy)
}

fn what_iptables_cannot_read_is_failed_until_it_goes(backend: Backend) -> Result<()> {
    let lab = Lab::new(V26, backend, ForwardPolicy::Drop)?;
    let (deployment, agent) = close(&lab)?;
    let watches = [
        SynWatch::start(lab.inet(), Family::V4.scanner(), Family::V4.node(HOST))?,
        SynWatch::start(lab.inet(), Family::V6.scanner(), Family::V6.node(HOST))?,
    ];
    let nft = |script: &str| run_with_input(lab.node().command("nft").args(["-f", "-"]), script);
    nft("add table ip filter\nadd chain ip filter foreign\nadd rule ip filter foreign ct count over 20 drop\n")?;
    let ports = [(Family::V4, "tcp", INGRESS), (Family::V6, "tcp", RUN)];
    let response = send(&deployment, &lab.wire, &order(2, &ports))?;
    ensure!(response.text.matches("\"failed\"").count() == ports.len(), "{response:?}\n{}", agent.log());
    ensure!(response.text.contains("incompatible"), "{response:?}");
    let foreign = run(lab.node().command("nft").args(["list", "chain", "ip", "filter", "foreign"]))?;
    ensure!(foreign.contains("ct count over 20 drop"), "{foreign}");
    expect::closed(&lab.wire, &[(Family::V4, INGRESS), (Family::V6, RUN), (Family::V4, HOST), (Family::V6, HOST)])?;

    nft("flush chain ip filter foreign\ndelete chain ip filter foreign\n")?;
    let response = send(&deployment, &lab.wire, &order(3, &ports))?;
    ensure!(response.text.matches("\"enforced\"").count() == ports.len(), "{response:?}\n{}", agent.log());
    for watch in &watches {
        let tried = watch.observe(20)?;
        ensure!(watch.so_far().answered == 0, "{tried:?}");
    }
    Ok(())
}

/// An operator's own rule, so that the place of the jump matters.
fn operator(lab: &mut Lab) -> Result<()> {
    iptables(lab, "iptables", &format!("-I DOCKER-USER {DROP}"))
}

/// Takes the jump away where there is one.
fn unhook(lab: &Lab) -> Result<()> {
    for tool in TOOLS {
        if is_hooked(lab, tool)? {
            iptables(lab, tool, &format!("-D DOCKER-USER {JUMP}"))?;
        }
    }
    Ok(())
}

fn move_the_jump(lab: &Lab) -> Result<()> {
    if is_hooked(lab, "iptables")? {
        iptables(lab, "iptables", &format!("-D DOCKER-USER {JUMP}"))?;
        iptables(lab, "iptables", &format!("-I DOCKER-USER {JUMP}"))?;
    }
    Ok(())
}

/// At one stroke: the agent would put the jump back in between.
fn delete_our_chain(lab: &Lab) -> Result<()> {
    for tool in TOOLS {
        if is_hooked(lab, tool)? {
            let lines = format!("*filter\n-D DOCKER-USER {JUMP}\n-F DEADLIGHT\n-X DEADLIGHT\nCOMMIT\n");
            run_with_input(
                lab.node().command(lab.backend.tool(tool, "-restore")).args(["--noflush", "--wait"]),
                &lines,
            )?;
        }
    }
    Ok(())
}

/// The packages of the old engine were purged before, with all that it left.
fn upgrade(lab: &Lab) -> Result<()> {
    let empty = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n\
                 *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n";
    run_with_input(lab.node().command(lab.backend.tool("iptables", "-restore")).arg("--wait"), empty)?;
    docker_rules::load(lab.node(), V28, lab.backend, ForwardPolicy::Accept)
}

fn write_the_other_flavour(lab: &Lab) -> Result<()> {
    let other = if lab.backend == Nft { Legacy } else { Nft };
    for tool in TOOLS {
        for chain in ["INPUT", "FORWARD"] {
            let words = format!("-I {chain} -p tcp --dport {INGRESS} -j ACCEPT");
            run(lab.node().command(other.tool(tool, "")).arg("--wait").args(words.split(' ')))?;
        }
    }
    Ok(())
}

fn is_hooked(lab: &Lab, tool: &str) -> Result<bool> {
    let save = run(&mut lab.node().command(lab.backend.tool(tool, "-save")))?;
    Ok(save.lines().any(|line| line == format!("-A DOCKER-USER {JUMP}")))
}

fn both(lab: &Lab, words: &str) -> Result<()> {
    TOOLS.into_iter().try_for_each(|tool| iptables(lab, tool, words))
}

fn iptables(lab: &Lab, tool: &str, words: &str) -> Result<()> {
    run(lab.node().command(lab.backend.tool(tool, "")).arg("--wait").args(words.split(' '))).map(drop)
}
