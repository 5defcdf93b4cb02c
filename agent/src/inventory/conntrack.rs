//! Tracked flows, read by netlink: the entry of the scanner's own probe names the path it took.

use std::io;
use std::net::{IpAddr, SocketAddr};

use deadlight_shared::Protocol;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::conntrack::{self, ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{NetlinkError, exchange};

/// One flow, as both ends of the node see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Who asked.
    pub source: SocketAddr,
    /// Whom they asked: the published port.
    pub destination: SocketAddr,
    /// Who answers: ingress sandbox, container, or the node itself.
    pub answers: SocketAddr,
}

/// Lists those tracked TCP and UDP flows of both families that `keep` wants: a node may track
/// millions.
pub fn dump(keep: impl Fn(&Flow) -> bool) -> Result<Vec<Flow>, NetlinkError> {
    let mut flows = Vec::new();
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        let request = message(family, ConntrackMessage::Get(Vec::new()));
        exchange(NETLINK_NETFILTER, NLM_F_REQUEST | NLM_F_DUMP, request, |answer| {
            flows.extend(flow(answer).filter(&keep));
        })?;
    }
    Ok(flows)
}

/// Makes the kernel forget `flow`; one that is gone already is no error.
pub fn forget(flow: &Flow) -> Result<(), NetlinkError> {
    let delete = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(original(flow))]);
    let request = message(family_of(flow.source.ip()), delete);
    match exchange(NETLINK_NETFILTER, NLM_F_REQUEST | NLM_F_ACK, request, drop) {
        Err(NetlinkError::Refused(gone)) if gone.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn message(family: NetfilterProtoFamily, message: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

fn family_of(address: IpAddr) -> NetfilterProtoFamily {
    if address.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 }
}

fn original(flow: &Flow) -> Vec<Tuple> {
    let protocol = match flow.protocol {
        Protocol::Tcp => conntrack::Protocol::Tcp,
        Protocol::Udp => conntrack::Protocol::Udp,
    };
    vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(flow.source.ip()), IPTuple::DestinationAddress(flow.destination.ip())]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(protocol),
            ProtoTuple::SourcePort(flow.source.port()),
            ProtoTuple::DestinationPort(flow.destination.port()),
        ]),
    ]
}

fn flow(message: NetfilterMessage) -> Option<Flow> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else { return None };
    let tuple = |pick: fn(&ConntrackAttribute) -> Option<&Vec<Tuple>>| attributes.iter().find_map(pick);
    let original = tuple(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuple) => Some(tuple),
        _ => None,
    })?;
    let reply = tuple(|attribute| match attribute {
        ConntrackAttribute::CtaTupleReply(tuple) => Some(tuple),
        _ => None,
    })?;
    let (protocol, source, destination) = ends(original)?;
    let (_, answers, _) = ends(reply)?;
    Some(Flow { protocol, source, destination, answers })
}

/// Protocol, source and destination of one direction; none for other protocols than TCP and UDP.
fn ends(tuples: &[Tuple]) -> Option<(Protocol, SocketAddr, SocketAddr)> {
    let (mut source, mut destination): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let (mut source_port, mut destination_port, mut protocol) = (None, None, None);
    for tuple in tuples {
        match tuple {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(address) => source = Some(*address),
                IPTuple::DestinationAddress(address) => destination = Some(*address),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::Protocol(conntrack::Protocol::Tcp) => protocol = Some(Protocol::Tcp),
                ProtoTuple::Protocol(conntrack::Protocol::Udp) => protocol = Some(Protocol::Udp),
                ProtoTuple::SourcePort(port) => source_port = Some(*port),
                ProtoTuple::DestinationPort(port) => destination_port = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    Some((protocol?, SocketAddr::new(source?, source_port?), SocketAddr::new(destination?, destination_port?)))
}
