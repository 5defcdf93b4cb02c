//! The way to an address, as the kernel would take it: source address, interface, next hop.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use deadlight_shared::Port;
use deadlight_shared::hint::causes;
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{LinkAttribute, LinkLayerType};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

/// How long a next hop may take to say who it is; Linux gives up after three seconds.
const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(4);
const NEIGHBOUR_POLL: Duration = Duration::from_millis(10);
const ETHERNET: [[u8; 2]; 2] = [[0x08, 0x00], [0x86, 0xdd]];

/// How packets get to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The address they leave from.
    pub source: IpAddr,
    /// Index of the interface they leave through.
    pub interface: u32,
    /// The link header, where the link has one.
    pub header: Option<[u8; 14]>,
}

/// Why packets of our own cannot be sent to an address. The kernel's own connections may still get there.
#[derive(Debug, thiserror::Error)]
pub enum NoWay {
    /// The address is this host's.
    #[error("it is an address of this host")]
    Own,
    /// A link whose headers we cannot write.
    #[error("interface {0} is neither Ethernet nor a tunnel without link header")]
    Link(u32),
    /// No answer from the next hop.
    #[error("the next hop {0} does not say its link address")]
    Neighbour(IpAddr),
    /// The kernel knows no unicast route.
    #[error("no unicast route leads there")]
    Route,
    /// The kernel's answer could not be had.
    #[error("failed to ask the kernel for {what}")]
    Netlink {
        /// What was asked.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// Finds ways; remembers links and neighbours.
pub struct Ways {
    handle: Handle,
    links: HashMap<u32, Link>,
    neighbours: HashMap<(u32, IpAddr), [u8; 6]>,
}

/// What the kernel says about the direction of an address.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    interface: u32,
    hop: IpAddr,
    source: IpAddr,
    link: Link,
}

#[derive(Debug, Clone, Copy)]
enum Link {
    /// With our own address.
    Ethernet([u8; 6]),
    /// Packets go out as they are.
    Bare,
    Other,
}

impl Ways {
    /// Asks the kernel of this process's network namespace.
    pub fn new() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, links: HashMap::new(), neighbours: HashMap::new() })
    }

    /// The route to each of `targets`. Sends nothing to anyone but the kernel.
    pub async fn routes(&mut self, targets: &[(IpAddr, Port)]) -> Vec<Result<Route, NoWay>> {
        let mut routes = Vec::new();
        for (target, _) in targets {
            routes.push(self.route(*target).await);
        }
        routes
    }

    /// The way to each of `targets` along its route. Where the next hop is not known yet, the kernel is
    /// made to look for it by one connection attempt to the port; all of them are looked for at once.
    pub async fn along(
        &mut self,
        routes: Vec<Result<Route, NoWay>>,
        targets: &[(IpAddr, Port)],
    ) -> Vec<Result<Way, NoWay>> {
        self.find_neighbours(targets, &routes).await;
        routes.into_iter().zip(targets).map(|(route, (target, _))| self.way(*target, route?)).collect()
    }

    fn way(&self, target: IpAddr, route: Route) -> Result<Way, NoWay> {
        let Route { interface, hop, source, link } = route;
        let header = match link {
            Link::Other => return Err(NoWay::Link(interface)),
            Link::Bare => None,
            Link::Ethernet(own) => {
                let next = self.neighbours.get(&(interface, hop)).ok_or(NoWay::Neighbour(hop))?;
                let mut header = [0; 14];
                header[..6].copy_from_slice(next);
                header[6..12].copy_from_slice(&own);
                header[12..].copy_from_slice(&ETHERNET[usize::from(target.is_ipv6())]);
                Some(header)
            }
        };
        Ok(Way { source, interface, header })
    }

    /// Interface, next hop and source address.
    async fn route(&mut self, target: IpAddr) -> Result<Route, NoWay> {
        let request = match target {
            IpAddr::V4(target) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(target, 32).build(),
            IpAddr::V6(target) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(target, 128).build(),
        };
        let route = self
            .handle
            .route()
            .get(request)
            .execute()
            .try_next()
            .await
            .map_err(asking("a route"))?
            .ok_or(NoWay::Route)?;
        match route.header.kind {
            RouteType::Unicast => {}
            RouteType::Local => return Err(NoWay::Own),
            _ => return Err(NoWay::Route),
        }
        let (mut interface, mut hop, mut source) = (None, target, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::Gateway(address) => hop = ip(address).unwrap_or(hop),
                RouteAttribute::PrefSource(address) => source = ip(address),
                _ => {}
            }
        }
        let (interface, source) = interface.zip(source).ok_or(NoWay::Route)?;
        Ok(Route { interface, hop, source, link: self.link(interface).await? })
    }

    async fn link(&mut self, interface: u32) -> Result<Link, NoWay> {
        if let Some(link) = self.links.get(&interface) {
            return Ok(*link);
        }
        let mut found = self.handle.link().get().match_index(interface).execute();
        let message = found.try_next().await.map_err(asking("an interface"))?.ok_or(NoWay::Link(interface))?;
        let own = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(address) => <[u8; 6]>::try_from(address.as_slice()).ok(),
            _ => None,
        });
        let link = match (message.header.link_layer_type, own) {
            (LinkLayerType::Ether, Some(own)) => Link::Ethernet(own),
            (LinkLayerType::None | LinkLayerType::Ppp | LinkLayerType::Rawip, _) => Link::Bare,
            _ => Link::Other,
        };
        self.links.insert(interface, link);
        Ok(link)
    }

    /// Fills in the link addresses of all next hops that say theirs in time.
    async fn find_neighbours(&mut self, targets: &[(IpAddr, Port)], routes: &[Result<Route, NoWay>]) {
        let mut missing = BTreeMap::new();
        for (route, target) in routes.iter().zip(targets) {
            if let Ok(Route { interface, hop, link: Link::Ethernet(_), .. }) = route {
                missing.insert((*interface, *hop), *target);
            }
        }
        let began = Instant::now();
        let mut searched = false;
        loop {
            if let Err(error) = self.read_neighbours().await {
                tracing::warn!("{}", causes(&error));
                return;
            }
            missing.retain(|hop, _| !self.neighbours.contains_key(hop));
            if missing.is_empty() || began.elapsed() > NEIGHBOUR_LIMIT {
                return;
            }
            if !std::mem::replace(&mut searched, true) {
                for (address, port) in missing.values() {
                    // Whatever comes of it: the kernel has to find the next hop to send it.
                    let _asked = super::ask(*address, *port, &[], Duration::ZERO).await;
                }
            }
            tokio::time::sleep(NEIGHBOUR_POLL).await;
        }
    }

    async fn read_neighbours(&mut self) -> Result<(), NoWay> {
        let mut messages = self.handle.neighbours().get().execute();
        while let Some(message) = messages.try_next().await.map_err(asking("the neighbour table"))? {
            let (mut address, mut link) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                        address = Some(IpAddr::V4(*found));
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                        address = Some(IpAddr::V6(*found));
                    }
                    NeighbourAttribute::LinkLayerAddress(found) => link = <[u8; 6]>::try_from(found.as_slice()).ok(),
                    _ => {}
                }
            }
            // What is being looked for, or was not found, has no valid link address.
            let known = !matches!(message.header.state, NeighbourState::Incomplete | NeighbourState::Failed);
            if let (Some(address), Some(link), true) = (address, link, known) {
                self.neighbours.insert((message.header.ifindex, address), link);
            }
        }
        Ok(())
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn asking(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> NoWay {
    move |error| match error {
        // That is how the kernel says that a route is of the type unreachable, or is not there.
        rtnetlink::Error::NetlinkError(message) if what == "a route" && message.code.is_some() => NoWay::Route,
        error => NoWay::Netlink { what, source: io::Error::other(error.to_string()) },
    }
}
