//! What at a node keeps it from being enrolled however long the scanner waits.

use std::error::Error;
use std::fmt;
use std::io;

use deadlight_shared::Name;
use deadlight_shared::enrol::ProofError;
use hyper::StatusCode;
use rustls::AlertDescription;

use super::EnrolError;

/// Who is there instead of a node that was given our line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// A node with another line of our CA: an older one, or one that is not whole.
    OtherLine,
    /// Another node, with its own line.
    OtherNode,
    /// Somebody who trusts another CA.
    OtherAuthority,
    /// Somebody who knows of no enrolment, as an agent that is enrolled.
    NoWindow,
}

impl EnrolError {
    /// What waiting alone does not remove; `None` where it may.
    pub fn obstacle(&self) -> Option<Obstacle> {
        match self {
            Self::Said { status: StatusCode::NOT_FOUND, .. } => Some(Obstacle::NoWindow),
            Self::Said { status: StatusCode::CONFLICT, .. } => Some(Obstacle::OtherNode),
            // An agent that is enrolled may refuse us too, for other reasons.
            Self::Said { status: StatusCode::FORBIDDEN, detail } => {
                detail.contains(&ProofError.to_string()).then_some(Obstacle::OtherLine)
            }
            Self::Proof(_) => Some(Obstacle::OtherLine),
            Self::Reach(error) => {
                (alert(error.as_ref()) == Some(AlertDescription::UnknownCA)).then_some(Obstacle::OtherAuthority)
            }
            Self::Tls(_) | Self::Said { .. } | Self::Malformed(_) | Self::Certificate(_) | Self::Undelivered(_) => None,
        }
    }
}

impl Obstacle {
    /// What somebody has to do on `node`, who has the line before his eyes.
    pub fn hint(self, node: &Name) -> String {
        match self {
            Self::OtherLine => {
                format!("on {node} end the `deadlight-agent enroll` that waits there, and run it with the line above")
            }
            Self::OtherNode => format!(
                "run the line above on {node}; if you did, `agent` of [[node]] {node} names another node's address"
            ),
            Self::OtherAuthority => format!(
                "on {node} end the `deadlight-agent enroll` that waits there with another scanner's line, or \
                 `systemctl stop deadlight-agent` where it is enrolled with another CA; then \
                 `deadlight-agent enroll --again` with the line above"
            ),
            Self::NoWindow => format!(
                "an agent that is enrolled answers so: on {node} `systemctl stop deadlight-agent`, then \
                 `deadlight-agent enroll --again` with the line above"
            ),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherLine => "who waits there was given another enrolment line",
            Self::OtherNode => "another node waits there",
            Self::OtherAuthority => "who is there trusts another CA",
            Self::NoWindow => "nobody waits there to be enrolled",
        })
    }
}

/// The TLS alert that ended the connection. An [`io::Error`] does not name as its source what it is made of.
fn alert(error: &(dyn Error + 'static)) -> Option<AlertDescription> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| {
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = error.downcast_ref().or_else(|| within?.downcast_ref::<rustls::Error>())?;
        match tls {
            rustls::Error::AlertReceived(alert) => Some(*alert),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, detail: &str) -> EnrolError {
        EnrolError::Said { status: StatusCode::from_u16(status).unwrap(), detail: detail.to_owned() }
    }

    fn reach(error: impl Error + Send + Sync + 'static) -> EnrolError {
        EnrolError::Reach(Box::new(error))
    }

    #[test]
    fn what_waiting_does_not_remove_is_told_apart_from_what_it_may() {
        let alert = |alert| io::Error::other(rustls::Error::AlertReceived(alert));
        for (error, obstacle) in [
            (said(403, &ProofError.to_string()), Some(Obstacle::OtherLine)),
            (EnrolError::Proof(ProofError), Some(Obstacle::OtherLine)),
            (said(409, "the line here is for node n2, the scanner enrolls n1"), Some(Obstacle::OtherNode)),
            (reach(alert(AlertDescription::UnknownCA)), Some(Obstacle::OtherAuthority)),
            (said(404, "no such path"), Some(Obstacle::NoWindow)),
            (said(403, "the trust document is not signed"), None),
            (said(500, "failed to write identity.json"), None),
            (reach(alert(AlertDescription::CertificateExpired)), None),
            (reach(io::Error::from(io::ErrorKind::ConnectionRefused)), None),
            (EnrolError::Undelivered(Box::new(said(404, ""))), None),
        ] {
            assert_eq!(error.obstacle(), obstacle, "{error:?}");
        }
    }
}
