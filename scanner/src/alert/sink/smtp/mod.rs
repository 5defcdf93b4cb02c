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

/// Whether another day, or an operator, may change what a mail server says. Who may write to whom is his to mend; a mail
/// that is refused itself stays refused, but for the words that mean a login or a relay.
pub(super) fn is_for_now(step: Step, code: u16, said: &str) -> bool {
    let is_policy = matches!(code, 530 | 534 | 535) || code == 550 && said.starts_with("5.7.");
    step != Step::Letter || code < 500 || is_policy
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::TcpListener;

    /// Where somebody says each of `replies`, all but the first when he is asked, and goes.
    async fn server(replies: &[&'static str]) -> SocketAddr {
        let replies = replies.to_vec();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            let mut is_mail = false;
            for (number, reply) in replies.iter().enumerate() {
                let mut heard = String::new();
                while number > 0 && stream.read_line(&mut heard).await.unwrap() > 0 {
                    if !is_mail || heard.ends_with("\r\n.\r\n") {
                        break;
                    }
                }
                stream.get_mut().write_all(reply.as_bytes()).await.unwrap();
                is_mail = reply.starts_with("354");
            }
        });
        address
    }

    async fn asked_for_tls(replies: &[&'static str]) -> Result<(), SinkError> {
        wire::ask_for_tls(&mut TcpStream::connect(server(replies).await).await.unwrap()).await
    }

    async fn handed_over(replies: &[&'static str]) -> Result<(), SinkError> {
        let url = format!("smtp://deadlight@{}", server(replies).await).parse().unwrap();
        Relay::new(&url, Some("s3same")).unwrap().hand_over(&letter()).await
    }

    fn letter() -> Message {
        let builder = Message::builder().from("a@example.net".parse().unwrap()).to("b@example.net".parse().unwrap());
        builder.body("hello\n".to_owned()).unwrap()
    }

    #[tokio::test]
    async fn what_is_said_before_tls_counts_for_nothing_after_it() {
        let end = |end| ["220 hi\r\n", "250-x\r\n250 StartTLS\r\n", end];
        assert!(asked_for_tls(&end("220 go\r\n")).await.is_ok());
        for (replies, wanted) in [
            (&end("220 go\r\n250 I am the server\r\n")[..], "somebody speaks between STARTTLS and TLS"),
            (&end("454 no\r\n"), "it answered 454 to the connection: no"),
            (&["220 hi\r\n", "250-x\r\n250 STARTTLSX\r\n"], "offers no STARTTLS"),
            (&["HTTP/1.1 400 Bad Request\r\n"], "it is no mail server: HTTP"),
            (&["554 5.7.1 go\r\n"], "it answered 554 to the connection: 5.7.1 go"),
            (&["220"], "it breaks off"),
        ] {
            let error = asked_for_tls(replies).await.unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[tokio::test]
    async fn a_server_that_repeats_the_password_is_not_quoted() {
        let line = "535 AUTH PLAIN AGRlYWRsaWdodABzM3NhbWU= or s3same or czNzYW1l\r\n";
        let error = handed_over(&["220 hi\r\n", "250-x\r\n250 AUTH PLAIN\r\n", line]).await.unwrap_err().to_string();
        assert_eq!(error, "it answered 535 to the user and the password: AUTH PLAIN … or … or …");
    }

    #[tokio::test]
    async fn what_is_accepted_has_arrived_whatever_comes_then() {
        let end = |end| {
            let (offer, ok) = ("250-x\r\n250 AUTH PLAIN\r\n", "250 ok\r\n");
            ["220 hi\r\n", offer, "235 ok\r\n", ok, ok, "354 go\r\n", end]
        };
        assert!(handed_over(&end("250 ok\r\n")).await.is_ok());
        let error = handed_over(&end("554 spam\r\n")).await.unwrap_err().to_string();
        assert_eq!(error, "it answered 554 to the mail: spam");
    }
}
