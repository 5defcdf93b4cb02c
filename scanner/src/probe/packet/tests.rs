use super::*;
use pnet::packet::icmp::MutableIcmpPacket;
use pnet::packet::icmpv6::MutableIcmpv6Packet;
use pnet::packet::tcp::TcpOptionNumbers;
use proptest::prelude::*;

/// The ends of some SYN to `target`.
pub(crate) fn ends(target: IpAddr) -> Ends {
    let source = match target {
        IpAddr::V4(target) => Ipv4Addr::from_bits(target.to_bits() ^ 0x80).into(),
        IpAddr::V6(target) => Ipv6Addr::from_bits(target.to_bits() ^ 0x80).into(),
    };
    Ends { source, source_port: 61_000, target, target_port: 80 }
}

/// The ends and the sequence number of a SYN that [`Syn::write`] made.
pub(crate) fn read_syn(packet: &[u8]) -> (Ends, u32) {
    let segment = TcpPacket::new(segment(packet)).unwrap();
    let (source, target) = match packet[0] >> 4 {
        4 => {
            let ip = Ipv4Packet::new(packet).unwrap();
            (ip.get_source().into(), ip.get_destination().into())
        }
        _ => {
            let ip = Ipv6Packet::new(packet).unwrap();
            (ip.get_source().into(), ip.get_destination().into())
        }
    };
    let (source_port, target_port) = (segment.get_source(), segment.get_destination());
    (Ends { source, source_port, target, target_port }, segment.get_sequence())
}

/// The packet that [`Answer::read`] reads as `answer`.
pub(crate) fn answer(answer: &Answer) -> Vec<u8> {
    let syn = Syn { ends: answer.ends, sequence: answer.sequence };
    match answer.kind {
        AnswerKind::SynAck => replied(&syn, TcpFlags::SYN | TcpFlags::ACK),
        AnswerKind::Reset => replied(&syn, TcpFlags::RST | TcpFlags::ACK),
        AnswerKind::Unreachable => unreachable(&syn, 8),
    }
}

fn written(syn: &Syn) -> Vec<u8> {
    let mut buffer = [0xff; LONGEST];
    let length = syn.write(&mut buffer).unwrap();
    buffer[..length].to_vec()
}

/// The segment within a packet of our own.
fn segment(packet: &[u8]) -> &[u8] {
    &packet[packet.len() - TCP_HEADER..]
}

/// What the target's kernel would send back: the ends exchanged, `flags`, and one more acknowledged.
fn replied(syn: &Syn, flags: u8) -> Vec<u8> {
    let Ends { source, source_port, target, target_port } = syn.ends;
    let back = Ends { source: target, source_port: target_port, target: source, target_port: source_port };
    let mut packet = written(&Syn { ends: back, sequence: 99 });
    let start = packet.len() - TCP_HEADER;
    let mut segment = MutableTcpPacket::new(&mut packet[start..]).unwrap();
    segment.set_flags(flags);
    segment.set_acknowledgement(syn.sequence.wrapping_add(1));
    packet
}

/// The ICMP message that quotes the first bytes of `syn`.
fn unreachable(syn: &Syn, quoted: usize) -> Vec<u8> {
    let router = Ends { target: syn.ends.source, ..syn.ends };
    let mut packet = written(&Syn { ends: router, sequence: 0 });
    let header = packet.len() - TCP_HEADER;
    packet.truncate(header);
    packet.extend([0; 8]);
    match syn.ends.target {
        IpAddr::V4(_) => {
            MutableIcmpPacket::new(&mut packet[header..]).unwrap().set_icmp_type(IcmpTypes::DestinationUnreachable);
            packet.extend(&written(syn)[..IPV4_HEADER + quoted]);
            let length = u16::try_from(packet.len()).unwrap();
            let mut ip = MutableIpv4Packet::new(&mut packet).unwrap();
            ip.set_next_level_protocol(IpNextHeaderProtocols::Icmp);
            ip.set_total_length(length);
        }
        IpAddr::V6(_) => {
            let mut icmp = MutableIcmpv6Packet::new(&mut packet[header..]).unwrap();
            icmp.set_icmpv6_type(Icmpv6Types::DestinationUnreachable);
            packet.extend(&written(syn)[..IPV6_HEADER + quoted]);
            let length = u16::try_from(packet.len() - IPV6_HEADER).unwrap();
            let mut ip = MutableIpv6Packet::new(&mut packet).unwrap();
            ip.set_next_header(IpNextHeaderProtocols::Icmpv6);
            ip.set_payload_length(length);
        }
    }
    packet
}

fn any_syn() -> impl Strategy<Value = Syn> {
    (any::<IpAddr>(), any::<u16>(), any::<u16>(), any::<u32>()).prop_map(
        |(target, source_port, target_port, sequence)| Syn {
            ends: Ends { source_port, target_port, ..ends(target) },
            sequence,
        },
    )
}

