//! The enrolment window: open only while `deadlight-agent enroll` runs on the node, for whoever printed the line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadlight_shared::enrol::{EnrolLine, ProofError};
use deadlight_shared::operator::{OperatorKey, OperatorKeyError};
use deadlight_shared::tls::{Credentials, TlsError, Validity, pinned_calling_config, pinned_server_config};
use deadlight_shared::trust::{SignedTrust, TrustError};
use deadlight_shared::wire::{CertificateCall, EnrolAnswer, EnrolCall};
use deadlight_shared::{Identity, KeyId, Name};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::document::{Document, DocumentError, Pair};
use super::keyring::{key_id, key_of, request};
use crate::api::{Caller, Channel, Server, ServerError, Slots, enrol_router};

/// How long the window stays open: as long as the line is good for.
const OPEN: Duration = Duration::from_secs(600);

/// A node that waits for its scanner.
pub struct Window {
    line: EnrolLine,
    key: KeyPair,
    request: String,
    state_dir: PathBuf,
    progress: Mutex<Progress>,
    done: Notify,
}

enum Progress {
    Waiting,
    /// The scanner has proven that it printed the line.
    Proven,
    Enrolled(Enrolled),
    /// It has brought the certificate, and for this reason the node does not have it.
    Lost(Arc<DocumentError>),
}

/// What a node got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// Its name.
    pub node: Name,
    /// Its key.
    pub key: KeyId,
    /// When its certificate holds.
    pub validity: Validity,
}

