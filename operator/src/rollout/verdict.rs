//! Whether the rollout of a revision has come through.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{PROGRESS_DEADLINE, nodes::NodeState, tolerated};

/// How a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every node that can be expected to has programmed the revision.
    Passed,
    /// Nodes are on their way.
    Moving,
    /// Nodes are on their way no longer, and too many are not there.
    Hung,
}

/// Judges a rollout that made its last progress at `progress`.
///
/// A node whose kubelet is gone is not waited for: in a large cluster there always is one. A node that
/// is badly off for another reason is waited for until the deadline, and holds nothing up after it if
/// it is one of few and does not refuse the revision itself.
pub fn judge(nodes: &[NodeState], progress: Timestamp, now: Timestamp) -> Verdict {
    let updated = nodes.iter().filter(|node| node.updated).count();
    let awaited = nodes.iter().filter(|node| node.awaited()).count();
    if awaited == 0 && (updated > 0 || nodes.is_empty()) {
        return Verdict::Passed;
    }
    if !is_over(progress, now) {
        return Verdict::Moving;
    }
    let refused = nodes.iter().any(NodeState::refuses);
    if updated > 0 && awaited <= tolerated(nodes.len()) && !refused { Verdict::Passed } else { Verdict::Hung }
}

/// Whether the deadline has passed since.
pub fn is_over(progress: Timestamp, now: Timestamp) -> bool {
    now.duration_since(progress) >= signed(PROGRESS_DEADLINE)
}

/// When a rollout made its last progress: it began, or another node was done.
pub fn last_progress(began: Timestamp, nodes: &[NodeState]) -> Timestamp {
    nodes.iter().filter_map(|node| node.updated_at).fold(began, Timestamp::max)
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}
