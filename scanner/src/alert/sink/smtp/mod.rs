//! Hands mails to a server that carries them on.

mod wire;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use deadlight_shared::hint::causes;
use lettre::Message;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::SinkError;
use super::error::Step;
use super::hook::verifying;
use crate::store::is_near;

/// For everything until the server has the mail.
const LIMIT: Duration = Duration::from_secs(30);
/// For the farewell.
const FAREWELL: Duration = Duration::from_secs(2);

/// A mail server, and who we are there.
#[derive(Clone)]
pub(super) struct Relay {
    host: String,
    port: u16,
    security: Security,
    login: Option<Credentials>,
    /// What it might repeat and nobody shall see.
    secrets: Vec<String>,
}

#[derive(Clone)]
enum Security {
    /// To those that no stranger listens in on.
    Plain,
    /// Plain until the server is ready for TLS.
    StartTls(TlsConnector, ServerName<'static>),
    /// From the first byte.
    Tls(TlsConnector, ServerName<'static>),
}

impl Relay {
    /// The server at `url`, with the password of the user in it.
    pub(super) fn new(url: &Url, password: Option<&str>) -> Result<Self, SinkError> {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let tls =
            || Ok::<_, SinkError>((TlsConnector::from(Arc::new(verifying()?)), ServerName::try_from(host.clone())?));
        let (security, port) = match url.scheme() {
            "smtps" => (tls().map(|(connector, name)| Security::Tls(connector, name))?, 465),
            _ if is_near(&host) => (Security::Plain, 587),
            _ => (tls().map(|(connector, name)| Security::StartTls(connector, name))?, 587),
        };
        let user = percent_decode_str(url.username()).decode_utf8_lossy().into_owned();
        let password = password.filter(|password| !password.is_empty());
        let secrets = password.map(|password| {
            let line = BASE64.encode(format!("\0{user}\0{password}").as_bytes());
            [line, BASE64.encode(password.as_bytes()), password.to_owned()].into()
        });
        let login = password.map(|password| Credentials::new(user, password.to_owned()));
        Ok(Self { port: url.port().unwrap_or(port), host, security, login, secrets: secrets.unwrap_or_default() })
    }

    /// Hands over `letter`. It has arrived only when the server says so.
    pub(super) async fn hand_over(&self, letter: &Message) -> Result<(), SinkError> {
        let mut connection = timeout(LIMIT, self.take(letter)).await.map_err(|_| SinkError::Late(LIMIT))??;
        // It has the mail, whatever comes now.
        drop(timeout(FAREWELL, connection.quit()).await);
        Ok(())
    }

    async fn take(&self, letter: &Message) -> Result<AsyncSmtpConnection, SinkError> {
        let mut connection = self.connect().await?;
        if let Some(login) = &self.login {
            let mechanisms = [Mechanism::Plain, Mechanism::Login];
            connection.auth(&mechanisms, login).await.map_err(|error| self.no(Step::Login, &error))?;
        }
        let (from, to) = (letter.envelope().from().cloned(), letter.envelope().to());
        connection.command(Mail::new(from, Vec::new())).await.map_err(|error| self.no(Step::Sender, &error))?;
        let mut refusals = Vec::new();
        for recipient in to {
            match connection.command(Rcpt::new(recipient.clone(), Vec::new())).await {
                Ok(_) => {}
                // The others shall hear of it all the same.
                Err(error) if error.is_permanent() => refusals.push((recipient, self.no(Step::Recipient, &error))),
                Err(error) => return Err(self.no(Step::Recipient, &error)),
            }
        }
        if refusals.len() == to.len()
            && let Some((_, error)) = refusals.pop()
        {
            return Err(error);
        }
        connection.command(Data).await.map_err(|error| self.no(Step::Letter, &error))?;
        connection.message(&letter.formatted()).await.map_err(|error| self.no(Step::Letter, &error))?;
        for (recipient, error) in refusals {
            tracing::warn!(%recipient, "a recipient gets no alerts: {}", causes(&error));
        }
        Ok(connection)
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, SinkError> {
        let broken = |error: std::io::Error| SinkError::Mail(error.to_string());
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(broken)?;
        let peer = stream.peer_addr().map_err(broken)?;
        let wire = match &self.security {
            Security::Plain => wire::fresh(stream, peer),
            Security::Tls(connector, name) => {
                wire::fresh(connector.connect(name.clone(), stream).await.map_err(broken)?, peer)
            }
            Security::StartTls(connector, name) => {
                wire::ask_for_tls(&mut stream).await?;
                wire::greeted(connector.connect(name.clone(), stream).await.map_err(broken)?, peer)
            }
        };
        let connected = AsyncSmtpConnection::connect_with_transport(wire, &ClientId::default()).await;
        connected.map_err(|error| self.no(Step::Connection, &error))
    }

    fn no(&self, step: Step, error: &lettre::transport::smtp::Error) -> SinkError {
        let hidden = |said: String| self.secrets.iter().fold(said, |said, secret| said.replace(secret, "…"));
        match error.status() {
            Some(code) => {
                let said = error.source().map(ToString::to_string).unwrap_or_default();
                SinkError::MailSaid { step, code: code.into(), said: hidden(said) }
            }
            None => SinkError::Mail(hidden(error.to_string())),
        }
    }
}

/// Whether another day, or an operator, may change what a mail server says. Who may write to whom is his to mend; a mail that is
/// refused itself stays refused, but for the words that mean a login or a relay.
pub(super) fn is_for_now(step: Step, code: u16, said: &str) -> bool {
    let is_policy = matches!(code, 530 | 534 | 535) || code == 550 && said.starts_with("5.7.");
    step != Step::Letter || code < 500 || is_policy
}
