//! Waiting for a condition instead of sleeping and hoping.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Questions become rarer, because some of them cost more than the answer is worth.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Asks `condition` until it holds. `Err` carries what is still missing; after `limit` that becomes the error.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<T, String>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(status) if Instant::now() >= deadline => bail!("{what}: not after {limit:?}: {status}"),
            Err(_) => {
                thread::sleep(pause);
                pause = (pause * 3 / 2).min(LONGEST_PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_says_what_was_missing() {
        let error = wait_for("the moon", Duration::ZERO, || Err::<(), _>("still below the horizon".to_owned()))
            .expect_err("it never rises");
        assert_eq!(error.to_string(), "the moon: not after 0ns: still below the horizon");
    }
}
