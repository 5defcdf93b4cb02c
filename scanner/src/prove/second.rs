//! What a second vantage point says of a port that the first has proven closed.

use std::collections::BTreeMap;

use deadlight_shared::Name;
use serde::{Deserialize, Serialize};

use super::{Evidence, Unproven, Verdict};

/// The verdict of another vantage point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    /// The vantage point.
    pub vantage: Name,
    /// What it saw.
    pub saw: Saw,
}

/// What another vantage point saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Saw {
    /// No way in; what that rests on, in words.
    Closed(String),
    /// It answers.
    Open,
    /// Neither could be shown; why, in words.
    Unproven(String),
}

impl Second {
    /// What `vantage` saw, by its own `verdict`.
    pub fn new(vantage: Name, verdict: &Verdict) -> Self {
        let saw = match verdict {
            Verdict::Closed(evidence) => Saw::Closed(evidence.to_string()),
            Verdict::StillOpen => Saw::Open,
            Verdict::Unproven(unproven) => Saw::Unproven(unproven.to_string()),
        };
        Self { vantage, saw }
    }
}

/// Our own `verdicts`, where a port is closed only if a second vantage point has said so too: what is open from anywhere is
/// open.
pub fn seconded<K: Ord>(verdicts: &mut BTreeMap<K, &mut Verdict>, seconds: &BTreeMap<K, Second>) {
    for (target, verdict) in verdicts {
        let Verdict::Closed(ours) = &**verdict else { continue };
        **verdict = match seconds.get(target) {
            None => Verdict::Unproven(Unproven::NotSeconded("no other vantage point has answered".to_owned())),
            Some(Second { saw: Saw::Open, .. }) => Verdict::StillOpen,
            Some(Second { vantage, saw: Saw::Unproven(why) }) => {
                Verdict::Unproven(Unproven::NotSeconded(format!("at {vantage}: {why}")))
            }
            Some(Second { vantage, saw: Saw::Closed(evidence) }) => Verdict::Closed(Evidence::Seconded {
                ours: Box::new(ours.clone()),
                vantage: vantage.clone(),
                theirs: evidence.clone(),
            }),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadlight_shared::Protocol;

    fn closed() -> Verdict {
        Verdict::Closed(Evidence::Refusals { protocol: Protocol::Tcp, attempts: 2, source_ports: 2 })
    }

    fn said(ours: Verdict, theirs: Option<Verdict>) -> String {
        let mut verdict = ours;
        let second = theirs.map(|theirs| Second::new("office-b".parse().unwrap(), &theirs));
        let seconds = second.into_iter().map(|second| (1, second)).collect();
        seconded(&mut BTreeMap::from([(1, &mut verdict)]), &seconds);
        match verdict {
            Verdict::Closed(evidence) => format!("closed: {evidence}"),
            Verdict::StillOpen => "open".to_owned(),
            Verdict::Unproven(why) => format!("unproven: {why}"),
        }
    }

    #[test]
    fn a_port_is_closed_when_two_have_seen_it() {
        let refused = "2 attempts from 2 source ports, each refused with RST";
        assert_eq!(said(closed(), Some(closed())), format!("closed: {refused}; from office-b too: {refused}"));
    }

    #[test]
    fn what_one_of_them_sees_open_is_open_and_silence_of_the_other_proves_nothing() {
        assert_eq!(said(closed(), Some(Verdict::StillOpen)), "open");
        assert_eq!(said(Verdict::StillOpen, Some(closed())), "open");
        let blind = || Verdict::Unproven(Unproven::NoControlPort);
        let why = "silence proves nothing without a control port on this node";
        let not_seconded = "unproven: closed as seen from here, and not seen so from a second vantage point: ";
        assert_eq!(said(closed(), Some(blind())), format!("{not_seconded}at office-b: {why}"));
        assert_eq!(said(closed(), None), format!("{not_seconded}no other vantage point has answered"));
        assert_eq!(said(blind(), Some(closed())), format!("unproven: {why}"));
    }
}
