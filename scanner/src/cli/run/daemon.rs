//! Round after round: when, with which configuration, and what is looked after in between.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadlight_shared::Name;
use deadlight_shared::hint::{self, HintExt as _, causes};
use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until};

use super::super::check::{self, Checked, today};
use super::super::past::hinted;
use super::super::{Exit, Failure};
use super::second::witness;
use super::{exit, notify, part};
use crate::alert::{Beat, Courier, Heartbeat, Sink};
use crate::config::{Config, TrustSource};
use crate::deliver::Agent;
use crate::probe::Payloads;
use crate::pull::Hub;
use crate::round::{Ending, Scope};
use crate::schedule::Schedule;
use crate::store::{Database, Part, Past, Record, Store, Swept};
use crate::upkeep;
use crate::web::Page;

/// How often certificates are looked after between rounds.
const UPKEEP: Duration = Duration::from_secs(3_600);
/// How soon a sweep that somebody wants begins.
const WANTED: Duration = Duration::from_secs(1);
/// How often a sign of life that is owed is tried.
const LIVES: Duration = Duration::from_secs(5);
/// For alerts that are on their way while the places that they go to are read anew.
const HANDED_OVER: Duration = Duration::from_secs(15);

pub(super) struct Scanner {
    pub(super) config: Config,
    /// Where nodes call.
    hub: Option<Hub>,
    pub(super) agents: BTreeMap<Name, Agent>,
    /// The generation of the trust document that calls to them carry.
    told: u64,
    pub(super) store: Store,
    pub(super) database: Arc<Database>,
    /// What is ours, where others look after the rest.
    pub(super) part: Option<Part>,
    /// Whether the database may know another part to be ours.
    pub(super) is_unsure: bool,
    pub(super) courier: Courier,
    pub(super) payloads: Payloads,
    /// Places that nobody brings alerts to, because the database could not say how far they had come.
    mute: Option<Vec<Sink>>,
    /// The wish for a sweep that was granted last.
    granted: Option<Timestamp>,
    heartbeat: Option<Heartbeat>,
    /// Of the last full sweep: the sign of life waits for its alerts.
    pub(super) beat: Option<Beat>,
    /// The configuration as the page has it.
    shown: watch::Sender<Arc<Config>>,
    /// What looks where other scanners want us to; it ends with us.
    witness: JoinSet<()>,
}

impl Scanner {
    pub(super) async fn new(checked: Checked, database: Arc<Database>) -> Result<Self, Failure> {
        let Checked { config, credentials, payloads, sinks, heartbeat } = checked;
        let store = Store::new(database.load().await.map_err(hinted)?, Timestamp::now());
        let hub = upkeep::open(&config, credentials.as_ref()).hint(
            "[pull] listen must be an address of this host that nobody else listens on; `ss -lntp` shows who does",
        )?;
        let agents = check::agents(&config, hub.as_ref())?;
        let courier = Courier::start(sinks, &database).await.map_err(hinted)?;
        let shown = watch::Sender::new(Arc::new(config.clone()));
        Ok(Self {
            part: database.is_shared().then(Part::default),
            is_unsure: false,
            config,
            hub,
            agents,
            told: 0,
            store,
            database,
            courier,
            payloads,
            mute: None,
            granted: None,
            heartbeat,
            beat: None,
            shown,
            witness: JoinSet::new(),
        })
    }

    /// One full round.
    pub(super) async fn once(&mut self) -> Result<Exit, Failure> {
        self.share().await;
        self.keep_certificates().await;
        self.grant().await;
        let elsewhere = self.config.nodes.len() - self.ours().nodes.len();
        let ending = match elsewhere == self.config.nodes.len() {
            true => Ending::default(),
            false => self.round(Scope::Full).await?,
        };
        if elsewhere > 0 {
            tracing::warn!(
                "other scanners look after {elsewhere} nodes: `deadlight-scanner status` says what they saw"
            );
        }
        Ok(exit(&ending, elsewhere))
    }

