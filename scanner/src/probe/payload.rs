//! What a UDP probe says.

use deadlight_shared::Port;

/// A DNS query for the root's name servers.
const DNS: &[u8] = b"\x44\x4c\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01";
/// An NTP version 4 client request.
const NTP: &[u8] = &{
    let mut request = [0; 48];
    request[0] = 0x23;
    request
};
/// An SNMP version 1 request for sysDescr, community "public".
const SNMP: &[u8] = b"\x30\x26\x02\x01\x00\x04\x06public\xa0\x19\x02\x01\x01\x02\x01\x00\x02\x01\x00\x30\x0e\x30\x0c\x06\x08\x2b\x06\x01\x02\x01\x01\x01\x00\x05\x00";
/// Anything: an echo or a talkative service answers it.
const ANY: &[u8] = b"\r\n\r\n";

/// A table of datagrams.
#[derive(Debug, Clone)]
pub struct Payloads;

impl Payloads {
    /// The built-in table.
    pub fn builtin() -> Self {
        Self
    }

    /// What attempt `attempt` at `port` says.
    pub fn of(&self, port: u16, _attempt: u32) -> &[u8] {
        Port::new(deadlight_shared::Protocol::Udp, port).map_or(ANY, payload)
    }
}

/// The datagram most likely to be answered on `port`.
fn payload(port: Port) -> &'static [u8] {
    match port.number.get() {
        53 => DNS,
        123 => NTP,
        161 => SNMP,
        _ => ANY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_within_the_messages_agree() {
        assert_eq!(usize::from(SNMP[1]) + 2, SNMP.len());
        assert_eq!(NTP.len(), 48);
        assert_eq!(payload("53/udp".parse().unwrap()), DNS);
        assert_eq!(payload("4789/udp".parse().unwrap()), ANY);
    }
}
