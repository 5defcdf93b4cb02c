//! A client of the agent that trusts anybody and sends anything.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::{netns::Netns, test_ca::Identity};

/// The answer to an HTTP request.
#[derive(Debug)]
pub struct Response {
    /// Such as 403.
    pub status: u16,
    /// Headers and body as they came.
    pub text: String,
}

/// One HTTP/1.1 request over TLS from inside `namespace`. A refused handshake is an error.
pub fn request(
    namespace: &Netns,
    agent: SocketAddr,
    identity: Option<Identity>,
    method: &str,
    path: &str,
    body: &str,
) -> Result<Response> {
    Ok(recorded(namespace, agent, identity, method, path, body)?.0)
}

/// The same, and every byte that it sent: what a wire-tap has of it.
pub fn recorded(
    namespace: &Netns,
    agent: SocketAddr,
    identity: Option<Identity>,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(Response, Vec<u8>)> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAnybody(provider)));
    let config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain, identity.key)?,
        None => builder.with_no_client_auth(),
    };
    let stream = namespace.enter(|| TcpStream::connect(agent).with_context(|| format!("connect to {agent}")))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let connection = ClientConnection::new(Arc::new(config), ServerName::IpAddress(agent.ip().into()))?;
    let mut tls = StreamOwned::new(connection, Recorder { stream, sent: Vec::new() });
    let sent = write!(
        tls,
        "{method} {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    if let Err(error) = sent {
        // The server may have refused and hung up before; its alert is what counts.
        return Err(refusal(&mut tls).unwrap_or_else(|| error.into()).context("send the request"));
    }
    let mut text = String::new();
    // A server may end the connection without close_notify once it has answered.
    if let Err(error) = tls.read_to_string(&mut text)
        && text.is_empty()
    {
        return Err(error).context("read the answer");
    }
    let status = text.split(' ').nth(1).and_then(|it| it.parse().ok()).with_context(|| format!("no status: {text}"))?;
    Ok((Response { status, text }, tls.sock.sent))
}

/// Sends `bytes` on a connection of their own; what is answered before its end.
pub fn replay(namespace: &Netns, agent: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = namespace.enter(|| TcpStream::connect(agent).with_context(|| format!("connect to {agent}")))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut answer = Vec::new();
    // The agent may hang up in the middle of either.
    if stream.write_all(bytes).is_ok()
        && let Err(error) = stream.read_to_end(&mut answer)
        && error.kind() != ErrorKind::ConnectionReset
    {
        return Err(error).context("read the answer");
    }
    Ok(answer)
}

#[derive(Debug)]
struct Recorder {
    stream: TcpStream,
    sent: Vec<u8>,
}

impl Read for Recorder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes)?;
        self.sent.extend_from_slice(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The alert that the server left behind.
fn refusal(tls: &mut StreamOwned<ClientConnection, Recorder>) -> Option<anyhow::Error> {
    while tls.conn.read_tls(&mut tls.sock).ok()? > 0 {
        if let Err(error) = tls.conn.process_new_packets() {
            return Some(error.into());
        }
    }
    None
}

#[derive(Debug)]
struct TrustAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
