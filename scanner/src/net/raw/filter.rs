//! Which packets the kernel hands over: TCP segments to our source ports, and ICMP messages.

use socket2::SockFilter;

use crate::probe::SOURCE_PORTS;

/// Enough for the longest answer, an ICMPv6 message with the start of a packet in it; the rest of a
/// packet is cut off.
pub(super) const LONGEST: u16 = 256;

/// Opcodes of classic BPF (linux/filter.h).
mod op {
    pub(super) const LOAD_BYTE: u16 = 0x30;
    pub(super) const LOAD_HALF: u16 = 0x28;
    pub(super) const LOAD_HALF_INDEXED: u16 = 0x48;
    pub(super) const IPV4_HEADER_LENGTH_TO_INDEX: u16 = 0xb1;
    pub(super) const AND: u16 = 0x54;
    pub(super) const JUMP_IF_EQUAL: u16 = 0x15;
    pub(super) const JUMP_IF_ANY_BIT: u16 = 0x45;
    pub(super) const RETURN: u16 = 0x06;
}

const TCP: u32 = 6;
const ICMP: u32 = 1;
const ICMPV6: u32 = 58;
const NOT_ALL_PORTS: u32 = 0xffff ^ (SOURCE_PORTS as u32 - 1);

/// For IPv4 packets without link header, to the block of source ports that starts at `first`.
pub(super) fn ipv4(first: u16) -> [SockFilter; 11] {
    [
        step(op::LOAD_BYTE, 9),
        jump(op::JUMP_IF_EQUAL, ICMP, 7, 0),
        jump(op::JUMP_IF_EQUAL, TCP, 0, 7),
        // Only the first fragment has ports.
        step(op::LOAD_HALF, 6),
        jump(op::JUMP_IF_ANY_BIT, 0x1fff, 5, 0),
        step(op::IPV4_HEADER_LENGTH_TO_INDEX, 0),
        step(op::LOAD_HALF_INDEXED, 2),
        step(op::AND, NOT_ALL_PORTS),
        jump(op::JUMP_IF_EQUAL, first.into(), 0, 1),
        step(op::RETURN, LONGEST.into()),
        step(op::RETURN, 0),
    ]
}

/// For IPv6 packets without link header.
pub(super) fn ipv6(first: u16) -> [SockFilter; 8] {
    [
        step(op::LOAD_BYTE, 6),
        jump(op::JUMP_IF_EQUAL, ICMPV6, 4, 0),
        jump(op::JUMP_IF_EQUAL, TCP, 0, 4),
        step(op::LOAD_HALF, 42),
        step(op::AND, NOT_ALL_PORTS),
        jump(op::JUMP_IF_EQUAL, first.into(), 0, 1),
        step(op::RETURN, LONGEST.into()),
        step(op::RETURN, 0),
    ]
}

fn step(code: u16, k: u32) -> SockFilter {
    SockFilter::new(code, 0, 0, k)
}

fn jump(code: u16, k: u32, when_true: u8, when_false: u8) -> SockFilter {
    SockFilter::new(code, when_true, when_false, k)
}
