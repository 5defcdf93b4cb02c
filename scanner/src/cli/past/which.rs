//! A finding as people name it.

use std::str::FromStr;

use deadlight_shared::hint::HintExt as _;
use deadlight_shared::{Finding, FindingId, Name, Port};

use super::super::Failure;
use super::hinted;
use crate::store::Database;

/// One finding, or those of a port at all addresses of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Which {
    Id(FindingId),
    Place(Name, Port),
}

/// The text names no finding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither a finding's id (16 hexadecimal digits) nor a place like n1:8080/tcp")]
pub(in crate::cli) struct WhichError;

/// The findings of that name; at least one.
pub(in crate::cli) async fn wanted(database: &Database, which: &Which) -> Result<Vec<Finding>, Failure> {
    let mut findings = database.load_all().await.map_err(hinted)?.findings;
    findings.retain(|finding| which.names(finding));
    match findings.is_empty() {
        true => Ok(Err("no such finding was ever made").hint("`deadlight-scanner findings --all` lists them")?),
        false => Ok(findings),
    }
}

impl Which {
    fn names(&self, finding: &Finding) -> bool {
        match self {
            Self::Id(id) => finding.id == *id,
            Self::Place(node, port) => finding.node == *node && finding.port() == *port,
        }
    }
}

impl FromStr for Which {
    type Err = WhichError;

    fn from_str(text: &str) -> Result<Self, WhichError> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        let (node, port) = text.split_once(':').ok_or(WhichError)?;
        Ok(Self::Place(node.parse().map_err(|_| WhichError)?, port.parse().map_err(|_| WhichError)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_named_by_id_or_place() {
        assert!(matches!("31eaee584c38bfea".parse(), Ok(Which::Id(_))));
        assert_eq!("n1:8080/tcp".parse(), Ok(Which::Place("n1".parse().unwrap(), "8080/tcp".parse().unwrap())));
        for wrong in ["", "n1", "n1:", "n1:8080", ":8080/tcp", "n1:0/tcp", "31EAEE584C38BFEA", "n1:8080/tcp/x"] {
            assert_eq!(wrong.parse::<Which>(), Err(WhichError), "{wrong}");
        }
    }
}