    /// Round after round. The configuration is read from `path` again whenever somebody asks for it.
    pub(super) async fn forever(&mut self, path: &Path) -> Result<Exit, Failure> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut schedule = Schedule::new(self.config.every, self.config.quick, Instant::now());
        let (mut wanted, mut news, mut lives) = (ticks(WANTED), ticks(upkeep::NEWS), ticks(LIVES));
        let mut shares = ticks(part::pause(self.config.lease));
        let mut kept = Instant::now();
        self.share().await;
        self.begin_witness();
        self.open_page().await?;
        notify(&[NotifyState::Ready]);
        if let Some(limit) = sd_notify::watchdog_enabled() {
            tokio::spawn(keep_alive(limit / 2));
        }
        loop {
            let (due, scope) = schedule.next();
            tokio::select! {
                biased;
                _ = hangup.recv() => self.reload(path, &mut schedule).await,
                // Before all that may wait for a database or a monitor: nothing keeps a sweep waiting for long.
                () = sleep_until(due.into()) => {
                    schedule.begun(scope, Instant::now(), fastrand::f64());
                    let is_settled = self.scheduled(scope).await;
                    schedule.ended(Instant::now(), is_settled);
                    self.speak().await;
                    // Where one round follows upon the other there is no time in between.
                    self.live().await;
                }
                _ = shares.tick(), if self.part.is_some() => {
                    if self.share().await {
                        schedule.at_once(Instant::now());
                    }
                }
                _ = wanted.tick() => {
                    // A database that cannot be asked is told of at the end of each round.
                    let wanted = self.database.wanted_sweep().await.unwrap_or_default();
                    if wanted.is_some() && wanted != self.granted {
                        self.granted = wanted;
                        schedule.at_once(Instant::now());
                    }
                }
                _ = news.tick() => {
                    if self.is_news() || kept.elapsed() > UPKEEP {
                        self.keep_certificates().await;
                        kept = Instant::now();
                    }
                }
                _ = lives.tick(), if self.beat.is_some() => self.live().await,
            }
        }
    }

    /// Whoever shares the nodes with us can have our opinion, beside all sweeps.
    fn begin_witness(&mut self) {
        self.witness.abort_all();
        if self.part.is_some() {
            let (database, config) = (Arc::clone(&self.database), self.shown.subscribe());
            self.witness.spawn(witness(database, config, self.payloads.clone()));
        }
    }

    /// Waits until all alerts are carried, but no longer than `limit`, and sends the sign of life. Whether they are.
    pub(super) async fn finish(mut self, limit: Duration) -> bool {
        let carried = std::mem::take(&mut self.courier).finish(limit).await;
        self.live().await;
        carried
    }

    /// Sends the sign of life that is owed, as soon as no alert waits.
    async fn live(&mut self) {
        let (Some(heartbeat), Some(beat)) = (&self.heartbeat, &self.beat) else { return };
        let sinks = Past(&self.database).sinks(&self.config.vantage).await;
        if !sinks.is_ok_and(|sinks| sinks.iter().all(|sink| sink.waiting == 0)) {
            return;
        }
        match heartbeat.send(beat).await {
            Ok(()) => self.beat = None,
            Err(error) => tracing::warn!("[heartbeat] did not arrive: {}", causes(&error)),
        }
    }

    async fn open_page(&self) -> Result<(), Failure> {
        let Some(web) = &self.config.web else { return Ok(()) };
        let hint =
            "[web] listen must be an address of this host that nobody else listens on; `ss -lntp` shows who does";
        let page = Page::open(web, self.shown.subscribe(), Arc::clone(&self.database)).await.hint(hint)?;
        tracing::info!("the page is at http://{}", page.address()?);
        tokio::spawn(page.serve());
        Ok(())
    }

    /// One round of many; whether nothing waits for its proof.
    async fn scheduled(&mut self, scope: Scope) -> bool {
        self.share().await;
        if self.ours().nodes.is_empty() {
            if scope == Scope::Full {
                self.grant().await;
                self.beat = Some(Beat::of(self.config.vantage.to_string(), &Swept::nothing(Timestamp::now())));
            }
            return true;
        }
        if scope == Scope::Full {
            self.keep_certificates().await;
            self.grant().await;
        }
        match self.round(scope).await {
            Ok(ending) => ending.unproven == 0,
            Err(error) => {
                tracing::error!("{}", hint::line(error.as_ref()));
                true
            }
        }
    }

    /// Whoever waits for a full sweep gets one now.
    async fn grant(&self) {
        if let Err(error) = self.database.take_wanted_sweep().await {
            tracing::debug!("{}", hint::line(&error));
        }
    }

    /// Takes over what stands at `path` by now, and sweeps; or keeps what it has and says why.
    async fn reload(&mut self, path: &Path, schedule: &mut Schedule) {
        match self.changed(path).await {
            Ok(()) => tracing::info!(path = %path.display(), "the configuration is read again"),
            Err(error) => tracing::error!("failed to read the configuration again: {}", hint::line(error.as_ref())),
        }
        schedule.change(self.config.every, self.config.quick, Instant::now());
        schedule.at_once(Instant::now());
    }

    async fn changed(&mut self, path: &Path) -> Result<(), Failure> {
        let Checked { config, payloads, sinks, heartbeat, .. } = check::everything(path, today(Timestamp::now()))?;
        if let Some(key) = self.config.settled_at_start(&config) {
            return Err(format!(
                "{key} is not what it was, and is settled when a scanner starts; nothing is taken over"
            ))
            .hint("restart it: systemctl restart deadlight-scanner")?;
        }
        let agents = check::agents(&config, self.hub.as_ref())?;
        self.shown.send_replace(Arc::new(config.clone()));
        (self.config, self.agents, self.payloads, self.heartbeat) = (config, agents, payloads, heartbeat);
        self.begin_witness();
        // One after the other: two of them would tell everything twice.
        std::mem::take(&mut self.courier).finish(HANDED_OVER).await;
        self.mute = Some(sinks);
        self.speak().await;
        Ok(())
    }

    /// Has alerts brought where nobody brings them, with those that the database does not have yet.
    async fn speak(&mut self) {
        let Some(sinks) = &self.mute else { return };
        match Courier::start(sinks.clone(), &self.database).await {
            Ok(courier) => {
                let unsaved = self.store.unsaved().iter().filter_map(|record| match record {
                    Record::Alert(alert) => Some(alert.clone()),
                    _ => None,
                });
                courier.take(&unsaved.collect::<Vec<_>>());
                self.courier = courier;
                self.mute = None;
            }
            Err(error) => {
                tracing::error!("alerts wait, and are tried again after each round: {}", hint::line(&hinted(error)));
            }
        }
    }

    /// A failure is no reason not to sweep: the certificates that are there hold for days.
    async fn keep_certificates(&mut self) {
        let kept: Result<(), Failure> = async {
            if let Some(TrustSource::Pki(pki)) = &self.config.trust {
                upkeep::keep(&self.config, pki, self.hub.as_ref(), Timestamp::now()).await?;
                self.agents = check::agents(&self.config, self.hub.as_ref())?;
                self.told = pki.read()?.map_or(0, |registry| registry.trust().generation);
                upkeep::spread(pki, &self.agents, Timestamp::now()).await?;
            }
            Ok(())
        }
        .await;
        if let Err(error) = kept {
            tracing::error!("{}", hint::line(error.as_ref()));
        }
    }

    /// Whether somebody is invited, or the trust document is younger than what our calls carry.
    fn is_news(&self) -> bool {
        let Some(TrustSource::Pki(pki)) = &self.config.trust else { return false };
        pki.read().is_ok_and(|registry| {
            registry.is_some_and(|registry| {
                registry.trust().generation != self.told || !registry.invited(Timestamp::now()).is_empty()
            })
        })
    }
}

/// What was missed during a round is not made up for.
pub(super) fn ticks(pause: Duration) -> Interval {
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// As long as this runs, nothing blocks.
async fn keep_alive(pause: Duration) {
    let mut ticks = ticks(pause);
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}
