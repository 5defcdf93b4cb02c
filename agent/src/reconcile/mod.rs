//! Makes what stands equal to what shall stand, and proves it by reading back.

mod pace;

use deadlight_shared::Port;

pub use pace::{End, Pace};

use crate::firewall::{Change, Desired, Firewall, FirewallError, Inspection};

/// A second writer may change the rules between our read and our write: then the write fails as a
/// whole, or the comparison shows it, and the next round starts from what stands now.
const ROUNDS: usize = 5;

/// The end of a successful reconciliation.
#[derive(Debug)]
pub struct Reconciled {
    /// The last look at the kernel: nothing is missing.
    pub inspection: Inspection,
    /// What was written, in order; empty when everything stood already.
    pub written: Vec<Change>,
}

/// Writes what is missing until the kernel holds exactly what `desired` says.
///
/// # Errors
/// [`FirewallError::Protected`] if a script names a port for which `is_protected` holds: nothing
/// of that script is written. Otherwise the last error, or what was still missing after some rounds.
/// Where only Docker's rules cannot be read, the guard is in force all the same when this fails.
pub fn converge(
    firewall: &dyn Firewall,
    desired: &Desired,
    is_protected: impl Fn(Port) -> bool,
) -> Result<Reconciled, FirewallError> {
    let mut written = Vec::new();
    let mut inspection = firewall.inspect(desired)?;
    let mut refusal = None;
    for _ in 0..ROUNDS {
        if inspection.change.is_empty() {
            break;
        }
        let ports = inspection.change.steps.iter().flat_map(|step| &step.ports);
        if let Some(&port) = ports.into_iter().find(|port| is_protected(**port)) {
            return Err(FirewallError::Protected(port));
        }
        let outcome = firewall.apply(&inspection.change);
        match outcome {
            Ok(()) => written.push(inspection.change),
            Err(error) if error.is_temporary() => return Err(error),
            Err(error) => refusal = Some(error),
        }
        inspection = firewall.inspect(desired)?;
    }
    match (inspection.change.is_empty(), inspection.fault.take()) {
        (true, None) => Ok(Reconciled { inspection, written }),
        (true, Some(fault)) => Err(fault),
        (false, _) => Err(refusal.unwrap_or_else(|| FirewallError::NotInForce(inspection.change.to_string()))),
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::fake::Fake;

    fn desired(closed: &str) -> Desired {
        Desired { closed: closed.parse().unwrap(), ..Desired::default() }
    }

    #[test]
    fn writes_once_and_then_nothing() {
        let firewall = Fake::default();
        let wanted = desired("8080/tcp");
        assert_eq!(converge(&firewall, &wanted, |_| false).unwrap().written.len(), 1);
        assert!(converge(&firewall, &wanted, |_| false).unwrap().written.is_empty());
        assert_eq!(firewall.writes(), 1);
    }

    #[test]
    fn another_writer_in_between_is_outlasted() {
        let firewall = Fake::default();
        firewall.lose_next_writes(2);
        let reconciled = converge(&firewall, &desired("8080/tcp"), |_| false).unwrap();
        assert_eq!(reconciled.written.len(), 3);
    }

    #[test]
    fn never_says_done_when_it_is_not() {
        let firewall = Fake::default();
        firewall.lose_next_writes(usize::MAX);
        let error = converge(&firewall, &desired("8080/tcp"), |_| false).unwrap_err();
        assert!(matches!(error, FirewallError::NotInForce(_)));
    }

    #[test]
    fn a_protected_port_stops_the_write() {
        let firewall = Fake::default();
        let error = converge(&firewall, &desired("22/tcp"), |port| port.number.get() == 22).unwrap_err();
        assert!(matches!(error, FirewallError::Protected(_)));
        assert_eq!(firewall.writes(), 0);
    }

    #[test]
    fn a_held_lock_is_pending_not_failed() {
        let firewall = Fake::default();
        firewall.hold_lock(true);
        let error = converge(&firewall, &desired("8080/tcp"), |_| false).unwrap_err();
        assert!(error.is_temporary());
        assert_eq!(firewall.writes(), 1, "whoever holds it is not asked again and again");
    }

    #[test]
    fn a_refused_write_is_tried_on_what_stands_now() {
        let firewall = Fake::default();
        firewall.refuse_next_writes(2);
        let reconciled = converge(&firewall, &desired("8080/tcp"), |_| false).unwrap();
        assert_eq!((reconciled.written.len(), firewall.writes()), (1, 3));
        firewall.refuse_next_writes(usize::MAX);
        let error = converge(&firewall, &desired("8081/tcp"), |_| false).unwrap_err();
        assert!(matches!(error, FirewallError::Refused { .. }));
    }
}
