//! The calls that stand.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadlight_shared::enrol::EXPORTER_LENGTH;
use deadlight_shared::tls::{Caller, Callers};
use deadlight_shared::{KeyId, Name};
use hyper::Method;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::calls::{Calls, patience};
use crate::line::{Answer, Ask, Line, LineError};

/// An agent gives up a call that has been silent for four times as long.
const WARM: Duration = Duration::from_secs(30);
const ALIVE_LIMIT: Duration = Duration::from_secs(10);
/// A call that breaks is dialled anew at once, and what was asked is asked again: orders, and all else, may be.
const TRIES: usize = 3;

/// All calls. Clones share them.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    calls: Mutex<Calls<Arc<Call>>>,
    arrivals: watch::Sender<()>,
    door: watch::Sender<Door>,
    strangers: mpsc::Sender<Stranger>,
    since: Instant,
}

/// Who is let in.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) callers: Arc<Callers>,
    pub(super) tls: Arc<ServerConfig>,
}

/// A connection whose handshake is done.
pub(super) struct Admitted {
    pub(super) caller: Caller,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) channel: [u8; EXPORTER_LENGTH],
    pub(super) line: Line,
}

/// What carries a line; it ends with the connection.
pub(super) type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Somebody who may have an enrolment line.
#[derive(Debug)]
pub struct Stranger {
    /// The key that it holds.
    pub key: KeyId,
    /// What both ends of the connection know and nobody else.
    pub channel: [u8; EXPORTER_LENGTH],
    /// The connection.
    pub line: Line,
}

#[derive(Debug)]
struct Call {
    chain: Vec<CertificateDer<'static>>,
    line: tokio::sync::Mutex<Line>,
    over: Notify,
}

/// What a call is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Orders and questions.
    Work,
    /// A new certificate, for which one that has ended is good enough.
    Renewal,
}

