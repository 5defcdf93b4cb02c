//! The text of one answer.

use deadlight_shared::Port;
use deadlight_shared::numbers::{Numbers, number, truth};
use deadlight_shared::tls::Validity;
use deadlight_shared::wire::Callers;
use jiff::Timestamp;

use crate::node::Health;

/// `health` in Prometheus' words, with the certificate that holds as `certificate` says, and who `callers` were.
pub(super) fn encoded(health: &Health, certificate: Validity, callers: Callers) -> prometheus::Result<Vec<u8>> {
    let status = &health.status;
    let numbers = Numbers::new("deadlight_agent");
    let identity = [status.version.clone(), status.node.to_string(), status.mode.to_string()];
    numbers.gauge(
        "info",
        "The program, its node and mode; always 1.",
        ["version", "node", "mode"],
        [(identity, 1.0)],
    )?;
    let gauge = |name, help, value| numbers.gauge(name, help, [], [([], value)]);
    let in_force = truth(status.in_force);
    gauge("in_force", "Whether the kernel holds exactly the rules that it should.", in_force)?;
    gauge("closed_ports", "Ports that shall be closed.", number(status.closed.len()))?;
    gauge("owned_rules", "Lines of our own rules, as `deadlight-agent rules` prints them.", number(health.owned))?;
    gauge("problems", "What `deadlight-agent status` says is wrong or missing.", number(status.problems.len()))?;
    gauge(
        "door_networks",
        "Networks from which alone the agent's own port is reached; 0 where everybody reaches it, or it has none.",
        number(status.door.len()),
    )?;
    gauge(
        "drift_unreported",
        "Repairs of lost rules of which no scanner has heard yet, 20 at most.",
        number(status.drift.len()),
    )?;
    gauge(
        "certificate_expiry_timestamp_seconds",
        "When the agent's certificate ends, as seconds since 1970.",
        seconds(certificate.to),
    )?;
    let dropped = status.closed.iter().map(|closed| {
        let Port { number, protocol } = closed.port;
        ([number.to_string(), protocol.to_string()], closed.dropped)
    });
    numbers.counter(
        "guard_dropped_packets_total",
        "Packets that the guard dropped for a closed port; begins anew where its table is written anew.",
        ["port", "protocol"],
        dropped,
    )?;
    let counter = |name, help, value| numbers.counter(name, help, [], [([], value)]);
    counter("drift_repairs_total", "How often lost rules were put back since the agent started.", health.repairs)?;
    counter("callers_strangers_total", "Connections that ended without a certificate of ours.", callers.strangers)?;
    counter("callers_proven_total", "Connections that showed a certificate of ours.", callers.proven)?;
    counter("callers_evicted_total", "Connections that had to make room for newer ones.", callers.evicted)?;
    counter("callers_panics_total", "Connections that a panic of the agent's code ended.", callers.panics)?;
    let orders = health.orders.iter().map(|(scanner, at)| ([scanner.to_string()], seconds(*at)));
    numbers.gauge(
        "last_order_timestamp_seconds",
        "When a scanner gave its last order since the agent started, as seconds since 1970.",
        ["scanner"],
        orders,
    )?;
    numbers.text()
}

#[expect(clippy::cast_precision_loss, reason = "seconds are far below 2^52")]
fn seconds(at: Timestamp) -> f64 {
    at.as_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadlight_shared::wire::{ClosedPort, Mode, Status};

    #[test]
    fn each_number_is_what_is_known() {
        let closed = ["8080/tcp", "5514/udp"].map(|port| ClosedPort { port: port.parse().unwrap(), dropped: 7 });
        let status = Status {
            schema: Status::SCHEMA.to_owned(),
            node: "n1".parse().unwrap(),
            mode: Mode::Enforce,
            version: "1.2.3".to_owned(),
            closed: closed.into(),
            in_force: true,
            drift: vec!["a rule".to_owned()],
            door: vec!["203.0.113.5".to_owned(), "2001:db8::/48".to_owned()],
            callers: None,
            problems: vec!["one".to_owned(), "two".to_owned(), "three".to_owned()],
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let orders = [("office-a".parse().unwrap(), at(1_700_000_000))].into();
        let health = Health { status, owned: 41, repairs: 5, orders };
        let callers = Callers { strangers: 1, proven: 2, evicted: 3, panics: 4 };
        let text = encoded(&health, Validity { from: at(0), to: at(1_800_000_000) }, callers).unwrap();
        let text = String::from_utf8(text).unwrap();
        let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let wanted = [
            "callers_evicted_total 3",
            "callers_panics_total 4",
            "callers_proven_total 2",
            "callers_strangers_total 1",
            "certificate_expiry_timestamp_seconds 1800000000",
            "closed_ports 2",
            "door_networks 2",
            "drift_repairs_total 5",
            "drift_unreported 1",
            "guard_dropped_packets_total{port=\"5514\",protocol=\"udp\"} 7",
            "guard_dropped_packets_total{port=\"8080\",protocol=\"tcp\"} 7",
            "in_force 1",
            "info{mode=\"enforce\",node=\"n1\",version=\"1.2.3\"} 1",
            "last_order_timestamp_seconds{scanner=\"office-a\"} 1700000000",
            "owned_rules 41",
            "problems 3",
        ];
        assert_eq!(values, wanted.map(|line| format!("deadlight_agent_{line}")));
    }
}