proptest! {
    #[test]
    fn what_is_built_can_be_read(syn in any_syn()) {
        let packet = written(&syn);
        let segment = TcpPacket::new(segment(&packet)).unwrap();
        prop_assert_eq!((segment.get_source(), segment.get_destination()), (syn.ends.source_port, syn.ends.target_port));
        prop_assert_eq!((segment.get_sequence(), segment.get_flags()), (syn.sequence, TcpFlags::SYN));
        let sum = match (syn.ends.source, syn.ends.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let ip = Ipv4Packet::new(&packet).unwrap();
                prop_assert_eq!((ip.get_source(), ip.get_destination()), (source, target));
                prop_assert_eq!(ip.get_checksum(), ipv4::checksum(&ip));
                tcp::ipv4_checksum(&segment, &source, &target)
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let ip = Ipv6Packet::new(&packet).unwrap();
                prop_assert_eq!((ip.get_source(), ip.get_destination()), (source, target));
                tcp::ipv6_checksum(&segment, &source, &target)
            }
            _ => unreachable!(),
        };
        prop_assert_eq!(segment.get_checksum(), sum);
        prop_assert_eq!(Answer::read(&packet), None, "a SYN is no answer");
    }

    #[test]
    fn every_answer_leads_back_to_its_syn(syn in any_syn(), quoted in 8..TCP_HEADER) {
        for (packet, kind) in [
            (replied(&syn, TcpFlags::SYN | TcpFlags::ACK), AnswerKind::SynAck),
            (replied(&syn, TcpFlags::SYN | TcpFlags::ACK | TcpFlags::ECE), AnswerKind::SynAck),
            (replied(&syn, TcpFlags::RST | TcpFlags::ACK), AnswerKind::Reset),
            (unreachable(&syn, quoted), AnswerKind::Unreachable),
        ] {
            let answer = Answer { ends: syn.ends, sequence: syn.sequence, kind };
            prop_assert_eq!(Answer::read(&packet), Some(answer));
            for length in 0..packet.len() {
                prop_assert_eq!(Answer::read(&packet[..length]).filter(|read| *read != answer), None);
            }
        }
        prop_assert_eq!(Answer::read(&unreachable(&syn, 7)), None);
        for flags in [TcpFlags::ACK, TcpFlags::RST, TcpFlags::FIN | TcpFlags::ACK, TcpFlags::SYN, 0] {
            prop_assert_eq!(Answer::read(&replied(&syn, flags)), None);
        }
    }

    #[test]
    fn hostile_bytes_do_not_panic(mut packet in prop::collection::vec(any::<u8>(), 0..120), version in prop::sample::select(vec![0x45_u8, 0x4f, 0x60, 0x00])) {
        if let Some(first) = packet.first_mut() {
            *first = version;
        }
        let _read = Answer::read(&packet);
    }
}

#[test]
fn the_options_are_what_they_should_be() {
    let packet = written(&Syn { ends: ends(Ipv4Addr::new(198, 51, 100, 11).into()), sequence: 3 });
    let segment = TcpPacket::new(segment(&packet)).unwrap();
    let kinds: Vec<_> = segment.get_options_iter().map(|option| option.get_number()).collect();
    use TcpOptionNumbers::{MSS, NOP, SACK_PERMITTED, TIMESTAMPS, WSCALE};
    assert_eq!(kinds, [MSS, SACK_PERMITTED, TIMESTAMPS, NOP, WSCALE]);
}

#[test]
fn two_families_make_no_packet() {
    let mixed = Ends { source: Ipv4Addr::LOCALHOST.into(), ..ends(Ipv6Addr::LOCALHOST.into()) };
    assert_eq!(Syn { ends: mixed, sequence: 0 }.write(&mut [0; LONGEST]), None);
    assert_eq!(
        Syn { ends: ends(Ipv4Addr::new(198, 51, 100, 11).into()), sequence: 0 }.write(&mut [0; LONGEST - 1]),
        None
    );
}

/// Ten million frames take half a minute without optimisation; `make bench` and the fuzz target go further.
#[test]
fn a_million_hostile_frames_do_not_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut frame = [0; 96];
    for round in 0..1_000_000_u32 {
        for chunk in frame.chunks_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            chunk.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
        }
        // Headers that look right lead deeper.
        frame[0] = if round % 2 == 0 { 0x45 } else { 0x60 };
        frame[9] = if round % 4 < 2 { 6 } else { 1 };
        frame[6] = if round % 4 == 1 { 58 } else { frame[6] };
        (frame[2], frame[3]) = (0, 96);
        let _read = Answer::read(&frame[..usize::from(frame[95]) % 97]);
    }
}
