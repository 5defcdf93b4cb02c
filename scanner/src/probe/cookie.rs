//! What ties an answer to a probe without remembering the probe: a keyed hash in sequence number
//! and source port.

use std::hash::Hasher as _;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

/// Different source ports in use.
pub const SOURCE_PORTS: u16 = 32;
/// Tags in the low byte of the sequence number; 0 is left out because some hosts answer one less.
const TAGS: u16 = 255;
/// Serial numbers that can be told apart at one target.
pub(super) const SERIALS: u16 = SOURCE_PORTS * TAGS;

/// A secret of this sweep, with the first of its [`SOURCE_PORTS`] source ports.
#[derive(Clone)]
pub struct Cookie {
    key: [u8; 16],
    first_port: u16,
}

impl Cookie {
    /// A cookie under `key`; probes leave from `first_port` and those after it.
    pub fn new(key: [u8; 16], first_port: u16) -> Self {
        Self { key, first_port }
    }

    /// Source port and sequence number of probe `serial` (below 8,160) to `port` of `address`.
    pub fn mark(&self, address: IpAddr, port: u16, serial: u16) -> (u16, u32) {
        let source = self.first_port + serial % SOURCE_PORTS;
        let tag = 1 + u32::from(serial / SOURCE_PORTS);
        (source, self.hash(address, port, source) | tag)
    }

    /// The serial number of the probe whose source port and sequence number came back; `None` when
    /// it is none of ours.
    pub fn serial(&self, address: IpAddr, port: u16, source: u16, sequence: u32) -> Option<u16> {
        let slot = source.checked_sub(self.first_port).filter(|slot| *slot < SOURCE_PORTS)?;
        let tag = u16::try_from(sequence & 0xff).ok().filter(|tag| *tag > 0)?;
        let ours = sequence & !0xff == self.hash(address, port, source);
        ours.then_some((tag - 1) * SOURCE_PORTS + slot)
    }

    /// The upper 24 bits of a sequence number.
    fn hash(&self, address: IpAddr, port: u16, source: u16) -> u32 {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        match address {
            IpAddr::V4(address) => hasher.write_u32(address.to_bits()),
            IpAddr::V6(address) => hasher.write_u128(address.to_bits()),
        }
        hasher.write_u32(u32::from(port) << 16 | u32::from(source));
        let [high, middle, low, ..] = hasher.finish().to_le_bytes();
        u32::from_be_bytes([high, middle, low, 0])
    }
}

/// The key stays out of logs.
impl std::fmt::Debug for Cookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cookie").field("first_port", &self.first_port).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> [IpAddr; 2] {
        ["198.51.100.11".parse().unwrap(), "2001:db8::11".parse().unwrap()]
    }

    #[test]
    fn a_mark_leads_back_to_its_serial() {
        let cookie = Cookie::new([7; 16], 61_000);
        for address in addresses() {
            for serial in 0..SERIALS {
                let (source, sequence) = cookie.mark(address, 443, serial);
                assert_eq!(cookie.serial(address, 443, source, sequence), Some(serial));
            }
        }
    }

    #[test]
    fn attempts_leave_from_different_source_ports() {
        let cookie = Cookie::new([7; 16], 61_000);
        let ports: std::collections::BTreeSet<_> =
            (0..SOURCE_PORTS).map(|serial| cookie.mark(addresses()[0], 80, serial).0).collect();
        assert_eq!(ports.len(), usize::from(SOURCE_PORTS));
    }

    #[test]
    fn a_guess_is_no_answer() {
        let (cookie, address) = (Cookie::new([7; 16], 61_000), addresses()[0]);
        let (source, sequence) = cookie.mark(address, 80, 5);
        assert_eq!(cookie.serial(address, 81, source, sequence), None);
        assert_eq!(cookie.serial(addresses()[1], 80, source, sequence), None);
        assert_eq!(cookie.serial(address, 80, source + 1, sequence), None);
        assert_eq!(cookie.serial(address, 80, 60_999, sequence), None);
        assert_eq!(cookie.serial(address, 80, source, sequence & !0xff), None, "no tag");
        assert_eq!(Cookie::new([8; 16], 61_000).serial(address, 80, source, sequence), None);
        let guesses =
            (0..=u32::MAX).step_by(65_537).filter(|guess| cookie.serial(address, 80, source, *guess).is_some());
        assert!(guesses.count() <= 1, "255 of 2^32 numbers are right");
    }
}
