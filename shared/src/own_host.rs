//! Whether a web request asks for this very host.

use std::net::IpAddr;

/// Whether the `Host` of a request is a name of this machine's own loopback. A page of somebody else's, whose name was
/// made to point here, asks for that name.
pub fn is_own(host: &str) -> bool {
    let port = host.rfind(':').filter(|colon| !host[*colon..].contains(']'));
    let name = host[..port.unwrap_or(host.len())].trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_own;

    #[test]
    fn this_host_has_loopback_names_alone() {
        for host in ["localhost", "localhost:7480", "LocalHost:1", "127.0.0.1:7480", "127.1.2.3", "[::1]:7480", "[::1]"]
        {
            assert!(is_own(host), "{host}");
        }
        for host in ["", "evil.example:7480", "192.0.2.1:7480", "localhost.evil.example", "[2001:db8::1]:1"] {
            assert!(!is_own(host), "{host}");
        }
    }
}
