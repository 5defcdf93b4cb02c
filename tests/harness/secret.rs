//! Private keys, and every form in which one could be printed.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};

/// What ends the private half within the PKCS#8 of a P-256 key: an octet string of 32 bytes.
const SCALAR: [u8; 3] = [0x02, 0x01, 0x01];

/// A private key that must not be seen.
#[derive(Debug)]
pub struct Secret {
    /// Whose it is.
    pub name: String,
    needles: Vec<String>,
}

impl Secret {
    /// The key in a PEM file.
    pub fn read(path: &Path) -> Result<Self> {
        let pem = std::fs::read_to_string(path)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).context("read the key")?;
        let der = key.secret_pkcs8_der();
        let start = der.windows(3).rposition(|window| window == SCALAR).context("no EC key")? + 5;
        // Part of it is too much as well.
        let scalar = der.get(start..start + 12).context("a short key")?;
        let joined =
            |separator: &str, one: fn(&u8) -> String| scalar.iter().map(one).collect::<Vec<_>>().join(separator);
        let lines = pem.lines().filter(|line| !line.starts_with('-') && line.len() >= 16);
        let mut needles: Vec<String> =
            lines.flat_map(|line| [line[..16].to_owned(), line[line.len() - 16..].to_owned()]).collect();
        needles.extend([
            joined("", |byte| format!("{byte:02x}")),
            joined("", |byte| format!("{byte:02X}")),
            joined(":", |byte| format!("{byte:02x}")),
            joined(" ", |byte| format!("{byte:02x}")),
            joined(", ", |byte| format!("{byte}")),
            joined(", ", |byte| format!("0x{byte:02x}")),
            scalar.escape_ascii().to_string(),
        ]);
        // The first bytes are the same in every such key.
        needles.retain(|needle| !needle.starts_with("MIGHAgEAMBMGByq"));
        let secret = Self { name: path.display().to_string(), needles };
        ensure!(
            secret.shown_in(&pem).is_some() && secret.shown_in(&format!("{der:?}")).is_some(),
            "{secret:?} is blind"
        );
        Ok(secret)
    }

    /// In which form it stands in `text`.
    pub fn shown_in(&self, text: &str) -> Option<&str> {
        self.needles.iter().map(String::as_str).find(|needle| text.contains(needle))
    }
}
