//! What keeps this node from closing, keeping closed or being told: looked at and judged, each with its remedy. Nothing
//! is changed.

mod facts;
mod gather;
mod judge;
#[cfg(test)]
mod tests;

use deadlight_shared::doctor::Findings;

use crate::config::Config;
use crate::node::Node;

/// Looks at everything that `node` stands on.
pub async fn examine(node: &Node, config: &Config) -> Findings {
    Findings::new(judge::judge(&gather::gather(node, config).await))
}
