//! Orders for agents that are older than the scanner.

use std::sync::mpsc;

use deadlight_scanner::deliver::{Agent, DeliverError};
use deadlight_shared::Identity;
use deadlight_shared::tls::{Credentials, TlsPaths};
use deadlight_shared::wire::{Mode, Order, OrderMark, Problem, Report};

use crate::fake_agent;
use crate::program::Deployment;

/// What became of a full order at an agent that does not know the field `unknown`, and the orders that it got.
fn order(unknown: &'static str) -> (Result<Report, DeliverError>, Vec<Order>) {
    let deployment = Deployment::new(&["n1"]);
    let (got, orders) = mpsc::channel();
    let port = fake_agent::start(&deployment, "n1", move |order| {
        let has = serde_json::to_value(&order).unwrap().get(unknown).is_some();
        got.send(order.clone()).unwrap();
        let detail = format!("unknown field `{unknown}`, expected one of `schema`, `scanner` at line 1 column 9");
        let problem = Problem { title: "Unprocessable Entity".into(), status: 422, detail };
        let report = Report {
            schema: Report::SCHEMA.to_owned(),
            node: order.node,
            mode: Mode::Enforce,
            order: OrderMark { epoch: order.epoch, sequence: order.sequence },
            outcomes: Vec::new(),
            warnings: Vec::new(),
        };
        match has {
            true => ("422 Unprocessable Entity", serde_json::to_string(&problem).unwrap()),
            false => ("200 OK", serde_json::to_string(&report).unwrap()),
        }
    });
    let file = |name: &str| deployment.path(name);
    let (ca, certificate, key) = (file("ca.crt"), file("scanner-office-a.crt"), file("scanner-office-a.key"));
    let credentials = Credentials::load(&TlsPaths { ca, certificate, key }).unwrap();
    let order: Order = serde_json::from_str(include_str!("../../../shared/src/wire/golden/order.json")).unwrap();
    let order = Order { peers: vec!["office-b".parse().unwrap()], ..order };
    let tls = credentials.client_config(Identity::Agent(order.node.clone())).unwrap();
    let url = format!("https://127.0.0.1:{port}").parse().unwrap();
    let agent = Agent::new(&order.node, &url, tls, None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(agent.deliver(&order));
    (answer, orders.try_iter().collect())
}

#[test]
fn it_is_ordered_without_what_it_does_not_know_where_nothing_opens_for_that() {
    let (answer, orders) = order("peers");
    assert_eq!(answer.unwrap().order.sequence, 17);
    let [whole, rest] = orders.as_slice() else { panic!("{orders:?}") };
    assert_eq!(*rest, Order { peers: Vec::new(), ..whole.clone() });
}

#[test]
fn it_is_not_ordered_without_the_operators_word() {
    let (answer, orders) = order("permit");
    let error = answer.unwrap_err().to_string();
    assert_eq!(error, "the agent does not know `permit`: it is older than this scanner; update it");
    assert_eq!(orders.len(), 1);
}
