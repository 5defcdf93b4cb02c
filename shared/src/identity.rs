//! Who a certificate speaks for: a role and a name in a URI SAN.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::name::Name;

/// Role and name of one side, written `spiffe://deadlight/scanner/ID` or
/// `spiffe://deadlight/agent/NODE`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A scanner; it may order.
    Scanner(Name),
    /// An agent; it may command nobody.
    Agent(Name),
}

/// Why a certificate gives no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not an X.509 certificate.
    #[error("failed to parse the certificate")]
    Parse(#[source] x509_parser::error::X509Error),
    /// No URI SAN, several, or one that is not ours.
    #[error("certificate does not carry exactly one spiffe://deadlight/ROLE/NAME")]
    NotOurs,
}

impl Identity {
    /// Reads the identity that `certificate` carries. Says nothing about who signed it.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|error| IdentityError::Parse(error.into()))?;
        let names = certificate.subject_alternative_name().map_err(IdentityError::Parse)?;
        let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| {
            let GeneralName::URI(uri) = name else { return None };
            Some(*uri)
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => uri.parse(),
            _ => Err(IdentityError::NotOurs),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scanner(name) => write!(f, "spiffe://deadlight/scanner/{name}"),
            Self::Agent(name) => write!(f, "spiffe://deadlight/agent/{name}"),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let path = uri.strip_prefix("spiffe://deadlight/").ok_or(IdentityError::NotOurs)?;
        let (role, name) = path.split_once('/').ok_or(IdentityError::NotOurs)?;
        let name = name.parse().map_err(|_| IdentityError::NotOurs)?;
        match role {
            "scanner" => Ok(Self::Scanner(name)),
            "agent" => Ok(Self::Agent(name)),
            _ => Err(IdentityError::NotOurs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_a_role_and_a_name() {
        for uri in ["spiffe://deadlight/scanner/office-a", "spiffe://deadlight/agent/n1"] {
            assert_eq!(uri.parse::<Identity>().unwrap().to_string(), uri);
        }
        for uri in [
            "spiffe://deadlight/admin/n1",
            "spiffe://deadlight/agent/",
            "spiffe://deadlight/agent/a/b",
            "spiffe://other/agent/n1",
            "https://deadlight/agent/n1",
            "",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
    }
}
