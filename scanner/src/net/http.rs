//! How we ask by HTTP: by TLS of our own, of the address that we were given, and of no other.

use reqwest::ClientBuilder;
use reqwest::redirect::Policy;
use rustls::ClientConfig;

/// A client that asks nobody between, and nobody whom an answer names.
pub fn client(tls: ClientConfig) -> ClientBuilder {
    ClientBuilder::new()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(Policy::none())
        .user_agent(concat!("deadlight-scanner/", env!("CARGO_PKG_VERSION")))
}
