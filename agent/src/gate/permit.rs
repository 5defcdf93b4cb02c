//! Which questions pass.

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// By itself, soon.
    Whole,
    /// Not at all: a line for each event.
    Events,
}

/// A question to Docker.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// Path and query as they stand in the request line.
    pub(super) target: &'static str,
    /// How its answer ends.
    pub(super) form: Form,
}

/// Everything that [`crate::inventory`] asks, as bollard writes it. Texts are compared, not parsed: there is no second
/// spelling.
pub(super) const QUESTIONS: [Question; 8] = [
    whole("/_ping"),
    whole("/info"),
    whole("/networks"),
    whole("/containers/json"),
    whole("/services"),
    whole("/nodes"),
    whole("/tasks?filters=%7B%22desired-state%22%3A%5B%22running%22%5D%7D"),
    Question {
        target: "/events?filters=%7B%22type%22%3A%5B%22network%22%2C%22service%22%2C%22node%22%5D%7D",
        form: Form::Events,
    },
];

const fn whole(target: &'static str) -> Question {
    Question { target, form: Form::Whole }
}

/// The question that a request line asks, if it may be asked.
pub(super) fn permitted(method: &str, target: &str) -> Option<&'static Question> {
    QUESTIONS.iter().find(|question| method == "GET" && question.target == target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_asks_passes_by_get_alone() {
        for question in &QUESTIONS {
            assert_eq!(permitted("GET", question.target), Some(question));
            for method in ["HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "get", ""] {
                assert_eq!(permitted(method, question.target), None, "{method} {}", question.target);
            }
        }
    }

    #[test]
    fn nothing_else_passes() {
        for target in [
            "/containers/1/json",
            "/containers/1/attach/ws",
            "/containers/1/attach?stream=1",
            "/containers/1/archive?path=/",
            "/containers/1/export",
            "/containers/1/logs?stdout=1",
            "/images/json",
            "/images/1/get",
            "/swarm",
            "/swarm/unlockkey",
            "/secrets",
            "/configs",
            "/plugins",
            "/volumes",
            "/version",
            "/grpc",
            "/session",
            "/events",
            "/events?since=0",
            "/tasks",
            "/tasks?filters=%7B%7D",
            "/containers/json?all=1",
            "/containers/json?",
        ] {
            assert_eq!(permitted("GET", target), None, "{target}");
        }
    }

    /// Every spelling of a permitted path that some server takes for the same.
    #[test]
    fn there_is_no_second_spelling() {
        for question in &QUESTIONS {
            let target = question.target;
            let path = target.trim_start_matches('/');
            let (first, rest) = target.split_at(1 + usize::from(!path.is_empty()));
            let escaped = format!("/%{:02x}{rest}", first.as_bytes()[first.len() - 1]);
            for other in [
                format!("/{target}"),
                format!("/.{target}"),
                format!("/x/..{target}"),
                format!("/%2e{target}"),
                format!("/x/%2e%2e{target}"),
                format!("{target}/"),
                format!("{target}/../swarm/unlockkey"),
                format!("{target}%00"),
                format!("{target}#x"),
                format!("{target}&x=1"),
                format!("/v1.41{target}"),
                format!("/v1.41/v1.41{target}"),
                format!("/v9{target}"),
                format!("http://docker{target}"),
                format!("HTTP://docker{target}"),
                format!("//docker{target}"),
                target.to_uppercase().replace("/_PING", "/_Ping"),
                target.replacen('/', "\\", 1),
                format!(" {target}"),
                format!("{target} "),
                path.to_owned(),
                escaped,
            ] {
                assert_eq!(permitted("GET", &other), None, "{other}");
            }
        }
    }
}
