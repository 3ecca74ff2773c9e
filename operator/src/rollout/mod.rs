//! How a revision and a new agent travel over the nodes.
//!
//! Pure. `nodes` judges each node, `verdict` the rollout of a revision, `assign` says which node is
//! told what, `revisions` which revision gets which number, label and end, `pods` which pod is
//! replaced next.

pub mod assign;
pub mod nodes;
pub mod pods;
pub mod revisions;
pub mod verdict;

#[cfg(test)]
pub mod fixtures;

use std::time::Duration;

/// How long a rollout may go without progress before it counts as failed.
pub const PROGRESS_DEADLINE: Duration = Duration::from_secs(600);

/// How many nodes of so many may be badly off without the rollout being failed by it: a tenth, at
/// least one, and always fewer than half. In any cluster of some size a node or two is badly off for
/// reasons of its own.
pub fn tolerated(nodes: usize) -> usize {
    nodes.div_ceil(10).min(nodes.saturating_sub(1) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_nodes_are_tolerated_and_never_half_of_them() {
        let counts = [0, 1, 2, 3, 4, 10, 11, 1000].map(tolerated);
        assert_eq!(counts, [0, 0, 0, 1, 1, 1, 2, 100]);
    }
}
