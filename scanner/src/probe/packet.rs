//! SYN packets out, answers in: bytes of the network layer, without link header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet::packet::Packet as _;
use pnet::packet::icmp::{IcmpPacket, IcmpTypes};
use pnet::packet::icmpv6::{Icmpv6Packet, Icmpv6Types};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv4::{self, Ipv4Flags, Ipv4Packet, MutableIpv4Packet};
use pnet::packet::ipv6::{Ipv6Packet, MutableIpv6Packet};
use pnet::packet::tcp::{self, MutableTcpPacket, TcpFlags, TcpPacket};

/// The longest packet that is made.
pub const LONGEST: usize = IPV6_HEADER + TCP_HEADER;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = TCP_FIXED + OPTIONS.len();
const TCP_FIXED: usize = 20;
/// What Linux offers: maximum segment size 1460, selective acknowledgements, a time stamp, window
/// scaling by 7. Some firewalls treat a SYN without options as an attack.
const OPTIONS: [u8; 20] = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
const WINDOW: u16 = 64_240;
const HOPS: u8 = 64;
/// ICMP and ICMPv6 put this many bytes before the packet they quote.
const QUOTE: usize = 4;

/// Both ends of a probe, as the prober sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The address we ask from.
    pub source: IpAddr,
    /// The port we ask from.
    pub source_port: u16,
    /// The address we ask.
    pub target: IpAddr,
    /// The port we ask.
    pub target_port: u16,
}

/// The first packet of a TCP handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Syn {
    /// From where to where; both addresses are of one family.
    pub ends: Ends,
    /// The sequence number.
    pub sequence: u32,
}

/// What came back for a SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The ends of the SYN, seen from the prober.
    pub ends: Ends,
    /// The sequence number of the SYN.
    pub sequence: u32,
    /// What it says.
    pub kind: AnswerKind,
}

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// SYN and ACK: the port is open.
    SynAck,
    /// RST: the port is closed.
    Reset,
    /// ICMP: somebody on the way says that there is no way.
    Unreachable,
}

impl Syn {
    /// Writes the packet and returns its length; `None` where the addresses are of two families or
    /// `buffer` is shorter than [`LONGEST`].
    pub(super) fn write(&self, buffer: &mut [u8]) -> Option<usize> {
        let buffer = buffer.get_mut(..LONGEST)?;
        match (self.ends.source, self.ends.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => self.write_ipv4(source, target, buffer),
            (IpAddr::V6(source), IpAddr::V6(target)) => self.write_ipv6(source, target, buffer),
            _ => None,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "60 bytes, and any 16 bits will do as identification")]
    fn write_ipv4(&self, source: Ipv4Addr, target: Ipv4Addr, buffer: &mut [u8]) -> Option<usize> {
        let length = IPV4_HEADER + TCP_HEADER;
        let (header, rest) = buffer.get_mut(..length)?.split_at_mut(IPV4_HEADER);
        header.fill(0);
        let mut ip = MutableIpv4Packet::new(header)?;
        ip.set_version(4);
        ip.set_header_length(5);
        ip.set_total_length(length as u16);
        ip.set_identification(self.sequence as u16);
        ip.set_flags(Ipv4Flags::DontFragment);
        ip.set_ttl(HOPS);
        ip.set_next_level_protocol(IpNextHeaderProtocols::Tcp);
        ip.set_source(source);
        ip.set_destination(target);
        ip.set_checksum(ipv4::checksum(&ip.to_immutable()));
        let mut segment = self.write_tcp(rest)?;
        segment.set_checksum(tcp::ipv4_checksum(&segment.to_immutable(), &source, &target));
        Some(length)
    }

    #[expect(clippy::cast_possible_truncation, reason = "40 bytes")]
    fn write_ipv6(&self, source: Ipv6Addr, target: Ipv6Addr, buffer: &mut [u8]) -> Option<usize> {
        let (header, rest) = buffer.split_at_mut_checked(IPV6_HEADER)?;
        header.fill(0);
        let mut ip = MutableIpv6Packet::new(header)?;
        ip.set_version(6);
        ip.set_payload_length(TCP_HEADER as u16);
        ip.set_next_header(IpNextHeaderProtocols::Tcp);
        ip.set_hop_limit(HOPS);
        ip.set_source(source);
        ip.set_destination(target);
        let mut segment = self.write_tcp(rest)?;
        segment.set_checksum(tcp::ipv6_checksum(&segment.to_immutable(), &source, &target));
        Some(LONGEST)
    }

    #[expect(clippy::cast_possible_truncation, reason = "ten words")]
    fn write_tcp<'a>(&self, buffer: &'a mut [u8]) -> Option<MutableTcpPacket<'a>> {
        let (fixed, options) = buffer.split_at_mut_checked(TCP_FIXED)?;
        fixed.fill(0);
        options.copy_from_slice(&OPTIONS);
        let mut segment = MutableTcpPacket::new(buffer)?;
        segment.set_source(self.ends.source_port);
        segment.set_destination(self.ends.target_port);
        segment.set_sequence(self.sequence);
        segment.set_data_offset((TCP_HEADER / 4) as u8);
        segment.set_flags(TcpFlags::SYN);
        segment.set_window(WINDOW);
        Some(segment)
    }
}

