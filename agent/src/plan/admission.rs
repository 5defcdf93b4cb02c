//! Which orders are looked at at all.

use deadlight_shared::Name;
use deadlight_shared::wire::Order;
use jiff::{SignedDuration, Timestamp};

/// Longest time that a scanner's clock may be ahead of a node's: an epoch from the far future would shut its scanner out for
/// good.
const EPOCH_AHEAD: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Why an order is not looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Inadmissible {
    /// It speaks for somebody else than the one who sent it.
    #[error("the order names another scanner than the certificate")]
    Scanner,
    /// It is for another node.
    #[error("the order is for {order}, this is {here}")]
    Node {
        /// The node of the order.
        order: Name,
        /// This node.
        here: Name,
    },
    /// Its epoch has not begun.
    #[error("the order's epoch lies in the future")]
    Future,
    /// It took too long on its way.
    #[error("the order has expired; compare the clocks of scanner and node")]
    Expired,
}

/// Whether `order`, which came from `scanner`, is for node `here` and fresh.
pub fn admit(order: &Order, scanner: &Name, here: &Name, now: Timestamp) -> Result<(), Inadmissible> {
    if order.scanner != *scanner {
        return Err(Inadmissible::Scanner);
    }
    if order.node != *here {
        return Err(Inadmissible::Node { order: order.node.clone(), here: here.clone() });
    }
    if i64::try_from(order.epoch).map_or(true, |epoch| epoch > now.as_second() + EPOCH_AHEAD.as_secs()) {
        return Err(Inadmissible::Future);
    }
    match order.expires_at < now {
        true => Err(Inadmissible::Expired),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_bound_to_scanner_node_and_time() {
        let order: Order = serde_json::from_value(serde_json::json!({
            "schema": Order::SCHEMA, "scanner": "s1", "epoch": 2_692_000, "sequence": 1, "scan": "x", "node": "n1",
            "expires_at": "1970-02-01T04:00:00Z", "findings": [], "allow": [],
        }))
        .unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        let admit = |scanner: &str, node: &str, now| {
            admit(&order, &scanner.parse().unwrap(), &node.parse().unwrap(), at(now)).map_err(|error| error.to_string())
        };
        assert_eq!(admit("s1", "n1", 2_692_000), Ok(()));
        assert_eq!(admit("s1", "n1", 2_692_800), Ok(()), "the last second");
        for (scanner, node, now, wanted) in [
            ("s2", "n1", 2_692_000, "another scanner"),
            ("s1", "n2", 2_692_000, "is for n1, this is n2"),
            ("s1", "n1", 99_999, "in the future"),
            ("s1", "n1", 2_692_801, "has expired"),
        ] {
            let refusal = admit(scanner, node, now).unwrap_err();
            assert!(refusal.contains(wanted), "{refusal}");
        }
        assert_eq!(admit("s1", "n1", 100_000), Ok(()), "a clock that is a month behind");
    }

    #[test]
    fn no_number_is_too_large_for_the_future() {
        let mut order: Order =
            serde_json::from_str(include_str!("../../../shared/src/wire/golden/order.json")).unwrap();
        order.epoch = u64::MAX;
        assert_eq!(admit(&order, &order.scanner, &order.node, Timestamp::UNIX_EPOCH), Err(Inadmissible::Future));
    }
}
