//! Alerts of the real scanner at real sinks: how soon, ten thousand at once, and through `kill -9` and sinks in trouble.

mod flood;
mod kills;
mod latency;

use std::{path::Path, time::Duration};

use anyhow::Result;
use deadlight_scanner::store::{Database, DatabaseError, Location};
use deadlight_tests::{
    netns::Netns,
    programs::{Running, scanner},
};

const FIRST_PORT: u16 = 9_001;
const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const VANTAGE: &str = "office-a";

/// All parts, or those that are named.
pub(crate) fn measure(words: &[String]) -> Result<()> {
    let parts: [(&str, crate::Measure); 3] =
        [("latency", latency::measure), ("flood", flood::measure), ("kills", kills::measure)];
    let all = parts.iter().all(|(name, _)| words.iter().all(|word| word != name));
    parts.iter().filter(|(name, _)| all || words.iter().any(|word| word == name)).try_for_each(|(_, measure)| measure())
}

/// Starts the real scanner under the configuration `config`.
pub(crate) fn start(place: &Netns, config: &Path, directory: &Path) -> Result<Running> {
    Running::start(scanner(place)?.args(["run", "--config"]).arg(config), "scanner", directory)
}

/// Asks the database of a scanner in `directory`.
pub(crate) fn ask<T, F: Future<Output = Result<T, DatabaseError>>>(
    directory: &Path,
    question: impl FnOnce(Database) -> F,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let file = Location::File(directory.join("deadlight.db"));
        Ok(question(Database::open_existing(&file, &VANTAGE.parse()?).await?).await?)
    })
}
