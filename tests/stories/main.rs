//! Stories on real packets: one module each.

mod alerts;
mod alerts_by_mail;
mod architecture;
mod authority;
mod clobber;
mod clock;
mod closed_loop;
mod docker_gate;
mod docker_socket;
mod door;
mod enrol;
mod guard;
mod harden;
mod injection;
mod kill;
mod lab_is_true;
mod life;
mod lock;
mod node_faults;
mod outbound;
mod page;
mod posture;
mod pull;
mod real_docker;
mod reinsert;
mod revert;
mod second_writer;
mod secrets;
mod secrets_at_enrolment;
mod sessions;
mod store;
mod syn_scan;
mod trust;
mod units;

use deadlight_tests::expect;