/// Why a node that should call cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No call stands.
    #[error("the node has not called")]
    NotCalled,
    /// Its certificate has ended.
    #[error("the certificate by which the node calls has ended; it may only be renewed")]
    Ended,
    /// It has called, and is let in no longer.
    #[error("the node's call is refused")]
    Refused(#[source] rustls::Error),
    /// It was asked, and did not answer.
    #[error(transparent)]
    Line(#[from] LineError),
}

impl Hub {
    /// A hub that lets in `callers`, who are met by `tls`; strangers among them come out of the channel.
    pub fn new(callers: Arc<Callers>, tls: ServerConfig) -> (Self, mpsc::Receiver<Stranger>) {
        let (strangers, arriving) = mpsc::channel(16);
        let inner = Inner {
            calls: Mutex::default(),
            arrivals: watch::Sender::new(()),
            door: watch::Sender::new(Door { callers, tls: Arc::new(tls) }),
            strangers,
            since: Instant::now(),
        };
        (Self(Arc::new(inner)), arriving)
    }

    /// Lets in `callers` from now on, and ends the calls of all others.
    pub fn admit(&self, callers: Arc<Callers>, tls: ServerConfig) {
        self.0.door.send_replace(Door { callers: Arc::clone(&callers), tls: Arc::new(tls) });
        for (node, call) in self.calls().iter() {
            if let Err(error) = callers.judge(&call.chain) {
                tracing::info!(%node, %error, "its call is refused from now on");
                call.over.notify_one();
            }
        }
    }

    /// Asks the agent of `node`.
    pub async fn ask(&self, node: &Name, purpose: Purpose, ask: &Ask) -> Result<Answer, PullError> {
        let mut tries = 1;
        loop {
            let call = self.call(node, purpose).await?;
            let answer = call.line.lock().await.ask(ask).await;
            match answer {
                Err(LineError::Broken(error)) if tries < TRIES => {
                    tracing::debug!(%node, %error, "the call broke; asking again on the next one");
                    tries += 1;
                }
                Err(error) => {
                    call.over.notify_one();
                    return Err(error.into());
                }
                Ok(answer) => return Ok(answer),
            }
            // Until it is out of the way, it would be found again.
            call.over.notify_one();
            self.gone(node, &call).await;
        }
    }

    pub(super) fn door(&self) -> Door {
        self.0.door.borrow().clone()
    }

    /// Keeps a call until it ends; `connection` carries it.
    pub(super) async fn keep(self, admitted: Admitted, mut connection: Connection) {
        let Admitted { caller, chain, channel, line } = admitted;
        let node = match caller {
            Caller::Agent { node, .. } => node,
            Caller::Stranger(key) => {
                // With nobody there to take it, or too many there already, it calls again.
                if self.0.strangers.try_send(Stranger { key, channel, line }).is_ok() {
                    connection.await;
                }
                return;
            }
        };
        let call = Arc::new(Call { chain, line: tokio::sync::Mutex::new(line), over: Notify::new() });
        let (number, older) = self.calls().put(node.clone(), Arc::clone(&call));
        match older {
            Some(older) => {
                tracing::info!(%node, "called again; the older call is ended");
                older.over.notify_one();
            }
            None => tracing::info!(%node, "called"),
        }
        self.0.arrivals.send_replace(());
        tokio::select! {
            () = &mut connection => tracing::info!(%node, "its call has ended"),
            () = call.keep_warm() => tracing::info!(%node, "no longer answers on its call"),
            () = call.over.notified() => {}
        }
        self.calls().remove(&node, number);
        self.0.arrivals.send_replace(());
    }

    /// The call of `node`, which is waited for.
    async fn call(&self, node: &Name, purpose: Purpose) -> Result<Arc<Call>, PullError> {
        let deadline = Instant::now() + patience(self.0.since.elapsed());
        let mut arrivals = self.0.arrivals.subscribe();
        loop {
            arrivals.borrow_and_update();
            let missing = match self.find(node, purpose) {
                Ok(call) => return Ok(call),
                Err(missing) => missing,
            };
            if timeout_at(deadline, arrivals.changed()).await.is_err() {
                return Err(missing);
            }
        }
    }

    /// Each use of a call is judged as its beginning was: certificates end, and keys are revoked.
    fn find(&self, node: &Name, purpose: Purpose) -> Result<Arc<Call>, PullError> {
        let call = self.calls().get(node).map(|(_, call)| Arc::clone(call)).ok_or(PullError::NotCalled)?;
        match self.door().callers.judge(&call.chain) {
            Ok(Caller::Agent { ended: true, .. }) if purpose == Purpose::Work => Err(PullError::Ended),
            Ok(Caller::Agent { .. }) => Ok(call),
            Ok(Caller::Stranger(_)) => Err(PullError::NotCalled),
            Err(error) => Err(PullError::Refused(error)),
        }
    }

    /// Waits until `call` is no longer the one of `node`.
    async fn gone(&self, node: &Name, call: &Arc<Call>) {
        let mut arrivals = self.0.arrivals.subscribe();
        while self.calls().get(node).is_some_and(|(_, youngest)| Arc::ptr_eq(youngest, call)) {
            // The hub holds the sender.
            if arrivals.changed().await.is_err() {
                return;
            }
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls<Arc<Call>>> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    /// Asks now and then; comes when there is no answer. One that is being asked something else answers that.
    async fn keep_warm(&self) {
        loop {
            sleep(WARM).await;
            if let Ok(mut line) = self.line.try_lock()
                && line.ask(&alive()).await.is_err()
            {
                return;
            }
        }
    }
}

/// What shows that an agent is there.
pub(super) fn alive() -> Ask {
    Ask { method: Method::GET, path: "/v1/alive".into(), body: None, trust: None, limit: ALIVE_LIMIT }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;
    use deadlight_shared::Identity;
    use jiff::Timestamp;
    use rustls::pki_types::pem::PemObject as _;
    use std::collections::BTreeSet;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    struct World {
        hub: Hub,
        /// Whose agent calls, and by what.
        node: Name,
        chain: Vec<CertificateDer<'static>>,
        pki: Pki,
        _directory: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let (directory, now) = (tempfile::tempdir().unwrap(), Timestamp::now());
            let (pki, node): (_, Name) = (Pki::at(directory.path()), "n1".parse().unwrap());
            pki.init(now).unwrap();
            pki.issue(&Identity::Scanner("office-a".parse().unwrap()), 7, now).unwrap();
            let issued = pki.issue(&Identity::Agent(node.clone()), 7, now).unwrap();
            let chain = CertificateDer::pem_file_iter(issued.certificate).unwrap().collect::<Result<_, _>>().unwrap();
            let (callers, tls) = admitted(&pki, &node);
            Self { hub: Hub::new(callers, tls).0, node, chain, pki, _directory: directory }
        }

        /// A call begins; the agent's end of it.
        async fn call(&self) -> DuplexStream {
            let (ours, agent) = duplex(64 * 1024);
            let (line, connection) = Line::over(ours).await.unwrap();
            let caller = Caller::Agent { node: self.node.clone(), ended: false };
            let admitted = Admitted { caller, chain: self.chain.clone(), channel: [0; EXPORTER_LENGTH], line };
            tokio::spawn(self.hub.clone().keep(admitted, Box::pin(connection)));
            agent
        }

        async fn ask(&self) -> Result<Answer, PullError> {
            self.hub.ask(&self.node, Purpose::Work, &alive()).await
        }
    }

    fn admitted(pki: &Pki, node: &Name) -> (Arc<Callers>, ServerConfig) {
        let credentials = pki.credentials(&"office-a".parse().unwrap()).unwrap();
        let callers = Arc::new(credentials.callers([(node.clone(), BTreeSet::new())].into(), false));
        let tls = credentials.answering_config(Arc::clone(&callers)).unwrap();
        (callers, tls)
    }

    /// Waits for a question and reads it.
    async fn heard(agent: &mut DuplexStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(agent.read_u8().await.unwrap());
        }
    }

    async fn answer(agent: &mut DuplexStream) {
        heard(agent).await;
        agent.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_without_a_call_is_waited_for() {
        let world = World::new();
        let began = Instant::now();
        assert!(matches!(world.ask().await, Err(PullError::NotCalled)));
        assert_eq!(began.elapsed().as_secs(), 40, "its first call");
        assert!(matches!(world.ask().await, Err(PullError::NotCalled)));
        assert_eq!(began.elapsed().as_secs(), 45, "it is away");
        let (answered, ()) = tokio::join!(world.ask(), async {
            sleep(Duration::from_secs(4)).await;
            answer(&mut world.call().await).await;
        });
        assert!(answered.unwrap().status.is_success());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_on_a_call_that_broke_is_asked_again_on_the_next() {
        let world = World::new();
        let mut first = world.call().await;
        let (answered, ()) = tokio::join!(world.ask(), async {
            heard(&mut first).await;
            drop(first);
            answer(&mut world.call().await).await;
        });
        assert!(answered.unwrap().status.is_success());
    }

    #[tokio::test(start_paused = true)]
    async fn a_younger_call_takes_over_what_the_older_was_asked() {
        let world = World::new();
        let mut older = world.call().await;
        let (answered, ()) = tokio::join!(world.ask(), async {
            heard(&mut older).await;
            answer(&mut world.call().await).await;
        });
        assert!(answered.unwrap().status.is_success());
        assert!(older.read_u8().await.is_err(), "the older call is ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_does_not_answer_is_ended() {
        let world = World::new();
        let mut mute = world.call().await;
        let (unanswered, ()) = tokio::join!(world.ask(), heard(&mut mute));
        assert!(matches!(unanswered, Err(PullError::Line(LineError::Late(_)))));
        assert!(mute.read_u8().await.is_err(), "what it answers later is nobody's");

        let mut mute = world.call().await;
        let began = Instant::now();
        heard(&mut mute).await;
        assert_eq!(began.elapsed(), WARM, "it is kept warm");
        assert!(mute.read_u8().await.is_err());
        assert_eq!(began.elapsed(), WARM + ALIVE_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_key_is_asked_nothing_on_the_call_that_it_has() {
        let world = World::new();
        let mut call = world.call().await;
        let (answered, ()) = tokio::join!(world.ask(), answer(&mut call));
        assert!(answered.is_ok());
        let (identity, now) = (Identity::Agent(world.node.clone()), Timestamp::now());
        world.pki.update(now, |registry| Ok(registry.revoke(&identity, now)?)).unwrap();
        let (callers, tls) = admitted(&world.pki, &world.node);
        world.hub.admit(callers, tls);
        assert!(call.read_u8().await.is_err());
        let _again = world.call().await;
        assert!(matches!(world.ask().await, Err(PullError::Refused(_))));
    }
}
