//! Tracked flows, read by netlink: the entry of the scanner's own probe names the path it took.

use std::io;
use std::net::{IpAddr, SocketAddr};

use deadlight_shared::Protocol;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::conntrack::{self, ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_NETFILTER};

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

/// Why flows cannot be listed or forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The netlink socket fails.
    #[error("failed to ask the kernel for tracked flows")]
    Socket(#[source] io::Error),
    /// The kernel refuses: no permission, or no connection tracking.
    #[error("the kernel refuses to list or forget tracked flows")]
    Refused(#[source] io::Error),
    /// An answer that is no netlink message.
    #[error("failed to read the kernel's list of tracked flows: {0}")]
    Decode(String),
}

/// Lists the tracked TCP and UDP flows of both families.
pub fn dump() -> Result<Vec<Flow>, ConntrackError> {
    let mut flows = Vec::new();
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        dump_family(family, &mut flows)?;
    }
    Ok(flows)
}

/// Makes the kernel forget `flow`; one that is gone already is no error.
pub fn forget(flow: &Flow) -> Result<(), ConntrackError> {
    let request = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(original(flow))]);
    let socket = ask(family_of(flow.source.ip()), NLM_F_REQUEST | NLM_F_ACK, request)?;
    let (datagram, _) = socket.recv_from_full().map_err(ConntrackError::Socket)?;
    match decode(&datagram)?.payload {
        NetlinkPayload::Error(error) => match error.to_io() {
            gone if error.code.is_none() || gone.kind() == io::ErrorKind::NotFound => Ok(()),
            refused => Err(ConntrackError::Refused(refused)),
        },
        _ => Ok(()),
    }
}

fn dump_family(family: NetfilterProtoFamily, flows: &mut Vec<Flow>) -> Result<(), ConntrackError> {
    let socket = ask(family, NLM_F_REQUEST | NLM_F_DUMP, ConntrackMessage::Get(Vec::new()))?;
    loop {
        let (datagram, _) = socket.recv_from_full().map_err(ConntrackError::Socket)?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = decode(rest)?;
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(ConntrackError::Refused(error.to_io()));
                }
                NetlinkPayload::InnerMessage(message) => flows.extend(flow(message)),
                _ => {}
            }
            // Messages are aligned to four bytes; the last one of a datagram need not be.
            rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
        }
    }
}

fn ask(family: NetfilterProtoFamily, flags: u16, request: ConntrackMessage) -> Result<Socket, ConntrackError> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let request = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), request);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(ConntrackError::Socket)?;
    socket.bind_auto().map_err(ConntrackError::Socket)?;
    socket.connect(&NetlinkAddress::new(0, 0)).map_err(ConntrackError::Socket)?;
    socket.send(&bytes, 0).map_err(ConntrackError::Socket)?;
    Ok(socket)
}

fn decode(bytes: &[u8]) -> Result<NetlinkMessage<NetfilterMessage>, ConntrackError> {
    NetlinkMessage::deserialize(bytes).map_err(|error| ConntrackError::Decode(error.to_string()))
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
