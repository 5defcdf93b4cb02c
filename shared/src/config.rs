//! TOML configuration: unknown keys refused, with the line and the nearest known key.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::text::printable;

/// A list of all known keys has its length.
const SHOWN: usize = 600;

/// Why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}, line {line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line of the first fault, from 1.
        line: usize,
        /// What is wrong, what is allowed, and the nearest known key.
        message: String,
    },
}

/// Reads and checks the file at `path`.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// Checks `text`; `path` is only named in errors.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
        let message = match (nearest_known(error.message()), key_of(text.lines().nth(line - 1))) {
            (Some(known), _) => format!("{}; did you mean `{known}`?", error.message()),
            (None, Some(key)) if !error.message().contains(key) => format!("`{key}`: {}", error.message()),
            (None, _) => error.message().to_owned(),
        };
        ConfigError::Parse { path: path.to_owned(), line, message: printable(&message, SHOWN) }
    })
}

/// The key of a line such as `rate = 0`.
fn key_of(line: Option<&str>) -> Option<&str> {
    let (key, _) = line?.split_once('=')?;
    Some(key.trim()).filter(|key| key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')))
}

/// Out of serde's "unknown field `x`, expected one of `a`, `b`" the known word most like `x`.
fn nearest_known(message: &str) -> Option<&str> {
    let list = message.strip_prefix("unknown field ").or_else(|| message.strip_prefix("unknown variant "))?;
    let mut words = list.split('`').skip(1).step_by(2);
    let unknown = words.next()?;
    words
        .map(|known| (strsim::normalized_damerau_levenshtein(unknown, known), known))
        .filter(|(likeness, _)| *likeness > 0.6)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "snake_case")]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Sample {
        mode: Mode,
        listen: Option<String>,
        state_dir: Option<String>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Observe,
        Enforce,
    }

    fn error(text: &str) -> String {
        parse::<Sample>(text, Path::new("agent.toml")).unwrap_err().to_string()
    }

    #[test]
    fn names_line_key_and_nearest_known() {
        let text = error("mode = \"observe\"\n\nlisen = \"x\"\n");
        assert!(text.starts_with("agent.toml, line 3: unknown field `lisen`"), "{text}");
        assert!(text.ends_with("did you mean `listen`?"), "{text}");
        assert!(error("mdoe = \"observe\"\n").ends_with("did you mean `mode`?"), "letters in another order");
        let text = error("mode = \"enforced\"\n");
        assert!(text.contains("line 1") && text.ends_with("did you mean `enforce`?"), "{text}");
        let text = error("mode = \"observe\"\nlisten = 7\n");
        assert!(text.starts_with("agent.toml, line 2: `listen`: invalid type"), "{text}");
        let text = error("mode = \"observe\"\nzzz = 1\n");
        assert!(text.contains("expected one of `mode`") && !text.contains("did you mean"), "{text}");
    }

    #[test]
    fn names_the_file_that_is_not_there() {
        let error = load::<Sample>(Path::new("/nonexistent/agent.toml")).unwrap_err();
        assert_eq!(error.to_string(), "failed to read /nonexistent/agent.toml");
    }
}
