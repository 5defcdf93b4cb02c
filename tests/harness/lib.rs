//! A node under test, its internet and its containers, in throw-away network namespaces; with the means to ask
//! from outside what a stranger would see.
//!
//! Everything here is real: packets, iptables, nft, sockets, and on demand a real dockerd. Nothing here reaches the
//! machine's own network, and dropping a [`lab::Lab`] leaves nothing behind.

#![expect(clippy::print_stderr, reason = "what a clean-up could not do belongs into the output of the test")]

pub mod alertmanager;
pub mod answer;
pub mod browser;
pub mod capture;
pub mod cgroup;
pub mod closed_engine;
pub mod debian;
pub mod deployment;
pub mod docker_rules;
pub mod dockerd;
pub mod engine;
pub mod expect;
pub mod fake_docker;
pub mod fix_script;
mod furniture;
pub mod hostile;
pub mod image;
pub mod lab;
pub mod mail_server;
pub mod memories;
pub mod netns;
pub mod observability;
pub mod order;
pub mod outbound;
pub mod packages;
pub mod page;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod scratch;
pub mod second_writer;
pub mod secret;
pub mod server;
pub mod session;
pub mod syn_watch;
pub mod systemd;
pub mod test_ca;
pub mod wait;
pub mod wan;
