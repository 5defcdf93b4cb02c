//! Errors as a person reads them: one chain of causes, and a line that says what to do.

use std::error::Error;
use std::fmt;

/// An error together with something the reader can run or change.
#[derive(Debug)]
pub struct Hinted {
    hint: String,
    error: Box<dyn Error + Send + Sync>,
}

impl Hinted {
    /// `error` with `hint`.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>, hint: impl Into<String>) -> Self {
        Self { hint: hint.into(), error: error.into() }
    }
}

/// Adds a hint to a failing result.
pub trait HintExt<T> {
    /// Attaches `hint`: one sentence or command, shown on its own line by [`render`].
    fn hint(self, hint: impl Into<String>) -> Result<T, Hinted>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> HintExt<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> Result<T, Hinted> {
        self.map_err(|error| Hinted::new(error, hint))
    }
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Hinted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// The whole chain on one line, then every hint of the chain on a line of its own.
pub fn render(error: &(dyn Error + 'static)) -> String {
    let hinted = errors(error).filter_map(|error| error.downcast_ref::<Hinted>());
    let hints: String = hinted.map(|hinted| format!("\nhint: {}", hinted.hint)).collect();
    format!("error: {}{hints}", causes(error))
}

/// The whole chain and its hints on one line, for a log.
pub fn line(error: &(dyn Error + 'static)) -> String {
    let hinted = errors(error).filter_map(|error| error.downcast_ref::<Hinted>());
    let hints: String = hinted.map(|hinted| format!("; hint: {}", hinted.hint)).collect();
    format!("{}{hints}", causes(error))
}

/// The first hint of the chain.
pub fn of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a str> {
    errors(error).find_map(|error| error.downcast_ref::<Hinted>()).map(|hinted| hinted.hint.as_str())
}

/// The whole chain on one line. Some libraries say with an error what its cause says again.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    errors(error).map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        _ if said.ends_with(&cause) => said,
        _ => format!("{said}: {cause}"),
    })
}

fn errors<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to read the key")]
    struct ReadKey(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("no key: {0}")]
    struct Told(#[source] ReadKey);

    #[test]
    fn a_chain_is_printed_once_and_its_hint_last() {
        let result: Result<(), _> = Err(ReadKey(std::io::Error::other("disk on fire")));
        let error = result.hint("use another disk").unwrap_err();
        assert_eq!(of(&error), Some("use another disk"));
        assert_eq!(line(&error), "failed to read the key: disk on fire; hint: use another disk");
        assert_eq!(causes(&Told(ReadKey(std::io::Error::other("x")))), "no key: failed to read the key: x");
        let text = render(&error);
        assert_eq!(text, "error: failed to read the key: disk on fire\nhint: use another disk");
    }
}
