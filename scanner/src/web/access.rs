//! Who may look. Pure.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::BASE64;
use deadlight_shared::own_host;

/// To whom the page is shown.
pub(super) enum Access {
    /// To programs on this host that ask for this host.
    Local,
    /// To whoever knows the word.
    Token(String),
}

/// Why nothing is shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// This is not the host that was asked for.
    Host,
    /// The word is wrong, or missing.
    Token,
}

impl Access {
    /// Whether a request with these headers is answered.
    pub(super) fn admit(&self, host: Option<&str>, authorization: Option<&str>) -> Result<(), Refusal> {
        match self {
            Self::Local => host.filter(|host| own_host::is_own(host)).map(drop).ok_or(Refusal::Host),
            Self::Token(token) => {
                let word = authorization.and_then(word).ok_or(Refusal::Token)?;
                verify_slices_are_equal(&word, token.as_bytes()).map_err(|_| Refusal::Token)
            }
        }
    }
}

/// A bearer token, or the password of any user.
fn word(authorization: &str) -> Option<Vec<u8>> {
    let (scheme, rest) = authorization.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(rest.trim().as_bytes().to_vec()),
        "basic" => {
            let decoded = BASE64.decode(rest.trim().as_bytes()).ok()?;
            let colon = decoded.iter().position(|byte| *byte == b':')?;
            Some(decoded[colon + 1..].to_vec())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_token_only_this_host_is_answered_by_its_own_names() {
        assert_eq!(Access::Local.admit(Some("localhost:7480"), None), Ok(()));
        for host in [None, Some("evil.example:7480")] {
            assert_eq!(Access::Local.admit(host, None), Err(Refusal::Host), "{host:?}");
        }
    }

    #[test]
    fn with_a_token_everybody_is_answered_who_knows_it() {
        let access = Access::Token("sesame".to_owned());
        for good in ["Bearer sesame", "bearer sesame", "Basic YW55OnNlc2FtZQ==", "basic OnNlc2FtZQ=="] {
            assert_eq!(access.admit(Some("evil.example"), Some(good)), Ok(()), "{good}");
        }
        for bad in [
            "",
            "sesame",
            "Bearer",
            "Bearer ",
            "Bearer sesam",
            "Bearer sesame2",
            "Basic !",
            "Basic c2VzYW1l",
            "Digest sesame",
        ] {
            assert_eq!(access.admit(Some("localhost"), Some(bad)), Err(Refusal::Token), "{bad:?}");
        }
        assert_eq!(access.admit(Some("localhost"), None), Err(Refusal::Token));
    }
}