impl Answer {
    /// Reads a packet of the network layer. Checksums are left to the kernel: on a virtual link they
    /// are not filled in yet when a packet is captured.
    pub fn read(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::read_ipv4(packet),
            6 => Self::read_ipv6(packet),
            _ => None,
        }
    }

    fn read_ipv4(packet: &[u8]) -> Option<Self> {
        let ip = Ipv4Packet::new(packet)?;
        let payload = ipv4_payload(&ip)?;
        let (from, to) = (ip.get_source().into(), ip.get_destination().into());
        match ip.get_next_level_protocol() {
            IpNextHeaderProtocols::Tcp => read_tcp(from, to, payload),
            IpNextHeaderProtocols::Icmp => {
                let icmp = IcmpPacket::new(payload)?;
                let dead_end =
                    matches!(icmp.get_icmp_type(), IcmpTypes::DestinationUnreachable | IcmpTypes::TimeExceeded);
                let quoted = Ipv4Packet::new(icmp.payload().get(QUOTE..)?).filter(|_| dead_end)?;
                let is_tcp = quoted.get_next_level_protocol() == IpNextHeaderProtocols::Tcp;
                let segment = packet_after(quoted.packet(), usize::from(quoted.get_header_length()) * 4)?;
                is_tcp.then(|| read_quote(quoted.get_source().into(), quoted.get_destination().into(), segment))?
            }
            _ => None,
        }
    }

    fn read_ipv6(packet: &[u8]) -> Option<Self> {
        let ip = Ipv6Packet::new(packet)?;
        let payload = packet.get(IPV6_HEADER..)?.get(..usize::from(ip.get_payload_length()))?;
        let (from, to) = (ip.get_source().into(), ip.get_destination().into());
        match ip.get_next_header() {
            IpNextHeaderProtocols::Tcp => read_tcp(from, to, payload),
            IpNextHeaderProtocols::Icmpv6 => {
                let icmp = Icmpv6Packet::new(payload)?;
                let dead_end =
                    matches!(icmp.get_icmpv6_type(), Icmpv6Types::DestinationUnreachable | Icmpv6Types::TimeExceeded);
                let quoted = Ipv6Packet::new(icmp.payload().get(QUOTE..)?).filter(|_| dead_end)?;
                let is_tcp = quoted.get_next_header() == IpNextHeaderProtocols::Tcp;
                let segment = packet_after(quoted.packet(), IPV6_HEADER)?;
                is_tcp.then(|| read_quote(quoted.get_source().into(), quoted.get_destination().into(), segment))?
            }
            _ => None,
        }
    }
}

/// The payload of an unfragmented packet, as long as its own header says.
fn ipv4_payload<'a>(ip: &'a Ipv4Packet<'a>) -> Option<&'a [u8]> {
    let header = usize::from(ip.get_header_length()) * 4;
    let fragment = ip.get_fragment_offset() > 0 || ip.get_flags() & Ipv4Flags::MoreFragments != 0;
    let whole = ip.packet().get(..usize::from(ip.get_total_length()))?;
    packet_after(whole, header).filter(|_| !fragment)
}

fn packet_after(packet: &[u8], header: usize) -> Option<&[u8]> {
    packet.get(header..).filter(|_| header >= IPV4_HEADER)
}

fn read_tcp(from: IpAddr, to: IpAddr, payload: &[u8]) -> Option<Answer> {
    let segment = TcpPacket::new(payload)?;
    let kind = match segment.get_flags() & (TcpFlags::SYN | TcpFlags::RST | TcpFlags::ACK) {
        flags if flags == TcpFlags::SYN | TcpFlags::ACK => AnswerKind::SynAck,
        flags if flags == TcpFlags::RST | TcpFlags::ACK => AnswerKind::Reset,
        _ => return None,
    };
    let (source_port, target_port) = (segment.get_destination(), segment.get_source());
    let ends = Ends { source: to, source_port, target: from, target_port };
    Some(Answer { ends, sequence: segment.get_acknowledgement().wrapping_sub(1), kind })
}

/// Reads the first eight bytes of our own SYN, which is all that an ICMP message must quote.
fn read_quote(source: IpAddr, target: IpAddr, segment: &[u8]) -> Option<Answer> {
    let &[a, b, c, d, e, f, g, h] = segment.first_chunk::<8>()?;
    let (source_port, target_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let ends = Ends { source, source_port, target, target_port };
    Some(Answer { ends, sequence: u32::from_be_bytes([e, f, g, h]), kind: AnswerKind::Unreachable })
}

#[cfg(test)]
pub(super) mod tests;
