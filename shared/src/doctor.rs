//! What the doctors of both programs found: graded, each doubt and fault with its remedy, as it is shown.

use std::fmt;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Well,
    /// It goes on, and the reader should know.
    Doubt,
    /// Something does not work.
    Wrong,
}

impl Grade {
    /// The colour in which it is shown.
    pub const fn style(self) -> Style {
        match self {
            Self::Well => AnsiColor::Green.on_default(),
            Self::Doubt => AnsiColor::Yellow.on_default(),
            Self::Wrong => AnsiColor::Red.on_default().bold(),
        }
    }

    fn mark(self) -> &'static str {
        match self {
            Self::Well => "ok",
            Self::Doubt => "??",
            Self::Wrong => "!!",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// How good it is.
    pub grade: Grade,
    /// What was looked at.
    pub subject: String,
    /// What there is to say.
    pub text: String,
    /// What the reader can run or change; none where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Found {
    /// All is well.
    pub fn well(subject: impl fmt::Display, text: impl fmt::Display) -> Self {
        Self { grade: Grade::Well, subject: subject.to_string(), text: text.to_string(), remedy: None }
    }

    /// It goes on, and the reader should know.
    pub fn doubt(subject: impl fmt::Display, text: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self { grade: Grade::Doubt, remedy: Some(remedy.to_string()), ..Self::well(subject, text) }
    }

    /// It does not work.
    pub fn wrong(subject: impl fmt::Display, text: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self { grade: Grade::Wrong, ..Self::doubt(subject, text, remedy) }
    }
}

/// All that a doctor found, as one document.
#[derive(Debug, Serialize)]
pub struct Findings {
    schema: &'static str,
    found: Vec<Found>,
}

impl Findings {
    /// These, in the order in which they are shown.
    pub fn new(found: Vec<Found>) -> Self {
        Self { schema: "deadlight.doctor/v1", found }
    }

    /// Whether anything does not work.
    pub fn has_wrong(&self) -> bool {
        self.found.iter().any(|found| found.grade == Grade::Wrong)
    }
}

impl fmt::Display for Findings {
    /// For people: a line for each, with its remedy below; in colours, which a terminal alone should get.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Found { grade, subject, text, remedy } in &self.found {
            let style = grade.style();
            writeln!(f, "{style}{}{style:#} {subject}: {text}", grade.mark())?;
            if let Some(remedy) = remedy {
                writeln!(f, "   hint: {remedy}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_mark_and_its_remedy() {
        let found = Findings::new(vec![
            Found::well("rights", "all"),
            Found::doubt("clock", "nobody says", "timedatectl"),
            Found::wrong("docker", "is away", "systemctl status docker"),
        ]);
        assert!(found.has_wrong());
        let text = colourless(&found.to_string());
        assert_eq!(
            text,
            "ok rights: all\n\
             ?? clock: nobody says\n   hint: timedatectl\n\
             !! docker: is away\n   hint: systemctl status docker\n"
        );
        assert_eq!(
            serde_json::to_string(&Findings::new(vec![Found::well("a", 1)])).unwrap(),
            r#"{"schema":"deadlight.doctor/v1","found":[{"grade":"well","subject":"a","text":"1"}]}"#
        );
        assert!(!Findings::new(vec![Found::doubt("a", "b", "c")]).has_wrong());
    }

    /// The text without what colours it.
    fn colourless(text: &str) -> String {
        let mut pieces = text.split('\u{1b}');
        let first = pieces.next().unwrap_or_default().to_owned();
        first + &pieces.filter_map(|piece| piece.split_once('m')).map(|(_, rest)| rest).collect::<String>()
    }
}
