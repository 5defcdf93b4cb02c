//! Where the database is.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use reqwest::Url;

/// Where the database is. Shown without a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A file of SQLite.
    File(PathBuf),
    /// A PostgreSQL server, by its URL.
    Server(Url),
}

/// Why a text names no database. It is not shown: there may be a password in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Neither of both kinds.
    #[error("`url` of [store] is neither like sqlite:deadlight.db nor like postgres://user@host/database")]
    Unknown,
    /// A parameter that the driver does not know, and would show with its value.
    #[error("`url` of [store] has a parameter that is none of {}", PARAMETERS.join(", "))]
    Parameter,
    /// Whoever stands between could pretend to be the server.
    #[error(
        "`url` of [store] needs ?sslmode=verify-full (and sslrootcert=FILE for a CA of your own) for a server that is not on \
         this host or at a private address"
    )]
    Unproven,
}

/// Parameters of a server's URL.
const PARAMETERS: [&str; 9] = [
    "application_name",
    "dbname",
    "host",
    "passfile",
    "port",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

impl Location {
    /// Reads a URL; a file of SQLite is relative to `directory`.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, LocationError> {
        if let Some(file) = text.strip_prefix("sqlite:") {
            let file = file.strip_prefix("//").unwrap_or(file);
            let is_file = !file.is_empty() && !file.contains(['?', '#']) && file != ":memory:" && !file.ends_with('/');
            return is_file.then(|| Self::File(directory.join(file))).ok_or(LocationError::Unknown);
        }
        let url: Url = text.parse().map_err(|_| LocationError::Unknown)?;
        if !matches!(url.scheme(), "postgres" | "postgresql") || url.path().len() <= 1 {
            return Err(LocationError::Unknown);
        }
        let mut host = url.host_str().unwrap_or_default().to_owned();
        let mut is_proven = false;
        for (key, value) in url.query_pairs() {
            match &*key {
                known if !PARAMETERS.contains(&known) => return Err(LocationError::Parameter),
                "host" => host = value.into_owned(),
                "sslmode" => is_proven = value == "verify-full",
                _ => {}
            }
        }
        match is_proven || host.is_empty() || host.starts_with('/') || is_near(&host) {
            true => Ok(Self::Server(url)),
            false => Err(LocationError::Unproven),
        }
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

/// Whether `host`, as it stands in a URL, is this one or at a private address: where no stranger listens in.
pub fn is_near(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_private(),
        Ok(IpAddr::V6(address)) => address.is_loopback() || address.is_unique_local(),
        Err(_) => host == "localhost",
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
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
        let server = parse("postgres://deadlight:s3cret@db.example.net:5433/deadlight?sslmode=verify-full").unwrap();
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
            assert_eq!(parse(text), Err(LocationError::Unknown), "{text}");
        }
        assert_eq!(parse("postgres:///d?sslpassword=s3cret"), Err(LocationError::Parameter));
        for far in [
            "postgres://db.example.net/d",
            "postgres://203.0.113.5/d?sslmode=require",
            "postgres:///d?host=db.example.net",
        ] {
            assert_eq!(parse(far), Err(LocationError::Unproven), "{far}");
        }
        for near in
            ["postgres://127.0.0.1/d", "postgres://[fd00::1]/d", "postgres:///d?host=/run/postgresql", "postgres:///d"]
        {
            assert!(parse(near).is_ok(), "{near}");
        }
    }
}
