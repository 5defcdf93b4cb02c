//! How many sockets may be open at once.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept for everything that is no probe: standard streams, files, the agent's connection.
const RESERVE: u64 = 64;
/// More in flight only costs memory.
const MOST: u64 = 16_384;

/// Raises the soft descriptor limit to the hard one; how many probes may then be in flight.
pub fn in_flight_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    usize::try_from(in_flight(current)).unwrap_or(usize::MAX)
}

fn in_flight(descriptors: Option<u64>) -> u64 {
    let free = descriptors.map_or(MOST, |descriptors| descriptors.saturating_sub(RESERVE));
    free.clamp(1, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_a_reserve() {
        assert_eq!(in_flight(Some(1_024)), 960);
        assert_eq!(in_flight(Some(20)), 1);
        assert_eq!(in_flight(Some(1_000_000)), MOST);
        assert_eq!(in_flight(None), MOST);
    }
}
