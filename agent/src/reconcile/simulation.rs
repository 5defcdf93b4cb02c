//! Deaths in the middle of a change, beside another program that writes the same tables.

use deadlight_shared::{Port, PortSet, Protocol};
use fastrand::Rng;

use super::converge;
use crate::firewall::{Desired, fake::Fake};

const DEATHS: usize = 10_000;

#[test]
fn after_10_000_deaths_no_table_is_half_and_the_next_start_converges() {
    let mut rng = Rng::with_seed(7);
    let (mut cut_between, mut old_ledgers) = (0, 0);
    for death in 0..DEATHS {
        let firewall = Fake::default();
        let old = desired(&mut rng);
        converge(&firewall, &old, |_| false).unwrap();
        let new = desired(&mut rng);
        // The ledger is written before the kernel; a death before that leaves the old one.
        let ledger = if rng.u8(..5) == 0 { &old } else { &new };
        let mut possible = vec![ports(&old)];
        if ledger == &new {
            possible.push(ports(&new));
            disturb(&firewall, &mut rng, &mut possible);
            firewall.die_after(Some(rng.usize(..4)));
            converge(&firewall, &new, |_| false).ok();
        } else {
            old_ledgers += 1;
        }
        let tables = firewall.tables();
        assert!(tables.iter().all(|table| possible.contains(table)), "death {death}: {tables:?} of {possible:?}");
        cut_between += usize::from(tables.iter().any(|table| *table != tables[0]));

        // It may die again while it starts, and somebody else may write meanwhile.
        for _ in 0..rng.usize(..3) {
            disturb(&firewall, &mut rng, &mut possible);
            firewall.die_after(Some(rng.usize(..4)));
            converge(&firewall, ledger, |_| false).ok();
        }
        firewall.die_after(None);
        converge(&firewall, ledger, |_| false).unwrap();
        assert!(firewall.tables().iter().all(|table| *table == ports(ledger)), "death {death}");
        assert!(converge(&firewall, ledger, |_| false).unwrap().written.is_empty(), "death {death}: no fixed point");
    }
    assert!(cut_between > DEATHS / 10 && old_ledgers > DEATHS / 10, "{cut_between} {old_ledgers}");
}

fn desired(rng: &mut Rng) -> Desired {
    let closed: PortSet = (0..rng.usize(..6)).filter_map(|_| Port::new(Protocol::Tcp, rng.u16(1..50))).collect();
    Desired { closed, ..Desired::default() }
}

fn ports(desired: &Desired) -> Vec<Port> {
    desired.closed.iter().collect()
}

/// Another program replaces a table, or undoes what is written next.
fn disturb(firewall: &Fake, rng: &mut Rng, possible: &mut Vec<Vec<Port>>) {
    match rng.u8(..4) {
        0 => {
            possible.push(ports(&desired(rng)));
            firewall.clobber(rng.usize(..3), possible[possible.len() - 1].clone());
        }
        1 => firewall.lose_next_writes(1),
        _ => {}
    }
}
