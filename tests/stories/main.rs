//! Stories on real packets: one module each.

mod architecture;
mod clobber;
mod closed_loop;
mod docker_socket;
mod guard;
mod harden;
mod injection;
mod kill;
mod lab_is_true;
mod lock;
mod node_faults;
mod outbound;
mod posture;
mod real_docker;
mod reinsert;
mod revert;
mod second_writer;
mod secrets;
mod sessions;
mod syn_scan;
mod trust;

use deadlight_tests::expect;
