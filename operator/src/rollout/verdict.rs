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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::rollout::{
        fixtures::at,
        nodes::{Severity, Trouble},
    };

    fn node(updated: bool, trouble: Option<Severity>) -> NodeState {
        NodeState {
            name: "n".to_owned(),
            updated,
            moving: !updated,
            unreachable: trouble == Some(Severity::Unreachable),
            updated_at: updated.then(|| at(100)),
            trouble: trouble.map(|severity| Trouble {
                severity,
                reason: String::new(),
                message: String::new(),
                since: None,
            }),
            version: None,
        }
    }

    fn nodes(well: usize, late: usize, trouble: Severity) -> Vec<NodeState> {
        let well = std::iter::repeat_n(node(true, None), well);
        well.chain(std::iter::repeat_n(node(false, Some(trouble)), late)).collect()
    }

    #[rstest]
    #[case::all_are_there(10, 0, Severity::Pending, [Verdict::Passed, Verdict::Passed])]
    #[case::a_cluster_without_nodes(0, 0, Severity::Pending, [Verdict::Passed, Verdict::Passed])]
    #[case::some_are_on_their_way(5, 5, Severity::Pending, [Verdict::Moving, Verdict::Hung])]
    #[case::one_of_ten_has_trouble_of_its_own(9, 1, Severity::NotProgrammed, [Verdict::Moving, Verdict::Passed])]
    #[case::two_of_ten_have(8, 2, Severity::NotProgrammed, [Verdict::Moving, Verdict::Hung])]
    #[case::one_of_two_has(1, 1, Severity::NotProgrammed, [Verdict::Moving, Verdict::Hung])]
    #[case::one_of_ten_refuses_the_revision(9, 1, Severity::Refused, [Verdict::Moving, Verdict::Hung])]
    #[case::half_are_out_of_reach(5, 5, Severity::Unreachable, [Verdict::Passed, Verdict::Passed])]
    #[case::all_are_out_of_reach(0, 5, Severity::Unreachable, [Verdict::Moving, Verdict::Hung])]
    #[case::the_only_one_has_trouble(0, 1, Severity::NotRunning, [Verdict::Moving, Verdict::Hung])]
    fn a_rollout_passes_moves_or_hangs(
        #[case] well: usize,
        #[case] late: usize,
        #[case] trouble: Severity,
        #[case] before_and_after_the_deadline: [Verdict; 2],
    ) {
        let nodes = nodes(well, late, trouble);
        assert_eq!([599, 600].map(|now| judge(&nodes, at(0), at(now))), before_and_after_the_deadline);
    }

    #[test]
    fn every_node_that_is_done_is_progress() {
        assert_eq!(last_progress(at(50), &nodes(1, 1, Severity::Pending)), at(100));
        assert_eq!(last_progress(at(150), &nodes(1, 1, Severity::Pending)), at(150));
    }
}
