//! What UDP probes say: a table that comes as a file, and can be extended by one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use deadlight_shared::config;
use deadlight_shared::{PortSet, Protocol};
use serde::Deserialize;

/// The table that is built in.
const BUILTIN: &str = include_str!("payloads.toml");
/// Said to a port without an entry: an echo or a talkative service answers it.
const ANY: &[u8] = b"\r\n\r\n";
/// A datagram that needs no fragment on any path of IPv6.
const LONGEST: usize = 1_232;

/// Datagrams by port. Cheap to clone.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "File")]
pub struct Payloads(Arc<BTreeMap<u16, Vec<Arc<[u8]>>>>);

impl Payloads {
    /// The built-in table.
    pub fn builtin() -> Self {
        config::parse(BUILTIN, Path::new("payloads.toml")).unwrap_or_default()
    }

    /// This table behind `first`.
    pub fn extended_by(&self, first: &Self) -> Self {
        let mut table = first.0.as_ref().clone();
        for (port, datagrams) in self.0.iter() {
            table.entry(*port).or_default().extend(datagrams.iter().cloned());
        }
        Self(Arc::new(table))
    }

    /// What attempt number `attempt`, counted from 1, says to `port`: its entries in turn.
    pub fn of(&self, port: u16, attempt: u32) -> &[u8] {
        let datagrams = self.0.get(&port).map(Vec::as_slice).unwrap_or_default();
        let turn = attempt.saturating_sub(1) as usize % datagrams.len().max(1);
        datagrams.get(turn).map_or(ANY, |datagram| datagram)
    }
}

impl From<File> for Payloads {
    fn from(file: File) -> Self {
        let mut table: BTreeMap<u16, Vec<Arc<[u8]>>> = BTreeMap::new();
        for Entry { ports, datagram } in file.payload {
            for port in ports.iter() {
                table.entry(port.number.get()).or_default().push(Arc::clone(&datagram));
            }
        }
        Self(Arc::new(table))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    payload: Vec<Entry>,
}

/// One entry, checked.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
struct Entry {
    ports: PortSet,
    datagram: Arc<[u8]>,
}

/// One entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    ports: String,
    text: Option<String>,
    hex: Option<String>,
}

impl TryFrom<Written> for Entry {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { name, ports, text, hex } = written;
        if name.trim().is_empty() {
            return Err("`name` is empty".to_owned());
        }
        let ports = PortSet::parse_with_default(&ports, Protocol::Udp).map_err(|error| format!("`ports`: {error}"))?;
        if !ports.ranges(Protocol::Tcp).is_empty() {
            return Err("`ports`: only UDP ports are asked with datagrams".to_owned());
        }
        let datagram = match (text, hex) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(hex)) => bytes(&hex).ok_or("`hex`: write two hexadecimal digits for each byte")?,
            _ => return Err("write either `text` or `hex`".to_owned()),
        };
        match datagram.len() {
            0..=LONGEST => Ok(Self { ports, datagram: datagram.into() }),
            length => Err(format!("{length} bytes are too many for one datagram: at most {LONGEST}")),
        }
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = hex
        .chars()
        .filter(|digit| !digit.is_whitespace())
        .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Payloads, String> {
        config::parse(text, Path::new("mine.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_built_in_table_reads_and_its_messages_are_whole() {
        let table = parse(BUILTIN).unwrap();
        assert!(table.0.len() >= 20, "{}", table.0.len());
        assert_eq!(table.of(53, 1)[4..6], [0, 1], "one question");
        assert_eq!((table.of(123, 1).len(), table.of(123, 1)[0]), (48, 0x23));
        let (v1, v3) = (table.of(161, 1), table.of(161, 2));
        assert_ne!(v1, v3, "they take turns");
        assert_eq!(table.of(161, 3), v1);
        for message in [v1, v3, table.of(389, 1)] {
            assert_eq!((message[0], usize::from(message[1]) + 2), (0x30, message.len()), "a BER sequence");
        }
        let quic = table.of(443, 1);
        assert_eq!((quic.len(), quic[0] & 0xc0), (1_200, 0xc0));
        assert!(quic[1..5].iter().all(|byte| byte & 0x0f == 0x0a), "a version that is reserved for this");
        assert_eq!(table.of(500, 1)[24..28], u32::try_from(table.of(500, 1).len()).unwrap().to_be_bytes());
        assert_eq!(table.of(4_789, 1), ANY);
        assert_eq!(Payloads::builtin().0, table.0);
    }

    #[test]
    fn a_users_entries_go_first() {
        let mine = parse("[[payload]]\nname = \"x\"\nports = \"53,9000-9001\"\ntext = \"hi\\n\"\n").unwrap();
        let table = Payloads::builtin().extended_by(&mine);
        assert_eq!((table.of(53, 1), table.of(9_001, 7)), (&b"hi\n"[..], &b"hi\n"[..]));
        assert_eq!(table.of(53, 2), Payloads::builtin().of(53, 1));
    }

    #[test]
    fn bad_entries_are_refused_by_line() {
        for (entry, wanted) in [
            ("ports = \"53\"\ntext = \"x\"", "missing field `name`"),
            ("name = \"\"\nports = \"53\"\ntext = \"x\"", "`name` is empty"),
            ("name = \"x\"\nports = \"0\"\ntext = \"x\"", "port 0 is out of range"),
            ("name = \"x\"\nports = \"53/tcp\"\ntext = \"x\"", "only UDP"),
            ("name = \"x\"\nports = \"53\"", "either `text` or `hex`"),
            ("name = \"x\"\nports = \"53\"\ntext = \"x\"\nhex = \"00\"", "either `text` or `hex`"),
            ("name = \"x\"\nports = \"53\"\nhex = \"0\"", "two hexadecimal digits"),
            ("name = \"x\"\nports = \"53\"\nhex = \"zz\"", "two hexadecimal digits"),
            ("name = \"x\"\nport = \"53\"\nhex = \"00\"", "did you mean `ports`?"),
        ] {
            let text = parse(&format!("# a comment\n[[payload]]\n{entry}\n")).unwrap_err();
            assert!(text.starts_with("mine.toml, line ") && text.contains(wanted), "{entry}: {text}");
        }
        let long = format!("[[payload]]\nname = \"x\"\nports = \"53\"\nhex = \"{}\"", "00".repeat(LONGEST + 1));
        assert!(parse(&long).unwrap_err().contains("1233 bytes are too many"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,300}", name in "[a-z\"\\\\]{0,5}", ports in "[0-9,/a-z-]{0,9}", hex in "[0-9a-fg ]{0,9}") {
            let _read = parse(&text);
            let _entry = parse(&format!("[[payload]]\nname = \"{name}\"\nports = \"{ports}\"\nhex = \"{hex}\"\n"));
        }
    }
}
