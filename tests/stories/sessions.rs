//! Sessions that are open at the moment of closing fall silent, both ways, within a second.

use std::time::{Duration, Instant};

use anyhow::Result;
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy,
        Layout::{self, V20_10, V28},
    },
    lab::{
        Family::{self, V4, V6},
        HOST, INGRESS, INGRESS_UDP, Lab, RUN,
    },
    order,
    session::Session,
};

const WITHIN: Duration = Duration::from_secs(1);

#[test]
fn fall_silent_v20_10_nft_ipv4() -> Result<()> {
    fall_silent(V20_10, Nft, V4)
}

#[test]
fn fall_silent_v20_10_nft_ipv6() -> Result<()> {
    fall_silent(V20_10, Nft, V6)
}

#[test]
fn fall_silent_v28_legacy_ipv4() -> Result<()> {
    fall_silent(V28, Legacy, V4)
}

#[test]
fn fall_silent_v28_legacy_ipv6() -> Result<()> {
    fall_silent(V28, Legacy, V6)
}

fn fall_silent(layout: Layout, backend: Backend, family: Family) -> Result<()> {
    let lab = Lab::new(layout, backend, ForwardPolicy::Accept)?;
    let deployment = Deployment::new(&Settings::default())?;
    let _agent = deployment.start_agent(&lab.wire)?;

    let inet = lab.inet();
    let mut ports = vec![(family, "tcp", HOST), (family, "udp", HOST)];
    let mut sessions = vec![
        Session::tcp(inet, family.node(HOST), lab.host(family))?,
        Session::udp(inet, family.node(HOST), lab.host_udp(family))?,
    ];
    match family {
        V4 => {
            ports.extend([(family, "tcp", INGRESS), (family, "udp", INGRESS_UDP)]);
            sessions.push(Session::tcp(inet, family.node(INGRESS), &lab.ingress)?);
            sessions.push(Session::udp(inet, family.node(INGRESS_UDP), &lab.ingress_udp)?);
        }
        V6 => {
            ports.push((family, "tcp", RUN));
            sessions.push(Session::tcp(inet, family.node(RUN), &lab.proxy)?);
        }
    }

    order::enforce(&deployment, &lab.wire, 1, &ports)?;
    let closed = Instant::now();
    sessions.iter().try_for_each(|session| session.ensure_silent(closed, WITHIN))
}

/// Nothing on this node tracks IPv6 before the guard does, so the first packet it sees may be the server's.
#[test]
fn a_tcp_session_older_than_all_tracking_falls_silent() -> Result<()> {
    let lab = Lab::new(V20_10, Nft, ForwardPolicy::Drop)?;
    let deployment = Deployment::node_only(&Settings::default())?;
    let session = Session::tcp(lab.inet(), V6.node(RUN), &lab.proxy)?;
    deployment.agent(&lab.wire, &["harden", "--allow=80/tcp", "--once"])?.expect_code(0)?;
    session.ensure_silent(Instant::now(), WITHIN)
}
