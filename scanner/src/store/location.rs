//! Where the database is.

use std::fmt;
use std::path::{Path, PathBuf};

use reqwest::Url;

/// Where the database is. Shown without a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file of SQLite.
    File(PathBuf),
    /// A PostgreSQL server, by its URL.
    Server(Url),
}

/// The text names no database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`url` of [store] is neither like sqlite:deadlight.db nor like postgres://user@host/database")]
pub struct LocationError;

impl Location {
    /// Reads a URL; a file of SQLite is relative to `directory`.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, LocationError> {
        if let Some(file) = text.strip_prefix("sqlite:") {
            let file = file.strip_prefix("//").unwrap_or(file);
            let is_file = !file.is_empty() && !file.contains(['?', '#']) && file != ":memory:" && !file.ends_with('/');
            return is_file.then(|| Self::File(directory.join(file))).ok_or(LocationError);
        }
        let url: Url = text.parse().map_err(|_| LocationError)?;
        let is_server = matches!(url.scheme(), "postgres" | "postgresql") && url.path().len() > 1;
        is_server.then_some(Self::Server(url)).ok_or(LocationError)
    }

    /// As the driver wants it.
    pub(super) fn url(&self) -> String {
        match self {
            Self::Server(url) => url.to_string(),
            Self::File(path) => {
                // What the driver decodes again.
                let encoded = |byte: &u8| match byte {
                    b'/' | b'.' | b'-' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => {
                        char::from(*byte).to_string()
                    }
                    byte => format!("%{byte:02x}"),
                };
                let path: String = path.as_os_str().as_encoded_bytes().iter().map(encoded).collect();
                format!("sqlite://{path}")
            }
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Server(url) => {
                let mut shown = url.clone();
                // Neither can fail for a URL with a host; without one there is no password.
                let _is_plain = shown.set_password(None).is_ok();
                shown.set_query(None);
                write!(f, "{shown}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Location, LocationError> {
        Location::parse(text, Path::new("/etc/deadlight"))
    }

    #[test]
    fn a_file_is_relative_to_the_configuration() {
        for (text, wanted) in [
            ("sqlite:deadlight.db", "/etc/deadlight/deadlight.db"),
            ("sqlite:/var/lib/x.db", "/var/lib/x.db"),
            ("sqlite:///var/lib/x.db", "/var/lib/x.db"),
            ("sqlite:a b%41.db", "/etc/deadlight/a b%41.db"),
        ] {
            assert_eq!(parse(text), Ok(Location::File(wanted.into())), "{text}");
        }
        assert_eq!(parse("sqlite:a b%41.db").unwrap().url(), "sqlite:///etc/deadlight/a%20b%2541.db");
    }

    #[test]
    fn a_password_is_not_shown() {
        let server = parse("postgres://deadlight:s3cret@db.example.net:5433/deadlight?password=s3cret").unwrap();
        assert_eq!(server.to_string(), "postgres://deadlight@db.example.net:5433/deadlight");
        assert!(server.url().contains("s3cret"));
    }

    #[test]
    fn what_names_no_database_is_refused() {
        for text in [
            "",
            "deadlight.db",
            "sqlite:",
            "sqlite::memory:",
            "sqlite:x?mode=ro",
            "sqlite:dir/",
            "mysql://h/d",
            "postgres://h",
            "postgres:",
        ] {
            assert_eq!(parse(text), Err(LocationError), "{text}");
        }
    }
}
