//! Why dockerd writes no DOCKER-INGRESS on a kernel without IPVS, and the one lie that changes its mind.
//!
//! dockerd finds no generic-netlink family "IPVS", goes on with family id 0, and so sends each IPVS request as a
//! NLMSG_NOOP, which the kernel acknowledges. "Is there a service for this mark?" seems to be answered with yes, and
//! dockerd takes the ingress port for programmed. A kernel with IPVS would say ESRCH the first time.

use std::collections::BTreeSet;

const NLMSG_NOOP: u16 = 0;
const NLM_F_ACK: u16 = 4;
const GENL_MESSAGE: usize = 20;

const DEL_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const ATTR_SERVICE: u16 = 1;
const ATTR_FWMARK: u16 = 5;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The kernel may have it.
    Pass,
    /// It fails with ESRCH.
    NoSuchService,
}

/// The marks for which a service was asked before.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    known: BTreeSet<u32>,
}

impl Memory {
    /// Judges a netlink message by what was asked before.
    pub(crate) fn judge(&mut self, message: &[u8]) -> Verdict {
        match request(message) {
            Some((GET_SERVICE, mark)) if self.known.insert(mark) => Verdict::NoSuchService,
            Some((DEL_SERVICE, mark)) => {
                self.known.remove(&mark);
                Verdict::Pass
            }
            _ => Verdict::Pass,
        }
    }
}

/// The command and firewall mark of an IPVS request in NOOP's clothes.
fn request(message: &[u8]) -> Option<(u8, u32)> {
    let (header, attributes) = message.split_at_checked(GENL_MESSAGE)?;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let flags = u16::from_ne_bytes([header[6], header[7]]);
    if kind != NLMSG_NOOP || flags & NLM_F_ACK == 0 {
        return None;
    }
    let mark = attribute(attribute(attributes, ATTR_SERVICE)?, ATTR_FWMARK)?;
    Some((header[16], u32::from_ne_bytes(mark.try_into().ok()?)))
}

fn attribute(mut list: &[u8], wanted: u16) -> Option<&[u8]> {
    const NESTED_AND_BYTE_ORDER: u16 = 0xc000;
    loop {
        let header = list.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !NESTED_AND_BYTE_ORDER;
        let value = list.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        list = list.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(command: u8, kind: u16, mark: u32) -> Vec<u8> {
        let mut bytes = vec![0; GENL_MESSAGE];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&NLM_F_ACK.to_ne_bytes());
        bytes[16] = command;
        for (length, kind) in [(20_u16, ATTR_SERVICE | 0x8000), (6, 1)] {
            bytes.extend(length.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
        }
        // The address family, padded, and then the mark.
        bytes.extend([2, 0, 0, 0]);
        bytes.extend(8_u16.to_ne_bytes());
        bytes.extend(ATTR_FWMARK.to_ne_bytes());
        bytes.extend(mark.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_service_is_absent_once_until_it_is_deleted() {
        let mut memory = Memory::default();
        let ask = message(GET_SERVICE, NLMSG_NOOP, 256);
        assert_eq!(memory.judge(&ask), Verdict::NoSuchService);
        assert_eq!(memory.judge(&ask), Verdict::Pass);
        assert_eq!(memory.judge(&message(GET_SERVICE, NLMSG_NOOP, 257)), Verdict::NoSuchService);
        assert_eq!(memory.judge(&message(DEL_SERVICE, NLMSG_NOOP, 256)), Verdict::Pass);
        assert_eq!(memory.judge(&ask), Verdict::NoSuchService);
    }

    #[test]
    fn anything_else_passes() {
        let mut memory = Memory::default();
        assert_eq!(memory.judge(&message(GET_SERVICE, 26, 256)), Verdict::Pass);
        let ask = message(GET_SERVICE, NLMSG_NOOP, 256);
        for length in 0..ask.len() {
            assert_eq!(memory.judge(&ask[..length]), Verdict::Pass, "{length} bytes");
        }
    }
}
