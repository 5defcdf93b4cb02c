//! The first meeting with an agent that waits to be enrolled.

use std::sync::Arc;
use std::time::Duration;

use deadlight_shared::Name;
use deadlight_shared::enrol::{EXPORTER_LABEL, EXPORTER_LENGTH, ProofError, Verifier};
use deadlight_shared::hint::causes;
use deadlight_shared::text::printable;
use deadlight_shared::tls::{Credentials, TlsError};
use deadlight_shared::trust::SignedTrust;
use deadlight_shared::wire::{CertificateCall, EnrolAnswer, EnrolCall, Problem};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use reqwest::Url;
use reqwest::header::HeaderValue;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, pki_types::InvalidDnsNameError};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::SHOWN;
use crate::line::{Ask, Line};

const LIMIT: Duration = Duration::from_secs(10);
/// A certificate that is issued is delivered, or its line was spent for nothing.
const TRIES: usize = 5;

/// What is said to a node that waits to be enrolled.
pub struct Meeting<'a> {
    /// The node.
    pub node: &'a Name,
    /// Whom it shall trust.
    pub trust: &'a SignedTrust,
    /// The operator's public key (PEM), if there is one.
    pub operator_key: Option<String>,
}

/// Where a node that listens waits.
pub struct Window<'a> {
    /// Its agent.
    pub url: &'a Url,
    /// Our own credentials.
    pub credentials: &'a Credentials,
    /// What is said to it.
    pub meeting: Meeting<'a>,
}

/// Why a node was not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Nobody is there, the window is not open, or the connection broke.
    #[error("failed to reach a node that waits to be enrolled")]
    Reach(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Our side of TLS cannot be set up.
    #[error("failed to set up TLS")]
    Tls(#[from] TlsError),
    /// The node said no.
    #[error("the node answered {status}: {}", printable(.detail, SHOWN))]
    Said {
        /// HTTP status.
        status: StatusCode,
        /// Its words.
        detail: String,
    },
    /// The answer is not what was asked for.
    #[error("failed to read the node's answer")]
    Malformed(#[source] serde_json::Error),
    /// Whoever is there was not given the line.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The CA gave no certificate.
    #[error("failed to get the certificate")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The certificate is made, so the line is spent; whether the node has it is not known.
    #[error("the line is spent, and the node has not confirmed that it keeps its certificate")]
    Undelivered(#[source] Box<Self>),
}

impl Meeting<'_> {
    /// Proves on `line` that we know what `verifier` verifies and has the node prove the same; its certificate request.
    pub async fn prove(
        &self,
        line: &mut Line,
        channel: &[u8; EXPORTER_LENGTH],
        verifier: &Verifier,
    ) -> Result<String, EnrolError> {
        let call = EnrolCall {
            schema: EnrolCall::SCHEMA.to_owned(),
            node: self.node.clone(),
            proof: verifier.scanner_proof(channel),
        };
        let answer = self.ask(line, Method::POST, "/v1/enrol", &call).await?;
        let answer: EnrolAnswer = serde_json::from_slice(&answer).map_err(EnrolError::Malformed)?;
        verifier.check_agent(&answer.proof, channel, &answer.request)?;
        Ok(answer.request)
    }

    /// Gives it its certificate (PEM).
    pub async fn hand_over(&self, line: &mut Line, certificate: &str) -> Result<(), EnrolError> {
        let call = CertificateCall {
            schema: CertificateCall::SCHEMA.to_owned(),
            certificate: certificate.to_owned(),
            operator_key: self.operator_key.clone(),
        };
        self.ask(line, Method::PUT, "/v1/certificate", &call).await.map(drop)
    }

    async fn ask<T: Serialize>(
        &self,
        line: &mut Line,
        method: Method,
        path: &'static str,
        body: &T,
    ) -> Result<Bytes, EnrolError> {
        let body = serde_json::to_vec(body).map_err(EnrolError::Malformed)?;
        let trust = HeaderValue::from_str(&self.trust.to_header()).ok();
        let ask = Ask { method, path: path.into(), body: Some(body.into()), trust, limit: LIMIT };
        let answer = line.ask(&ask).await.map_err(|error| EnrolError::Reach(error.into()))?;
        let (status, body) = (answer.status, answer.body);
        match (status.is_success(), serde_json::from_slice::<Problem>(&body)) {
            (true, _) => Ok(body),
            (false, Ok(problem)) => Err(EnrolError::Said { status, detail: problem.detail }),
            (false, Err(_)) => Err(EnrolError::Said { status, detail: String::from_utf8_lossy(&body).into_owned() }),
        }
    }
}

impl Window<'_> {
    /// Has the node prove that it was given the line, and gives it the certificate that `certify` makes for its request.
    pub async fn enrol<E>(
        &self,
        verifier: &Verifier,
        certify: impl FnOnce(&str) -> Result<String, E>,
    ) -> Result<(), EnrolError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let tls = Arc::new(self.credentials.enrolling_config()?);
        let (mut line, channel) = self.connect(&tls).await?;
        let request = self.meeting.prove(&mut line, &channel, verifier).await?;
        let certificate = certify(&request).map_err(|error| EnrolError::Certificate(error.into()))?;
        let mut tries = 1;
        loop {
            // Who listens answers one request on a connection.
            let delivered = match self.connect(&tls).await {
                Ok((mut line, _)) => self.meeting.hand_over(&mut line, &certificate).await,
                Err(error) => Err(error),
            };
            match delivered {
                Err(error @ EnrolError::Reach(_)) if tries < TRIES => {
                    tracing::warn!(node = %self.meeting.node, "{}; trying again", causes(&error));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    tries += 1;
                }
                delivered => return delivered.map_err(|error| EnrolError::Undelivered(Box::new(error))),
            }
        }
    }

    async fn connect(&self, tls: &Arc<ClientConfig>) -> Result<(Line, [u8; EXPORTER_LENGTH]), EnrolError> {
        timeout(LIMIT, self.try_connect(tls))
            .await
            .unwrap_or_else(|elapsed| Err(elapsed.into()))
            .map_err(EnrolError::Reach)
    }

    async fn try_connect(
        &self,
        tls: &Arc<ClientConfig>,
    ) -> Result<(Line, [u8; EXPORTER_LENGTH]), Box<dyn std::error::Error + Send + Sync>> {
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, self.url.port_or_known_default().unwrap_or(443))).await?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(any_name()?, stream).await?;
        let mut channel = [0; EXPORTER_LENGTH];
        stream.get_ref().1.export_keying_material(&mut channel, EXPORTER_LABEL, None)?;
        let (line, connection) = Line::over(stream).await?;
        // Its end is seen by who waits for the answer.
        tokio::spawn(connection);
        Ok((line, channel))
    }
}

/// TLS wants a name; the agent's identity is in no name.
fn any_name() -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from("agent")
}
