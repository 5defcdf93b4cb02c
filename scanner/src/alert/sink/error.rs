//! Why a message did not arrive.

use std::time::Duration;

use deadlight_shared::text::printable;
use jiff::SignedDuration;
use reqwest::StatusCode;

use super::TemplateError;

/// Longest text of a sink that is shown.
const SHOWN: usize = 200;

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The HTTP client cannot be made.
    #[error("failed to set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The system's list of CAs cannot be used.
    #[error("failed to set up TLS")]
    Tls(#[from] rustls::Error),
    /// No answer came, or it broke off.
    #[error("failed to reach it")]
    Reach(#[source] reqwest::Error),
    /// It said no.
    #[error("it answered {status}: {}", printable(.said, SHOWN))]
    Said {
        /// HTTP status.
        status: StatusCode,
        /// Its words.
        said: String,
        /// How long it wants us to wait.
        retry_after: Option<SignedDuration>,
    },
    /// The operator's template does not take these alerts.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// No certificate can be for the mail server's name.
    #[error("the mail server's name is no name of a host")]
    Host(#[from] rustls::pki_types::InvalidDnsNameError),
    /// The mail cannot be written.
    #[error("failed to write the mail")]
    Letter(#[from] lettre::error::Error),
    /// The connection to the mail server broke, or it speaks another language.
    #[error("failed to speak with the mail server: {}", printable(.0, SHOWN))]
    Mail(String),
    /// It would have to be told in plain text.
    #[error("the mail server offers no STARTTLS, and nothing is told in plain text")]
    NoStartTls,
    /// The mail server is too slow.
    #[error("the mail server has not taken it within {0:?}")]
    Late(Duration),
    /// The mail server said no.
    #[error("it answered {code} to {}: {}", .step.as_str(), printable(.said, SHOWN))]
    MailSaid {
        /// To what.
        step: Step,
        /// SMTP status.
        code: u16,
        /// Its words.
        said: String,
    },
}

/// What a mail server said no to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Us.
    Connection,
    /// The user and the password.
    Login,
    /// The sender.
    Sender,
    /// A recipient.
    Recipient,
    /// The mail itself.
    Letter,
}

impl Step {
    fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "the connection",
            Self::Login => "the user and the password",
            Self::Sender => "the sender",
            Self::Recipient => "the recipient",
            Self::Letter => "the mail",
        }
    }
}
