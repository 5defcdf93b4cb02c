//! Stories on real packets: one module each.

mod lab_is_true;
mod real_docker;
