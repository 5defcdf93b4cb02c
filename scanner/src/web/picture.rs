//! Everything that an answer may need, read at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use deadlight_shared::allowlist::today;
use deadlight_shared::{Finding, Identity, Name, PortSet};
use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};

use super::{NoAnswer, Site};
use crate::config::{Config, TrustSource};
use crate::store::{Coverage, DatabaseError, Past, Silence, SinkState, State};
use crate::view::{Status, Timeline};

/// How far back the timeline of exposures goes, how many it has, and how many changes of each.
const SPAN: SignedDuration = SignedDuration::from_hours(24 * 30);
const TRACKS: usize = 15;
const TURNS: u32 = 500;

pub(super) struct Picture {
    pub(super) now: Timestamp,
    pub(super) today: Date,
    pub(super) config: Arc<Config>,
    pub(super) state: State,
    pub(super) coverage: Coverage,
    pub(super) silences: Vec<Silence>,
    pub(super) sinks: Vec<SinkState>,
}

impl Picture {
    pub(super) async fn take(site: &Site) -> Result<Self, DatabaseError> {
        let config = Arc::clone(&site.config.borrow());
        let (now, past) = (Timestamp::now(), Past(&site.database));
        let mut state = site.database.load_all().await?;
        state.contacts.retain(|name, _| config.has_agent(name));
        // What matters comes first, and of that the youngest.
        state.findings.sort_by_key(|finding| (finding.status.is_over(), std::cmp::Reverse(finding.first_seen)));
        Ok(Self {
            now,
            today: today(now),
            state,
            coverage: past.coverage(&site.vantage, now).await?,
            silences: past.silences(now).await?,
            sinks: past.sinks(&site.vantage).await?,
            config,
        })
    }

    pub(super) fn status(&self) -> Status {
        Status::new(&self.state, self.coverage.clone(), &self.config, self.now)
    }

    pub(super) async fn timeline(&self, site: &Site) -> Result<Timeline, DatabaseError> {
        let mut tracks = Vec::new();
        let from = self.now.checked_sub(SPAN).unwrap_or(Timestamp::MIN);
        let turned = Past(&site.database).turned(from).await?;
        // Those that are not over stand first in any case.
        let is_shown = |finding: &&Finding| !finding.status.is_over() || turned.contains(&finding.id);
        for finding in self.state.findings.iter().filter(is_shown).take(TRACKS) {
            let turns = Past(&site.database).turns(&finding.id, TURNS).await?;
            tracks.push((finding.clone(), turns));
        }
        let mut timeline = Timeline::new(tracks, SPAN, self.now);
        timeline.tracks.retain(|track| !track.bars.is_empty());
        Ok(timeline)
    }

    /// Each node with the ports that may be open on it.
    pub(super) fn nodes(&self) -> Vec<(Name, PortSet)> {
        let expected = self.config.expectations(self.today);
        expected.into_iter().map(|expected| (expected.node, expected.ports)).collect()
    }

    /// The finding that `id` names.
    pub(super) fn finding(&self, id: &str) -> Result<&Finding, NoAnswer> {
        self.state.findings.iter().find(|finding| finding.id.as_str() == id).ok_or(NoAnswer::Nothing)
    }

    pub(super) fn silence_of(&self, finding: &Finding) -> Option<&Silence> {
        self.silences.iter().find(|silence| silence.finding == finding.id)
    }

    /// Until when the certificates of the agents hold; of this scanner's own CA alone, others keep that to themselves.
    pub(super) fn certificates(&self) -> BTreeMap<Name, Timestamp> {
        let Some(TrustSource::Pki(pki)) = &self.config.trust else { return BTreeMap::new() };
        let registry = pki.read().unwrap_or_default();
        let latest = registry.iter().flat_map(|registry| registry.latest());
        let of_agent = latest.filter_map(|certificate| match &certificate.identity {
            Identity::Agent(node) if self.config.has_agent(node) => Some((node.clone(), certificate.to)),
            Identity::Agent(_) | Identity::Scanner(_) => None,
        });
        of_agent.collect()
    }
}
