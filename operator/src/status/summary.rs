//! Counts, and what is said of nodes in a line.

use fairlead_crds::{NodeProblem, NodesStatus};

use crate::rollout::nodes::{NodeState, Trouble};

/// How many nodes are named.
const WORST: usize = 3;
/// As the CRD bounds the texts; an agent's words are not bounded.
const MESSAGE: usize = 1024;
const REASON: usize = 64;

/// The counts of nodes, with the worst of them.
pub fn nodes(nodes: &[NodeState]) -> NodesStatus {
    let count = |which: fn(&NodeState) -> bool| count(nodes.iter().filter(|node| which(node)).count());
    let problem = |(node, trouble): (&NodeState, &Trouble)| NodeProblem {
        name: node.name.clone(),
        reason: cut(&trouble.reason, REASON),
        message: cut(&trouble.message, MESSAGE),
    };
    NodesStatus {
        total: count(|_| true),
        updated: count(|node| node.updated),
        healthy: count(NodeState::healthy),
        worst: worst(nodes).into_iter().take(WORST).map(problem).collect(),
    }
}

/// The nodes with trouble, the worst first; of equal ones by name, so that the order stays.
pub fn worst(nodes: &[NodeState]) -> Vec<(&NodeState, &Trouble)> {
    let mut worst: Vec<_> = nodes.iter().filter_map(|node| Some((node, node.trouble.as_ref()?))).collect();
    worst.sort_by(|(one, a), (other, b)| b.severity.cmp(&a.severity).then_with(|| one.name.cmp(&other.name)));
    worst
}

/// The trouble of nodes in a line: the worst by name, the rest by number. Empty where there is none.
pub fn troubles(nodes: &[NodeState]) -> String {
    let worst = worst(nodes);
    let named = worst.iter().take(WORST).map(|(node, trouble)| {
        format!("; {}: {}, {}", node.name, trouble.reason, cut(&trouble.message, MESSAGE / 4))
    });
    let mut line: String = named.collect();
    if worst.len() > WORST {
        line = format!("{line}; and {} more", worst.len().saturating_sub(WORST));
    }
    line
}

/// The version that runs on every node; none while they differ, or one has not told.
pub fn version(nodes: &[NodeState]) -> Option<String> {
    let mut versions = nodes.iter().filter(|node| !node.unreachable).map(|node| node.version.as_ref());
    let first = versions.next()??;
    versions.all(|version| version == Some(first)).then(|| first.clone())
}

/// At most so many bytes of a text, at the border of a character.
pub fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut end = bytes.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    format!("{}…", text.get(..end).unwrap_or_default())
}

fn count(of: usize) -> i32 {
    i32::try_from(of).unwrap_or(i32::MAX)
}
