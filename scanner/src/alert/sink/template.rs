//! A webhook's body in the operator's own words: a template of JSON. Pure.

use std::sync::Arc;

use deadlight_shared::Name;
use deadlight_shared::text::printable;
use minijinja::value::{Serde, Value as Inserted};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::Value;

use super::body;
use crate::alert::{Alert, Kind, message};

/// The name by which errors refer to the template.
const NAME: &str = "template_file";
/// Instructions of one message; one of them also pays for 64 bytes of memory.
const FUEL: u64 = 500_000;
/// Longest body.
const LONGEST: usize = 1024 * 1024;
/// Longest text of an error.
const SHOWN: usize = 300;
const KINDS: [Kind; 7] =
    [Kind::Exposed, Kind::Unclosed, Kind::Contradicted, Kind::Reminder, Kind::Resolved, Kind::Allowed, Kind::Test];

/// A template that makes JSON of alerts. Whatever it inserts is a JSON value, so that nobody leaves the string he is
/// in.
#[derive(Debug, Clone)]
pub struct Template(Arc<Environment<'static>>);

/// Why a template makes no body.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It cannot be read, or something that it names is not there.
    #[error("failed to fill in the template: {}", printable(&.0.to_string(), SHOWN))]
    Fill(minijinja::Error),
    /// Something else came out.
    #[error("what the template makes is no JSON")]
    NoJson(#[source] serde_json::Error),
    /// Too much came out.
    #[error("what the template makes is longer than {LONGEST} bytes")]
    TooLong,
}

impl Template {
    /// The template `source`, tried with alerts of every kind that are like `sample`.
    pub fn new(source: String, vantage: &Name, sample: &Alert) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // Whatever a template says of escaping, and whatever it takes for safe.
        environment.set_formatter(|out, _, value| {
            let json = serde_json::to_string(value)
                .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
            Ok(out.write_str(&json)?)
        });
        environment.set_fuel(Some(FUEL));
        environment.add_template_owned(NAME, source).map_err(TemplateError::Fill)?;
        let template = Self(Arc::new(environment));
        let mut bare = sample.clone();
        (bare.finding.service, bare.why) = (None, None);
        let all = KINDS.map(|kind| Alert { kind, ..bare.clone() });
        for alerts in all.chunks(1).chain([&all[..]]) {
            template.body(vantage, alerts)?;
        }
        Ok(template)
    }

    /// The body that tells of `alerts`.
    pub(super) fn body(&self, vantage: &Name, alerts: &[Alert]) -> Result<Value, TemplateError> {
        let mut document = body::webhook(vantage, alerts);
        document["text"] = message(vantage, alerts, str::to_owned, str::to_owned).into();
        let template = self.0.get_template(NAME).map_err(TemplateError::Fill)?;
        let text = template.render(Inserted::from(Serde(&document))).map_err(TemplateError::Fill)?;
        match text.len() {
            0..=LONGEST => serde_json::from_str(&text).map_err(TemplateError::NoJson),
            _ => Err(TemplateError::TooLong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Episode;
    use crate::assess::first_seen;
    use deadlight_shared::FindingId;
    use jiff::Timestamp;

    fn alert() -> Alert {
        let (node, address, port) = ("n1".parse().unwrap(), "192.0.2.1".parse().unwrap(), "80/tcp".parse().unwrap());
        let id = FindingId::of(&node, address, port);
        let at = Timestamp::UNIX_EPOCH;
        let mut finding = first_seen(&id, node, address, port, at);
        finding.service = Some("\"}], \"admin\": {{ text }} \u{1b}[31m\\".to_owned());
        Alert { number: 1, at, kind: Kind::Exposed, episode: Episode::new(1, at), finding, why: None }
    }

    fn vantage() -> Name {
        "office-a".parse().unwrap()
    }

    fn template(source: &str) -> Result<Template, TemplateError> {
        Template::new(source.to_owned(), &vantage(), &alert())
    }

    fn error(source: &str) -> String {
        deadlight_shared::hint::causes(&template(source).unwrap_err())
    }

    #[test]
    fn speaks_as_the_operator_says() {
        let chat = r#"{"content": {{ text }}, "tags": [{% for alert in alerts %}{{ alert.severity }}
            {%- if not loop.last %},{% endif %}{% endfor %}], "title": {{ "Deadlight: " ~ alerts[0].title }}}"#;
        let body = template(chat).unwrap().body(&vantage(), &[alert(), alert()]).unwrap();
        let title = "EXPOSED 80/tcp on n1 (192.0.2.1), not on the allowlist";
        assert_eq!(body["content"], format!("{title}\n{title}\nseen from office-a"));
        assert_eq!(body["tags"], serde_json::json!(["warning", "warning"]));
        assert_eq!(body["title"], format!("Deadlight: {title}"));
    }

    #[test]
    fn what_a_service_says_stays_where_it_is_put() {
        let service = alert().finding.service.unwrap();
        for inserted in ["alerts[0].finding.service | default('')", "alerts[0].finding.service | default('') | safe"] {
            for around in ["", "{% autoescape false %}"] {
                let end = if around.is_empty() { "" } else { "{% endautoescape %}" };
                let source = format!("{{\"text\": {around}{{{{ {inserted} }}}}{end}}}");
                let body = template(&source).unwrap().body(&vantage(), &[alert()]).unwrap();
                assert_eq!(body, serde_json::json!({ "text": service }), "{source}");
            }
        }
    }

    #[test]
    fn what_would_fail_at_night_is_refused_at_once() {
        for (source, wanted) in [
            ("{{ text", "failed to fill in the template: syntax error"),
            (r#"{"a": {{ alerts[0].tilte }}}"#, "undefined value"),
            (r#"{"a": {{ alerts[0].details.proof }}}"#, "undefined value"),
            (r#"{"a": {{ alerts[0].title | shout }}}"#, "unknown filter"),
            (r#"{"a": "{{ text }}"}"#, "what the template makes is no JSON: expected `,`"),
            ("", "what the template makes is no JSON: EOF"),
            ("{% include 'other' %}", "failed to fill in"),
            (
                "[{% for a in range(9000) %}{% for b in range(9000) %}{% endfor %}{% endfor %}]",
                "engine ran out of fuel",
            ),
            ("[{% for a in range(9000) %}{{ text }}{{ text }},{% endfor %}0]", "is longer than 1048576 bytes"),
        ] {
            let error = error(source);
            assert!(error.contains(wanted), "{source}: {error}");
        }
        assert!(template(r#"{"a": {{ alerts[0].details.proof | default("") }}}"#).is_ok());
    }
}
