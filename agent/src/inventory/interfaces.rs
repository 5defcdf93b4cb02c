//! The node's interfaces: which face the outside, and which addresses they hold.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{NetlinkError, exchange};

/// Interfaces with a default route, in either family and any table, each next hop of it: what faces
/// the outside unless the configuration says otherwise.
pub fn with_default_route() -> Result<BTreeSet<String>, NetlinkError> {
    let mut indexes = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        let request = RouteNetlinkMessage::GetRoute(all);
        exchange(NETLINK_ROUTE, NLM_F_REQUEST | NLM_F_DUMP, request, |answer| {
            if let RouteNetlinkMessage::NewRoute(route) = answer {
                indexes.extend(default_interfaces(&route));
            }
        })?;
    }
    let interfaces = pnet::datalink::interfaces().into_iter();
    let names = interfaces.filter(|interface| indexes.contains(&interface.index)).map(|interface| interface.name);
    names.map(|name| if is_valid_name(&name) { Ok(name) } else { Err(NetlinkError::Interface(name)) }).collect()
}

/// All addresses of the node with the interface that holds each.
pub fn addresses() -> Vec<(String, IpAddr)> {
    pnet::datalink::interfaces()
        .into_iter()
        .flat_map(|interface| {
            let name = interface.name;
            interface.ips.into_iter().map(move |net| (name.clone(), net.ip()))
        })
        .collect()
}

/// Whether `name` can be an interface name, and is safe inside a rule.
pub fn is_valid_name(name: &str) -> bool {
    (1..=15).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b))
}

/// The interfaces of a route, if it is a default route that leads somewhere.
fn default_interfaces(route: &RouteMessage) -> Vec<u32> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let interfaces = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    };
    route.attributes.iter().flat_map(interfaces).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::route::RouteNextHop;

    #[test]
    fn every_next_hop_of_a_default_route_counts() {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        let hop = |index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop
        };
        route.attributes = vec![RouteAttribute::Priority(9), RouteAttribute::MultiPath(vec![hop(2), hop(3)])];
        assert_eq!(default_interfaces(&route), [2, 3]);
        route.attributes = vec![RouteAttribute::Oif(7)];
        assert_eq!(default_interfaces(&route), [7]);
        route.header.kind = RouteType::Unreachable;
        assert!(default_interfaces(&route).is_empty());
        route.header.kind = RouteType::Unicast;
        route.header.destination_prefix_length = 8;
        assert!(default_interfaces(&route).is_empty());
    }

    #[test]
    fn names_are_safe_in_a_rule() {
        assert!(is_valid_name("eth0") && is_valid_name("bond0.100") && is_valid_name("br-lan"));
        for bad in ["", "eth0\"; flush", "a234567890123456", "eth 0", "{"] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }
}
