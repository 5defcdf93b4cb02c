//! The node's own connections work on, also from a local port whose number is closed.

use anyhow::{Context, Result};
use deadlight_tests::{
    deployment::{Deployment, Settings},
    docker_rules::{
        Backend::{self, Legacy, Nft},
        ForwardPolicy, Layout,
    },
    lab::{
        Family::{self, V4, V6},
        HOST, INGRESS, Lab, RUN,
    },
    order,
    outbound::connect_out,
    server::Server,
};

use crate::expect;

#[test]
fn from_a_closed_local_port_v26_nft_ipv4() -> Result<()> {
    from_a_closed_local_port(Nft, V4)
}

#[test]
fn from_a_closed_local_port_v26_nft_ipv6() -> Result<()> {
    from_a_closed_local_port(Nft, V6)
}

#[test]
fn from_a_closed_local_port_v26_legacy_ipv4() -> Result<()> {
    from_a_closed_local_port(Legacy, V4)
}

#[test]
fn from_a_closed_local_port_v26_legacy_ipv6() -> Result<()> {
    from_a_closed_local_port(Legacy, V6)
}

fn from_a_closed_local_port(backend: Backend, family: Family) -> Result<()> {
    let lab = Lab::new(Layout::V26, backend, ForwardPolicy::Drop)?;
    let deployment = Deployment::new(&Settings::default())?;
    let _agent = deployment.start_agent(&lab.wire)?;
    let ports = [INGRESS, RUN, HOST];
    order::enforce(&deployment, &lab.wire, 1, &ports.map(|port| (family, "tcp", port)))?;

    let web = Server::tcp(lab.inet(), (family.scanner(), 7000).into())?;
    for port in ports {
        connect_out(lab.node(), port, web.address()).with_context(|| format!("from local port {port}"))?;
    }
    expect::closed(&lab.wire, &ports.map(|port| (family, port)))
}
