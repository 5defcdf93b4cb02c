//! TCP sessions that connection tracking holds the wrong way round.
//!
//! A session that is older than all tracking is picked up in the middle. When the first packet seen
//! is the server's, the kernel takes the node for the one who began it, and the guard lets it pass
//! as the node's own. The guard never lets such an entry come to be for a closed port; those that
//! came to be before must be forgotten once.

use std::net::IpAddr;

use deadlight_shared::{PortSet, Protocol};

use crate::inventory::{Flow, Listener};

/// Flows that seem to leave the node from a closed port on which the node listens. A connection that
/// the node began gets no such local port, unless its program insists (SO_REUSEPORT).
pub fn reversed<'a>(
    flows: &'a [Flow],
    listeners: &'a [Listener],
    addresses: &'a [IpAddr],
    closed: &'a PortSet,
) -> impl Iterator<Item = &'a Flow> {
    flows.iter().filter(move |flow| {
        let from = |listener: &Listener| {
            listener.port.protocol == flow.protocol
                && listener.port.number.get() == flow.source.port()
                && closed.contains(listener.port)
                && listener.takes(Some(flow.source.ip()))
        };
        flow.protocol == Protocol::Tcp
            && addresses.contains(&flow.source.ip())
            && !addresses.contains(&flow.destination.ip())
            && listeners.iter().any(from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(protocol: Protocol, source: &str, destination: &str) -> Flow {
        let destination = destination.parse().unwrap();
        Flow { protocol, source: source.parse().unwrap(), destination, answers: destination }
    }

    #[test]
    fn only_sessions_of_a_closed_listener_are_reversed() {
        let listener = |port: &str, address: &str| Listener {
            port: port.parse().unwrap(),
            address: address.parse().unwrap(),
            process: None,
            is_hidden: false,
        };
        let listeners = [
            listener("9000/tcp", "::"),
            listener("9001/tcp", "::"),
            listener("9000/udp", "::"),
            listener("9002/tcp", "127.0.0.1"),
            listener("9003/udp", "::"),
        ];
        let addresses: Vec<IpAddr> = ["2001:db8::11", "198.51.100.11", "127.0.0.1"].map(|a| a.parse().unwrap()).into();
        let closed = "9000,9002,40000/tcp,9000/udp,9003/udp".parse().unwrap();
        let cases = [
            (flow(Protocol::Tcp, "[2001:db8::11]:9000", "[2001:db8::1]:5000"), true),
            (flow(Protocol::Tcp, "198.51.100.11:9000", "198.51.100.1:5000"), true),
            (flow(Protocol::Tcp, "[2001:db8::1]:5000", "[2001:db8::11]:9000"), false),
            (flow(Protocol::Tcp, "[2001:db8::11]:9001", "[2001:db8::1]:5000"), false),
            (flow(Protocol::Tcp, "[2001:db8::11]:40000", "[2001:db8::1]:443"), false),
            (flow(Protocol::Udp, "[2001:db8::11]:9000", "[2001:db8::1]:5000"), false),
            (flow(Protocol::Tcp, "[2001:db8::11]:9003", "[2001:db8::1]:5000"), false),
            (flow(Protocol::Tcp, "198.51.100.11:9002", "198.51.100.1:5000"), false),
            (flow(Protocol::Tcp, "198.51.100.11:9000", "127.0.0.1:5000"), false),
        ];
        for (flow, expected) in cases {
            let found = reversed(&[flow], &listeners, &addresses, &closed).count() == 1;
            assert_eq!(found, expected, "{flow:?}");
        }
    }
}
