//! Stories on a real swarm of three engines: `make test-swarm`.
//!
//! The lab is booted once, by the first story that asks for it; stories go one after the other, each from a clean
//! slate.

#![expect(clippy::print_stderr, reason = "how long the lab took belongs into the output")]

mod boot;
mod cause;
mod compose;
mod engine_nft;
mod expect;
mod fleet;
mod host;
mod images;
mod ingress;
mod inside;
mod lab;
mod neighbour;
mod newcomer;
mod outside;
mod path;
mod posture;
mod published;
mod revert;
mod sessions;
mod stack;
mod swarm;

use std::{
    process::{ExitCode, exit},
    sync::{Arc, OnceLock},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow};
use deadlight_tests::{engine::Engine, scratch};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{SigSet, Signal};

use crate::{
    lab::{NODES, Node},
    swarm::Swarm,
};

type OfTheSwarm = fn(&Swarm) -> Result<()>;
type OfAnEngine = fn(Engine) -> Result<()>;
type OfANode = fn(&Swarm, &'static Node) -> Result<()>;

/// Told once.
const OF_THE_SWARM: &[(&str, OfTheSwarm)] = &[
    ("ingress::closed_through_every_node", ingress::closed_through_every_node),
    ("ingress::stays_closed_whatever_docker_does", ingress::stays_closed_whatever_docker_does),
    ("ingress::closed_where_forward_accepts", ingress::closed_where_forward_accepts),
    ("ingress::a_stale_rule_is_closed", ingress::a_stale_rule_is_closed),
    ("inside::services_and_gateways_go_on", inside::services_and_gateways_go_on),
    ("sessions::fall_silent_both_ways", sessions::fall_silent_both_ways),
    ("host::control_ports_are_reported", host::control_ports_are_reported),
    ("host::control_ports_are_for_the_swarm_alone", host::control_ports_are_for_the_swarm_alone),
    ("host::an_open_docker_api", host::an_open_docker_api),
    ("posture::closes_what_nobody_reported", posture::closes_what_nobody_reported),
    ("cause::of_a_port_that_no_service_publishes", cause::of_a_port_that_no_service_publishes),
    ("boot::a_closed_port_answers_no_syn", boot::a_closed_port_answers_no_syn),
    ("stack::closes_and_stays_closed", stack::closes_and_stays_closed),
    ("compose::as_printed", compose::as_printed),
    ("path::as_printed", path::as_printed),
];

/// Told of each node, which is to say of each engine.
const OF_EACH_NODE: &[(&str, OfANode)] = &[
    ("published::docker_run", published::docker_run),
    ("published::mode_host", published::mode_host),
    ("host::container_on_the_host_network", host::container_on_the_host_network),
    ("host::plain_process", host::plain_process),
    ("neighbour::reaches_no_container", neighbour::reaches_no_container),
    ("neighbour::reaches_no_loopback_publish", neighbour::reaches_no_loopback_publish),
    ("revert::leaves_no_trace", revert::leaves_no_trace),
];

/// Told of each newer engine, in namespaces; these need no lab.
const OF_EACH_ENGINE: &[(&str, OfAnEngine)] = &[
    ("engine_nft::stays_closed", engine_nft::stays_closed),
    ("engine_nft::revert_leaves_no_trace", engine_nft::revert_leaves_no_trace),
];

/// Booted when the first story asks for it.
type Lab = OnceLock<Result<Swarm, String>>;

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    end_with_the_lab_down()?;
    let lab = Arc::new(Lab::new());
    let of_the_swarm = OF_THE_SWARM.iter().map(|&(name, story)| (name.to_owned(), Box::new(story) as Story));
    let of_each_node = OF_EACH_NODE.iter().flat_map(|&(name, story)| {
        NODES.iter().map(move |node| {
            let story: Story = Box::new(move |swarm| story(swarm, node));
            (format!("{name}_{}", node.engine), story)
        })
    });
    let of_each_engine = OF_EACH_ENGINE.iter().flat_map(|&(name, story)| {
        [Engine::V26_1, Engine::V28_5]
            .map(|engine| Trial::test(format!("{name}_{engine}"), move || timed(|| story(engine))))
    });
    let of_the_lab = of_the_swarm.chain(of_each_node).map(|(name, story)| {
        let lab = Arc::clone(&lab);
        Trial::test(name, move || tell(&lab, &story))
    });
    let upgrade = Trial::test("engine_nft::is_upgraded", || timed(engine_nft::is_upgraded));
    let outside = Trial::test("outside::as_printed", || timed(outside::as_printed));
    let trials = of_each_engine.chain([upgrade, outside]).chain(of_the_lab).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(Arc::into_inner(lab).context("a story still holds the lab")?);
    Ok(conclusion.exit_code())
}

type Story = Box<dyn Fn(&Swarm) -> Result<()> + Send>;

fn tell(lab: &Lab, story: &Story) -> Result<(), Failed> {
    let swarm = lab.get_or_init(|| {
        let started = Instant::now();
        let booted = Swarm::boot().map_err(|error| format!("{error:#}"));
        eprint!("the lab {:.0?}, the story ", started.elapsed());
        booted
    });
    let swarm = swarm.as_ref().map_err(|error| format!("there is no lab: {error}"))?;
    timed(|| swarm.clean().and_then(|()| story(swarm)).map_err(|error| anyhow!("{error:#}\n\n{}", swarm.state())))
}

fn timed(story: impl FnOnce() -> Result<()>) -> Result<(), Failed> {
    let started = Instant::now();
    let told = story();
    eprint!("{:.0?} ", started.elapsed());
    told.map_err(|error| format!("{error:#}").into())
}

/// Ctrl-C and SIGTERM take the lab down as well, and the namespaces of a story without it.
fn end_with_the_lab_down() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("block signals")?;
    thread::spawn(move || {
        let signal = signals.wait();
        lab::take_down();
        if let Err(error) = scratch::sweep_own() {
            eprintln!("something is left behind: {error:#}");
        }
        eprintln!("ended by {signal:?}");
        exit(130);
    });
    Ok(())
}
