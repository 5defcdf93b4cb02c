//! What a listener on the way hears of an order, and what becomes of it when it is sent again.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    panic, thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use deadlight_tests::{
    hostile::Response,
    lab::{Family::V4, Lab},
};
use fastrand::Rng;

/// Longer than any deadline of the agent's.
const PATIENCE: Duration = Duration::from_secs(15);

/// Everything that a client sent by way of the relay that `call` is given.
pub(super) fn record(
    lab: &Lab,
    agent: SocketAddr,
    call: impl FnOnce(SocketAddr) -> Result<Response>,
) -> Result<Vec<u8>> {
    let (listener, mut server) =
        lab.inet().enter(|| Ok((TcpListener::bind((V4.scanner(), 0))?, TcpStream::connect(agent)?)))?;
    let relay = listener.local_addr()?;
    thread::scope(|scope| {
        let heard = scope.spawn(move || -> Result<Vec<u8>> {
            let (mut client, _) = listener.accept()?;
            let (mut back, mut forth) = (server.try_clone()?, client.try_clone()?);
            let answers = thread::spawn(move || -> std::io::Result<()> {
                std::io::copy(&mut back, &mut forth)?;
                forth.shutdown(Shutdown::Both)
            });
            let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(length @ 1..) = client.read(&mut buffer) {
                heard.extend_from_slice(&buffer[..length]);
                server.write_all(&buffer[..length])?;
            }
            answers.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
            Ok(heard)
        });
        let response = call(relay)?;
        ensure!(response.status == 200, "{response:?}");
        heard.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

/// Sends it again and again, as it is and with one byte changed; each time until the agent hangs up.
pub(super) fn replay(lab: &Lab, agent: SocketAddr, captured: &[u8], count: usize) -> Result<()> {
    let mut rng = Rng::with_seed(1);
    lab.inet().enter(|| {
        for number in 0..count {
            let mut bytes = captured.to_vec();
            if number % 2 == 1 {
                let place = rng.usize(..bytes.len());
                bytes[place] ^= rng.u8(1..);
            }
            let mut stream = TcpStream::connect(agent)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            // The agent may have hung up before the end of it.
            let sent = stream.write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write));
            let mut answer = Vec::new();
            let ended = stream.read_to_end(&mut answer);
            ensure!(!matches!((&sent, &ended), (Ok(()), Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock));
        }
        Ok(())
    })
}