/// Why a node was not enrolled, or a caller of its window got nothing.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// No key can be made.
    #[error("failed to make a key and its request")]
    Key(#[from] rcgen::Error),
    /// TLS cannot be set up, or the certificate is not one.
    #[error("failed to use the certificate")]
    Tls(#[from] TlsError),
    /// The window cannot be opened.
    #[error("failed to open the enrolment window")]
    Server(#[from] ServerError),
    /// The configuration names another node than the line.
    #[error("the line is for node {named}, the configuration says {configured}")]
    Configured {
        /// What the configuration says.
        configured: Name,
        /// What the line says.
        named: Name,
    },
    /// Nobody came in time.
    #[error("no scanner that printed this line has come within 10 minutes")]
    Timeout,
    /// The caller speaks another version.
    #[error("schema is not {0}")]
    Schema(&'static str),
    /// The caller enrols another node.
    #[error("the line here is for node {ours}, the scanner enrols {theirs}")]
    OtherNode {
        /// The node of the line.
        ours: Name,
        /// The node that the scanner named.
        theirs: Name,
    },
    /// The caller did not print the line.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// A certificate before any proof.
    #[error("the scanner has not proven that it printed the line")]
    Unproven,
    /// A certificate for another key or another name.
    #[error("the certificate is not for {0} and the key that was made here")]
    OtherCertificate(Name),
    /// The trust document is missing or not signed by the CA that the line names.
    #[error("failed to take over the trust document")]
    Trust(#[from] TrustError),
    /// What should be the operator's key is none.
    #[error("failed to pin the operator's key")]
    Operator(#[from] OperatorKeyError),
    /// The identity cannot be kept: its line is spent for nothing.
    #[error("failed to keep the certificate that the scanner brought")]
    Lost(#[source] Arc<DocumentError>),
}

impl Window {
    /// A window for the scanner that printed `line`. What is got is kept in `state_dir`.
    pub fn new(line: EnrolLine, state_dir: &Path) -> Result<Self, WindowError> {
        let key = KeyPair::generate()?;
        let (request, state_dir) = (request(&key)?, state_dir.to_owned());
        let progress = Mutex::new(Progress::Waiting);
        Ok(Self { line, key, request, state_dir, progress, done: Notify::new() })
    }

    /// Listens on `address` until the node has its certificate, or cannot keep it; `slots` are the door's.
    pub async fn wait(self, address: SocketAddr, slots: Slots) -> Result<Enrolled, WindowError> {
        let window = Arc::new(self);
        let (certificate, key) = window.shown()?;
        let (_tls, tls) = watch::channel(Arc::new(pinned_server_config(window.line.authority, certificate, key)?));
        let server = Server::bind(address, tls, enrol_router(Arc::clone(&window)), slots)?;
        window.enrolled(server.run(window.done.notified())).await
    }

    /// Calls `scanners` until the node has its certificate, or cannot keep it.
    pub async fn call(self, scanners: Vec<SocketAddr>) -> Result<Enrolled, WindowError> {
        let window = Arc::new(self);
        let (certificate, key) = window.shown()?;
        let (_tls, tls) = watch::channel(Arc::new(pinned_calling_config(window.line.authority, certificate, key)?));
        let caller = Caller::new(scanners, tls, enrol_router(Arc::clone(&window)));
        window.enrolled(caller.run(window.done.notified())).await
    }

    async fn enrolled(&self, serving: impl Future<Output = ()>) -> Result<Enrolled, WindowError> {
        timeout(OPEN, serving).await.map_err(|_| WindowError::Timeout)?;
        match &*self.progress.lock().unwrap_or_else(PoisonError::into_inner) {
            Progress::Enrolled(enrolled) => Ok(enrolled.clone()),
            Progress::Lost(error) => Err(WindowError::Lost(Arc::clone(error))),
            Progress::Waiting | Progress::Proven => Err(WindowError::Timeout),
        }
    }

    /// Answers a scanner that proves to know the line's secret on this `channel`.
    pub fn answer(&self, call: &EnrolCall, channel: &Channel) -> Result<EnrolAnswer, WindowError> {
        if call.schema != EnrolCall::SCHEMA {
            return Err(WindowError::Schema(EnrolCall::SCHEMA));
        }
        if call.node != self.line.node {
            return Err(WindowError::OtherNode { ours: self.line.node.clone(), theirs: call.node.clone() });
        }
        self.line.secret.check_scanner(&call.proof, &channel.0)?;
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Progress::Waiting = *progress {
            *progress = Progress::Proven;
        }
        let proof = self.line.secret.agent_proof(&channel.0, &self.request);
        Ok(EnrolAnswer { request: self.request.clone(), proof })
    }

    /// Takes the certificate, and the trust document that came with it. Kept or not, the window closes then.
    pub fn take(&self, call: &CertificateCall, trust: Option<&str>) -> Result<(), WindowError> {
        if call.schema != CertificateCall::SCHEMA {
            return Err(WindowError::Schema(CertificateCall::SCHEMA));
        }
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Progress::Waiting = *progress {
            return Err(WindowError::Unproven);
        }
        let trust = SignedTrust::from_header(trust.unwrap_or_default())?.open_pinned(self.line.authority)?;
        let (certificate, key) = (call.certificate.clone(), self.key.serialize_pem());
        let credentials = Credentials::of_pair(&certificate, &key, &trust)?.with_pair(&certificate, &key)?;
        let is_ours = *credentials.identity() == Identity::Agent(self.line.node.clone())
            && key_of(&certificate) == Some(key_id(&self.key));
        if !is_ours {
            return Err(WindowError::OtherCertificate(self.line.node.clone()));
        }
        if let Some(operator) = &call.operator_key {
            OperatorKey::from_pem(operator.as_bytes())?;
        }
        let document = Document {
            pair: Some(Pair { certificate, key }),
            trust: Some(trust),
            operator_key: call.operator_key.clone(),
            ..Document::default()
        };
        if let Err(error) = document.save(&self.state_dir) {
            let error = Arc::new(error);
            *progress = Progress::Lost(Arc::clone(&error));
            self.done.notify_one();
            return Err(WindowError::Lost(error));
        }
        let (node, key, validity) = (self.line.node.clone(), key_id(&self.key), credentials.validity());
        *progress = Progress::Enrolled(Enrolled { node, key, validity });
        self.done.notify_one();
        Ok(())
    }

    /// What shows the key that was made here.
    fn shown(&self) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), WindowError> {
        let certificate = CertificateParams::default().self_signed(&self.key)?.der().clone();
        Ok((certificate, PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()))
    }
}
