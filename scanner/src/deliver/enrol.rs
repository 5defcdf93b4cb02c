//! The first meeting with an agent whose enrolment window is open.

use std::sync::Arc;
use std::time::Duration;

use deadlight_shared::Name;
use deadlight_shared::enrol::{EXPORTER_LABEL, EXPORTER_LENGTH, ProofError, Verifier};
use deadlight_shared::hint::causes;
use deadlight_shared::text::printable;
use deadlight_shared::tls::{Credentials, TlsError};
use deadlight_shared::trust::{SignedTrust, TRUST_HEADER};
use deadlight_shared::wire::{CertificateCall, EnrolAnswer, EnrolCall, MAX_BODY, Problem};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, pki_types::InvalidDnsNameError};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::SHOWN;

const LIMIT: Duration = Duration::from_secs(10);
/// A certificate that is issued is delivered, or its line was spent for nothing.
const TRIES: usize = 5;

/// Where a node waits to be enrolled, and what is said to it.
pub struct Window<'a> {
    /// The node.
    pub node: &'a Name,
    /// Its agent.
    pub url: &'a Url,
    /// Our own credentials.
    pub credentials: &'a Credentials,
    /// Whom the node shall trust.
    pub trust: &'a SignedTrust,
    /// The operator's public key (PEM), if there is one.
    pub operator_key: Option<String>,
}

/// Why a node was not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Nobody is there, or the window is not open.
    #[error("failed to reach an enrolment window at {url}")]
    Reach {
        /// The agent's address.
        url: Url,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
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
}

impl Window<'_> {
    /// Proves to the node that we know what `verifier` verifies, has it prove the same, and gives it the certificate that
    /// `certify` makes for its request.
    pub async fn enrol<E>(
        &self,
        verifier: &Verifier,
        certify: impl FnOnce(&str) -> Result<String, E>,
    ) -> Result<(), EnrolError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let tls = Arc::new(self.credentials.enrolling_config()?);
        let request = {
            let (sender, channel) = self.connect(&tls).await?;
            let call = EnrolCall {
                schema: EnrolCall::SCHEMA.to_owned(),
                node: self.node.clone(),
                proof: verifier.scanner_proof(&channel),
            };
            let answer = self.send(sender, Method::POST, "/v1/enrol", &call).await?;
            let answer: EnrolAnswer = serde_json::from_slice(&answer).map_err(EnrolError::Malformed)?;
            verifier.check_agent(&answer.proof, &channel, &answer.request)?;
            answer.request
        };
        let certificate = certify(&request).map_err(|error| EnrolError::Certificate(error.into()))?;
        let call = CertificateCall {
            schema: CertificateCall::SCHEMA.to_owned(),
            certificate,
            operator_key: self.operator_key.clone(),
        };
        let mut tries = 1;
        loop {
            let delivered = match self.connect(&tls).await {
                Ok((sender, _)) => self.send(sender, Method::PUT, "/v1/certificate", &call).await,
                Err(error) => Err(error),
            };
            match delivered {
                Err(error @ EnrolError::Reach { .. }) if tries < TRIES => {
                    tracing::warn!(node = %self.node, "{}; trying again", causes(&error));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    tries += 1;
                }
                delivered => return delivered.map(|_| ()),
            }
        }
    }

    async fn connect(
        &self,
        tls: &Arc<ClientConfig>,
    ) -> Result<(SendRequest<Full<Bytes>>, [u8; EXPORTER_LENGTH]), EnrolError> {
        timeout(LIMIT, self.try_connect(tls))
            .await
            .unwrap_or_else(|elapsed| Err(elapsed.into()))
            .map_err(|source| EnrolError::Reach { url: self.url.clone(), source })
    }

    async fn try_connect(
        &self,
        tls: &Arc<ClientConfig>,
    ) -> Result<(SendRequest<Full<Bytes>>, [u8; EXPORTER_LENGTH]), Box<dyn std::error::Error + Send + Sync>> {
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, self.url.port_or_known_default().unwrap_or(443))).await?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(any_name()?, stream).await?;
        let mut channel = [0; EXPORTER_LENGTH];
        stream.get_ref().1.export_keying_material(&mut channel, EXPORTER_LABEL, None)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its end is seen by who waits for the answer.
        tokio::spawn(connection);
        Ok((sender, channel))
    }

    async fn send<T: Serialize>(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        method: Method,
        path: &str,
        body: &T,
    ) -> Result<Bytes, EnrolError> {
        let reach = |source| EnrolError::Reach { url: self.url.clone(), source };
        let body = serde_json::to_vec(body).map_err(EnrolError::Malformed)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "agent")
            .header("content-type", "application/json")
            .header(TRUST_HEADER, self.trust.to_header())
            .body(Full::from(body))
            .map_err(|error| reach(error.into()))?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_BODY).collect().await?.to_bytes();
            Ok((status, body))
        };
        let (status, body) =
            timeout(LIMIT, answer).await.unwrap_or_else(|elapsed| Err(elapsed.into())).map_err(reach)?;
        match (status.is_success(), serde_json::from_slice::<Problem>(&body)) {
            (true, _) => Ok(body),
            (false, Ok(problem)) => Err(EnrolError::Said { status, detail: problem.detail }),
            (false, Err(_)) => Err(EnrolError::Said { status, detail: String::from_utf8_lossy(&body).into_owned() }),
        }
    }
}

/// TLS wants a name; the agent's identity is in no name.
fn any_name() -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from("agent")
}
