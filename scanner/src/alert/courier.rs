//! Carries alerts to the sinks, each at its own pace, and remembers how far each has come.

use std::sync::Arc;
use std::time::Duration;

use deadlight_shared::hint::causes;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::queue::{Queue, Sent};
use super::{Alert, Sink};
use crate::store::{Database, DatabaseError};

/// The tasks that carry. What they have not carried when they end is in the database, for the next time.
#[derive(Debug, Default)]
pub struct Courier {
    ways: Vec<mpsc::UnboundedSender<Alert>>,
    tasks: JoinSet<()>,
}

impl Courier {
    /// Begins with what each of `sinks` was not told before.
    pub async fn start(sinks: Vec<Sink>, database: &Arc<Database>) -> Result<Self, DatabaseError> {
        let names: Vec<&str> = sinks.iter().map(|sink| sink.name.as_str()).collect();
        database.keep_sinks(&names).await?;
        let mut courier = Self { ways: Vec::new(), tasks: JoinSet::new() };
        for sink in sinks {
            let untold = database.untold(&sink.name).await?;
            let offered = database.offered(&sink.name).await?;
            let queue = Queue::new(untold, offered, sink.kind().between(), sink.most());
            let (way, alerts) = mpsc::unbounded_channel();
            courier.ways.push(way);
            courier.tasks.spawn(carry(sink, queue, alerts, Arc::clone(database)));
        }
        Ok(courier)
    }

    /// More to tell.
    pub fn take(&self, alerts: &[Alert]) {
        for way in &self.ways {
            for alert in alerts {
                // A task that is gone has panicked; the database still has it.
                if way.send(alert.clone()).is_err() {
                    tracing::error!(number = alert.number, "an alert waits for the next start");
                }
            }
        }
    }

    /// Takes nothing more, and waits until everything is carried, but no longer than `limit`. Whether it is.
    pub async fn finish(mut self, limit: Duration) -> bool {
        self.ways.clear();
        timeout(limit, async { while self.tasks.join_next().await.is_some() {} }).await.is_ok()
    }
}

/// Ends when nothing waits and nothing more can come.
async fn carry(sink: Sink, mut queue: Queue, mut alerts: mpsc::UnboundedReceiver<Alert>, database: Arc<Database>) {
    let mut is_open = true;
    while is_open || !queue.is_empty() {
        let now = Timestamp::now();
        let due = queue.due(now);
        let pause = due.and_then(|due| Duration::try_from(due.duration_since(now)).ok()).unwrap_or_default();
        // At the end nobody waits for others to come along.
        let pause = if is_open || queue.is_failing() { pause } else { Duration::ZERO };
        tokio::select! {
            alert = alerts.recv(), if is_open => match alert {
                Some(alert) => {
                    queue.push([alert]);
                    queue.push(std::iter::from_fn(|| alerts.try_recv().ok()));
                }
                None => is_open = false,
            },
            () = sleep(pause), if due.is_some() => send(&sink, &mut queue, &database).await,
        }
    }
}

async fn send(sink: &Sink, queue: &mut Queue, database: &Database) {
    let message = queue.message();
    // Whoever is killed now sends the same message again, with the same key, and nothing that comes meanwhile.
    let last = message.last().map_or(0, |alert| alert.number);
    if let Err(error) = database.offer(&sink.name, last).await {
        tracing::warn!(sink = sink.name, "after a restart some alerts may come twice: {}", causes(&error));
    }
    let result = sink.send(&message, Timestamp::now()).await;
    let sent = result.as_ref().map_or_else(|error| sink.sent(error), |()| Sent::Accepted);
    let trouble = result.err().map(|error| causes(&error));
    if let Some(trouble) = &trouble {
        let (sink, waiting) = (&sink.name, queue.len());
        match sent {
            Sent::Refused if message.len() > 1 => {
                tracing::warn!(sink, waiting, "alerts come again in halves: {trouble}");
            }
            Sent::Refused => tracing::error!(sink, waiting, "an alert was refused and is left out: {trouble}"),
            Sent::Later(_) | Sent::Accepted => tracing::warn!(sink, waiting, "alerts wait: {trouble}"),
        }
    }
    let told = queue.sent(sent, Timestamp::now(), fastrand::f64());
    let kept = database.tell(&sink.name, told.unwrap_or(0), trouble.as_deref()).await;
    if let Err(error) = kept {
        tracing::warn!(sink = sink.name, "after a restart some alerts may come again: {}", causes(&error));
    }
}
