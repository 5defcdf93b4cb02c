//! What must go on working while everything is shut to the outside.

use anyhow::{Result, ensure};
use deadlight_tests::wait::wait_for;

use crate::{
    expect::{self, Protocol::Tcp},
    lab::{NODES, Node},
    swarm::{PATIENCE, Swarm},
};

/// A service calls another, over its virtual address and across nodes; a container calls the gateway of its bridge.
pub(crate) fn services_and_gateways_go_on(swarm: &Swarm) -> Result<()> {
    swarm.manage("docker network inspect backend >/dev/null 2>&1 || docker network create --driver overlay backend")?;
    let place = |node: &Node| format!("--network backend --constraint node.hostname=={}", node.name);
    let stats = format!("--publish 8080:8080 {}", place(&NODES[0]));
    swarm.create_service("stats", &stats, "httpd -f -h /www -p 8080")?;
    for (name, node) in [("front-b", &NODES[1]), ("front-c", &NODES[2])] {
        swarm.create_service(name, &place(node), "sleep 100000")?;
    }
    expect::ingress_open(swarm, Tcp, 8080)?;
    let clients = [(swarm.place_of("front-b")?, "front-b"), (swarm.place_of("front-c")?, "front-c")];
    let network = swarm.manage("docker network inspect --format '{{.ID}}' backend")?;
    let format = format!(
        "{{{{range .Endpoint.VirtualIPs}}}}{{{{if eq .NetworkID \"{}\"}}}}{{{{.Addr}}}}{{{{end}}}}{{{{end}}}}",
        network.trim()
    );
    let address = swarm.manage(&format!("docker service inspect --format '{format}' stats"))?;
    let address = address.split('/').next().unwrap_or_default().to_owned();

    let all_work = || -> Result<()> {
        for (node, name) in clients {
            let pid = swarm.pid(node, &format!("label=com.docker.swarm.service.name={name}"))?;
            for host in [address.as_str(), "172.18.0.1"] {
                let get = format!("nsenter -t {pid} -n busybox wget -q -T 3 -O - http://{host}:8080/");
                let page = swarm.on(node, &get)?;
                ensure!(page == "hello\n", "{name} to {host}: {page:?}");
            }
        }
        Ok(())
    };
    // An emulated node may be too slow for one of many questions.
    let works = |what| wait_for(what, PATIENCE, || all_work().map_err(|error| format!("{error:#}")));
    works("the overlay network")?;
    swarm.fleet.close(swarm.lab())?;
    expect::closed_everywhere(swarm, Tcp, 8080)?;
    works("the overlay network when all is closed")
}
