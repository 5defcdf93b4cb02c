//! The same by a helper: seeing who holds other users' sockets takes privileges that open every file of the node, and
//! the agent listens on the network.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::{Listener, View, read};

/// How long each end waits for the other.
const LIMIT: Duration = Duration::from_secs(5);
const MAX_BYTES: u64 = 16 << 20;

type Answer = Result<Vec<Listener>, String>;

/// Asks the helper behind `socket`.
pub(super) fn ask(socket: &Path) -> io::Result<Vec<Listener>> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut bytes = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut bytes)?;
    serde_json::from_slice::<Answer>(&bytes)?.map_err(io::Error::other)
}

/// Says what stands in `/proc` now; a helper reads nothing.
pub async fn tell(mut stream: tokio::net::UnixStream) {
    let look = || -> Answer { read(&View::Own).map_err(|error| error.to_string()) };
    let looked = tokio::task::spawn_blocking(look).await.unwrap_or_else(|error| Err(error.to_string()));
    let told = async { stream.write_all(&serde_json::to_vec(&looked)?).await };
    match tokio::time::timeout(LIMIT, told).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "nobody took the answer"),
        Err(_) => tracing::debug!("the answer was not taken in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_helper_tells_is_what_it_sees() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("listeners.sock");
        let helper = tokio::net::UnixListener::bind(&socket).unwrap();
        let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = own.local_addr().unwrap().port();
        tokio::spawn(async move { tell(helper.accept().await.unwrap().0).await });
        let told = tokio::task::spawn_blocking(move || read(&View::Helper(socket))).await.unwrap().unwrap();
        let listener = told.into_iter().find(|listener| listener.port.number.get() == port).unwrap();
        assert_eq!(listener.process.unwrap().pid, std::process::id());
    }

    /// To see nobody would be to take sshd's port for anybody's.
    #[test]
    fn a_helper_that_is_away_or_breaks_off_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("listeners.sock");
        assert!(read(&View::Helper(socket.clone())).is_err());
        let helper = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for answer in ["", "{\"Ok\":[", "{\"Err\":\"permission denied\"}"] {
            let answering = helper.try_clone().unwrap();
            let thread = std::thread::spawn(move || {
                std::io::Write::write_all(&mut answering.accept().unwrap().0, answer.as_bytes()).unwrap();
            });
            assert!(read(&View::Helper(socket.clone())).is_err(), "{answer}");
            thread.join().unwrap();
        }
    }
}
