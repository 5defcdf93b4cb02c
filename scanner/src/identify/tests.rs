//! Looks at real services on loopback.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use deadlight_shared::Protocol;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

/// Serves one connection with `work`, and what is said about it.
fn served(address: &str, work: impl FnOnce(TcpStream) + Send + 'static) -> Looked {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let target = listener.local_addr().unwrap();
    let serving = thread::spawn(move || work(listener.accept().unwrap().0));
    let looked = look_at(target);
    serving.join().unwrap();
    looked
}

fn look_at(target: SocketAddr) -> Looked {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(look(target.ip(), Port::new(Protocol::Tcp, target.port()).unwrap(), true, LIMIT))
}

#[test]
fn a_service_that_speaks_first_is_heard_and_not_asked() {
    for address in ["127.0.0.1", "::1"] {
        let looked = served(address, |mut stream| {
            stream.write_all(b"SSH-2.0-test\r\n").unwrap();
            let mut asked = Vec::new();
            stream.read_to_end(&mut asked).unwrap_or_default();
            assert_eq!(asked, b"");
        });
        assert_eq!(
            looked,
            Looked { outcome: Outcome::Answered { own_host: true }, service: Some("SSH-2.0-test".into()) }
        );
    }
}

#[test]
fn a_page_is_named_by_its_title() {
    let looked = served("127.0.0.1", |mut stream| {
        let mut request = [0; 1_024];
        let length = stream.read(&mut request).unwrap();
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        assert!(
            request.starts_with("GET / HTTP/1.0\r\n") && request.contains("User-Agent: deadlight-scanner"),
            "{request}"
        );
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n<title>cAdvisor</title>").unwrap();
    });
    assert_eq!(looked.service.as_deref(), Some("HTTP 200, title cAdvisor"));
}

#[test]
fn silence_haste_and_flood_are_bounded() {
    let mute = served("127.0.0.1", |mut stream| drop(stream.read_to_end(&mut Vec::new())));
    assert_eq!(mute.service, None);
    let hasty = served("127.0.0.1", |stream| stream.shutdown(Shutdown::Both).unwrap());
    assert_eq!(hasty, Looked { outcome: Outcome::Answered { own_host: true }, service: None });
    let flood = served("127.0.0.1", |mut stream| while stream.write_all(&[b'x'; 4_096]).is_ok() {});
    assert!(flood.service.unwrap().starts_with("xxxx"));
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(look_at(gone), Looked { outcome: Outcome::Refused, service: None });
}

#[test]
fn a_certificate_tells_its_names() {
    let issued =
        rcgen::generate_simple_self_signed(vec!["n1.example.net".to_owned(), "*.example.net".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let serving = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut session = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        while session.is_handshaking() {
            session.complete_io(&mut stream).unwrap();
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let said = runtime.block_on(async {
        let stream = TcpStream::connect(target).unwrap();
        stream.set_nonblocking(true).unwrap();
        tls::certificate(tokio::net::TcpStream::from_std(stream).unwrap(), target.ip()).await
    });
    serving.join().unwrap();
    let said = said.unwrap();
    assert!(said.starts_with("TLS, certificate for n1.example.net, *.example.net"), "{said}");
}
