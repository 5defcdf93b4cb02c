//! The one place where an allowlist of a scanner gains or lacks the power to open: what it names, as far as
//! the operator's signature covers it.

use deadlight_shared::permit::PermitError;
use deadlight_shared::wire::Order;
use deadlight_shared::{Name, OperatorKey, Permit, PortSet};
use jiff::civil::Date;

use super::{Answered, Ledger};

/// What scanners may open on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permitted {
    /// Whatever their allowlists name: this node knows no operator's key.
    All,
    /// Of what their allowlists name, only this.
    Only(PortSet),
}

/// Why the permit of an order is not taken; the one that was taken before holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PermitRefusal {
    /// Not the operator's, not for this node, or no permit.
    #[error("the signed allowlist is refused: {0}")]
    Bad(#[from] PermitError),
    /// A later one was taken before.
    #[error("the signed allowlist is refused as rolled back: its number is {number}, and {highest} was taken before")]
    RolledBack {
        /// Its number.
        number: u64,
        /// The number of the one that holds.
        highest: u64,
    },
    /// Another one of this number was taken before: the operator's key has signed two.
    #[error(
        "the signed allowlist is refused as forked: the operator's key has signed two different ones as {0}; sign a new one, and find out who signed"
    )]
    Forked(u64),
}

impl Permitted {
    /// What `order` opens.
    pub fn by(&self, order: &Order) -> PortSet {
        self.of(&order.allow)
    }

    /// What `order` would open and lacks the operator's word for.
    pub fn denied(&self, order: &Order) -> PortSet {
        order.allow.difference(&self.by(order))
    }

    /// What an order that was taken opens.
    pub(super) fn by_answered(&self, answered: &Answered) -> PortSet {
        self.of(&answered.allow)
    }

    fn of(&self, allow: &PortSet) -> PortSet {
        match self {
            Self::All => allow.clone(),
            Self::Only(ports) => allow.intersection(ports),
        }
    }
}

/// Nothing, until somebody says otherwise.
impl Default for Permitted {
    fn default() -> Self {
        Self::Only(PortSet::default())
    }
}

impl Ledger {
    /// What scanners may open on `node` on `today` (UTC). An operator's key that cannot be read permits nothing.
    pub fn permitted<E>(&self, operator: &Result<Option<OperatorKey>, E>, node: &Name, today: Date) -> Permitted {
        match operator {
            Ok(None) => Permitted::All,
            Ok(Some(key)) => {
                Permitted::Only(self.permit(key, node).map(|permit| permit.ports_at(today)).unwrap_or_default())
            }
            Err(_) => Permitted::default(),
        }
    }

    /// Takes the permit of `order`, if it is the newest of this operator. An order without one changes nothing:
    /// whoever leaves it out could as well have sent the one that holds.
    pub fn take_permit(&mut self, order: &Order, operator: &OperatorKey) -> Result<(), PermitRefusal> {
        let Some(signed) = &order.permit else { return Ok(()) };
        let number = signed.open_for(&order.node, operator)?.number;
        if let Some(highest) = self.permit(operator, &order.node).map(|standing| standing.number) {
            let same = self.permits.get(&operator.to_string()).is_some_and(|standing| standing.text == signed.text);
            match number {
                _ if same => return Ok(()),
                _ if number == highest => return Err(PermitRefusal::Forked(number)),
                _ if number < highest => return Err(PermitRefusal::RolledBack { number, highest }),
                _ => {}
            }
        }
        self.permits.insert(operator.to_string(), signed.clone());
        Ok(())
    }

