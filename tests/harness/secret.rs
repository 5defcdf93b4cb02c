//! Secrets, every form in which one could be printed, and a look through all that programs print and write.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD, Encoding};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};

use crate::programs::finish;

/// What ends the private half within the PKCS#8 of a P-256 key: an octet string of 32 bytes.
const SCALAR: [u8; 3] = [0x02, 0x01, 0x01];
/// What every such PKCS#8 begins with.
const PKCS8: [u8; 16] = [0x30, 0x81, 0x87, 0x02, 1, 0, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2];

/// Something that must not be seen.
#[derive(Debug, Clone)]
pub struct Secret {
    /// Whose it is.
    pub name: String,
    needles: Vec<String>,
    raw: Vec<u8>,
    /// Where it may be.
    homes: Vec<PathBuf>,
}

impl Secret {
    /// The key in a PEM file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of_key(&path.display().to_string(), &fs::read_to_string(path)?)
    }

    /// A private key (PEM).
    pub fn of_key(name: &str, pem: &str) -> Result<Self> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).context("read the key")?;
        let der = key.secret_pkcs8_der();
        let start = der.windows(3).rposition(|window| window == SCALAR).context("no EC key")? + 5;
        // Part of it is too much as well.
        let mut secret = Self::of_bytes(name, der.get(start..start + 12).context("a short key")?);
        let lines = pem.lines().filter(|line| !line.starts_with('-') && line.len() >= 16);
        secret.needles.extend(lines.flat_map(|line| [line[..16].to_owned(), line[line.len() - 16..].to_owned()]));
        // The first bytes are the same in every such key.
        secret.needles.retain(|needle| !needle.starts_with("MIGHAgEAMBMGByq"));
        secret.sees(&[pem.to_owned(), format!("{der:?}")])
    }

    /// Any private key of the kind that our programs make.
    pub fn any_key() -> Result<Self> {
        let mut secret = Self::of_bytes("a private key", &PKCS8);
        secret.needles.push("PRIVATE KEY".to_owned());
        secret.sees(&[rcgen::KeyPair::generate()?.serialize_pem()])
    }

    /// The secret of an enrolment line.
    pub fn of_line(line: &str) -> Result<Self> {
        let printed = line.rsplit(':').next().unwrap_or_default();
        let bytes = BASE64URL_NOPAD.decode(printed.as_bytes()).context("no secret in the line")?;
        ensure!(bytes.len() == 16, "a secret of {} bytes", bytes.len());
        // Half of it is too much as well.
        let (mut secret, end) = (Self::of_bytes("the line's secret", &bytes[..8]), Self::of_bytes("", &bytes[8..]));
        secret.needles.extend(end.needles);
        secret.needles.extend([printed[..11].to_owned(), printed[11..].to_owned()]);
        secret.sees(&[line.to_owned(), format!("{bytes:?}")])
    }

    /// It may be in this file, and only there.
    pub fn at_home_in(mut self, file: PathBuf) -> Self {
        self.homes.push(file);
        self
    }

    /// In which form it stands in `text`.
    pub fn shown_in(&self, text: &str) -> Option<&str> {
        self.needles.iter().map(String::as_str).find(|needle| text.contains(needle))
    }

    /// Whether it stands in a file, as text or as it is.
    fn stands_in(&self, bytes: &[u8]) -> bool {
        self.shown_in(&String::from_utf8_lossy(bytes)).is_some()
            || bytes.windows(self.raw.len()).any(|window| window == self.raw)
    }

    fn of_bytes(name: &str, bytes: &[u8]) -> Self {
        let joined =
            |separator: &str, one: fn(&u8) -> String| bytes.iter().map(one).collect::<Vec<_>>().join(separator);
        let mut needles = vec![
            joined("", |byte| format!("{byte:02x}")),
            joined("", |byte| format!("{byte:02X}")),
            joined(":", |byte| format!("{byte:02x}")),
            joined(" ", |byte| format!("{byte:02x}")),
            joined(", ", |byte| format!("{byte}")),
            joined(",", |byte| format!("{byte}")),
            joined(", ", |byte| format!("0x{byte:02x}")),
            joined(", ", |byte| format!("{byte:02x}")),
            bytes.escape_ascii().to_string(),
        ];
        needles.extend([BASE64_NOPAD, BASE64URL_NOPAD].iter().flat_map(|encoding| within(encoding, bytes)));
        Self { name: name.to_owned(), needles, raw: bytes.to_vec(), homes: Vec::new() }
    }

    /// Itself, if it is seen in each of `texts`, and in every form alone.
    fn sees(self, texts: &[String]) -> Result<Self> {
        for text in texts.iter().chain(&self.needles) {
            ensure!(self.shown_in(text).is_some() && text.len() >= 8, "{self:?} is blind to {text}");
        }
        Ok(self)
    }
}

/// The letters that `bytes` alone decide, wherever they begin in what is encoded.
fn within(encoding: &Encoding, bytes: &[u8]) -> impl Iterator<Item = String> {
    (0..3).map(move |before| {
        let text = encoding.encode(&[&[0; 2][..before], bytes].concat());
        let (first, end) = ((before * 8).div_ceil(6), (before + bytes.len()) * 8 / 6);
        text[first..end].to_owned()
    })
}

/// Looks through every output.
#[derive(Debug)]
pub struct Seen {
    /// What must not be there.
    pub secrets: Vec<Secret>,
    /// How many were looked through.
    pub outputs: usize,
}

impl Seen {
    /// Nothing yet.
    pub fn none_of(secrets: Vec<Secret>) -> Self {
        Self { secrets, outputs: 0 }
    }

    /// Runs `command` to its end, which is `code`; what it printed on standard output and standard error.
    pub fn ended(&mut self, mut command: Command, code: i32) -> Result<[String; 2]> {
        let ended = finish(&mut command)?.expect_code(code)?;
        self.text(&ended.stdout)?;
        self.text(&ended.stderr)?;
        Ok([ended.stdout, ended.stderr])
    }

    /// A text that anybody may read.
    pub fn text(&mut self, text: &str) -> Result<()> {
        self.outputs += 1;
        for secret in &self.secrets {
            let shown = secret.shown_in(text);
            ensure!(shown.is_none(), "{} is shown as {shown:?} in {text}", secret.name);
        }
        Ok(())
    }

    /// Every file below `directory`: each secret is in those where it may be, and in no other.
    pub fn files(&mut self, directory: &Path) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                self.files(&path)?;
                continue;
            }
            self.outputs += 1;
            let bytes = fs::read(&path)?;
            for secret in &self.secrets {
                let (stands, may) = (secret.stands_in(&bytes), secret.homes.contains(&path));
                ensure!(stands == may, "{} in {}: {stands}, not {may}", secret.name, path.display());
            }
        }
        Ok(())
    }
}