    /// The permit that holds for `node`.
    pub fn permit(&self, operator: &OperatorKey, node: &Name) -> Option<Permit> {
        self.permits.get(&operator.to_string())?.open_for(node, operator).ok()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use deadlight_shared::{OperatorSecret, PermitEntry, SignedPermit};
    use jiff::civil::date;

    const TODAY: Date = date(2026, 11, 25);

    /// The permit `number` for `node`: `ports` until `expires`.
    pub(crate) fn signed(
        secret: &OperatorSecret,
        node: &str,
        number: u64,
        ports: &str,
        expires: Option<Date>,
    ) -> SignedPermit {
        let entries = vec![PermitEntry { ports: ports.parse().unwrap(), expires }];
        let permit = Permit { schema: Permit::SCHEMA.to_owned(), node: node.parse().unwrap(), number, entries };
        permit.sign(secret).unwrap()
    }

    fn order(permit: Option<SignedPermit>) -> Order {
        serde_json::from_value(serde_json::json!({
            "schema": Order::SCHEMA, "scanner": "s1", "epoch": 1, "sequence": 1, "scan": "x", "node": "n1",
            "expires_at": "2026-11-25T10:00:00Z", "findings": [], "allow": ["80/tcp", "8080/tcp", "8080/udp"],
            "permit": permit,
        }))
        .unwrap()
    }

    struct World {
        secret: OperatorSecret,
        key: OperatorKey,
        ledger: Ledger,
    }

    impl World {
        fn new() -> Self {
            let secret = OperatorSecret::generate().unwrap();
            Self { key: secret.public().unwrap(), secret, ledger: Ledger::default() }
        }

        fn take(&mut self, node: &str, number: u64, ports: &str) -> Result<(), PermitRefusal> {
            let permit = signed(&self.secret, node, number, ports, None);
            self.ledger.take_permit(&order(Some(permit)), &self.key)
        }

        /// What the order opens.
        fn opens(&self, operator: Result<Option<OperatorKey>, ()>, today: Date) -> String {
            self.ledger.permitted(&operator, &"n1".parse().unwrap(), today).by(&order(None)).to_string()
        }

        fn opens_by_key(&self) -> String {
            self.opens(Ok(Some(self.key.clone())), TODAY)
        }
    }

    #[test]
    fn only_what_is_both_named_and_signed_is_opened() {
        let mut world = World::new();
        assert_eq!(world.opens(Ok(None), TODAY), "80/tcp,8080/tcp,8080/udp", "no operator");
        assert_eq!(world.opens(Err(()), TODAY), "", "an operator's key that cannot be read");
        assert_eq!(world.opens_by_key(), "", "nothing signed yet");
        world.take("n1", 7, "8080/tcp,9000/tcp").unwrap();
        assert_eq!(world.opens_by_key(), "8080/tcp");
        let permitted = world.ledger.permitted(&Ok::<_, ()>(Some(world.key.clone())), &"n1".parse().unwrap(), TODAY);
        assert_eq!(permitted.denied(&order(None)).to_string(), "80/tcp,8080/udp");
        let stranger = OperatorSecret::generate().unwrap().public().unwrap();
        assert_eq!(world.opens(Ok(Some(stranger)), TODAY), "", "another operator's");
    }

    #[test]
    fn the_number_only_rises_and_stands_for_one_text() {
        let mut world = World::new();
        world.take("n1", 7, "8080/tcp").unwrap();
        world.take("n1", 7, "8080/tcp").unwrap();
        assert_eq!(world.take("n1", 7, "80/tcp,8080/tcp"), Err(PermitRefusal::Forked(7)));
        assert_eq!(world.take("n1", 6, "80/tcp"), Err(PermitRefusal::RolledBack { number: 6, highest: 7 }));
        assert_eq!(world.opens_by_key(), "8080/tcp", "the first holds");
        world.take("n1", 8, "80/tcp").unwrap();
        assert_eq!(world.opens_by_key(), "80/tcp", "grown and shrunk");
        assert_eq!(world.take("n1", 7, "8080/tcp"), Err(PermitRefusal::RolledBack { number: 7, highest: 8 }));
        world.ledger.forget();
        assert_eq!(world.take("n1", 7, "8080/tcp"), Err(PermitRefusal::RolledBack { number: 7, highest: 8 }));
    }

    #[test]
    fn a_permit_of_another_node_or_key_changes_nothing() {
        let mut world = World::new();
        world.take("n1", 7, "8080/tcp").unwrap();
        let before = world.ledger.clone();
        assert!(matches!(world.take("n2", 8, "80/tcp"), Err(PermitRefusal::Bad(PermitError::Node(_)))));
        let foreign = signed(&OperatorSecret::generate().unwrap(), "n1", 9, "80/tcp", None);
        let refused = world.ledger.take_permit(&order(Some(foreign.clone())), &world.key);
        assert_eq!(refused, Err(PermitRefusal::Bad(PermitError::Signature)));
        world.ledger.take_permit(&order(None), &world.key).unwrap();
        assert_eq!(world.ledger, before);
        // Whoever may write the ledger file cannot put a permit there either.
        world.ledger.permits.insert(world.key.to_string(), foreign);
        assert_eq!(world.opens_by_key(), "");
    }

    #[test]
    fn an_entry_that_expired_opens_nothing() {
        let mut world = World::new();
        let permit = signed(&world.secret, "n1", 1, "8080/tcp", Some(TODAY));
        world.ledger.take_permit(&order(Some(permit)), &world.key).unwrap();
        let key = || Ok(Some(world.key.clone()));
        assert_eq!(world.opens(key(), TODAY), "8080/tcp");
        assert_eq!(world.opens(key(), TODAY.tomorrow().unwrap()), "");
    }
}
