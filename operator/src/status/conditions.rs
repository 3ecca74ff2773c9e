//! Which conditions hold.
//!
//! | what is the case                               | Ready          | Reconciling | Stalled     |
//! |------------------------------------------------|----------------|-------------|-------------|
//! | the spec is refused                            | False          |             | InvalidSpec |
//! | a rollout makes no progress                    | False          |             | RolloutHung |
//! | too many nodes have no agent that works        | False          |             |             |
//! | the first rollout is on its way                | False          | RollingOut  |             |
//! | a later one is, or pods are being replaced     | True           | RollingOut  |             |
//! | something could not be written                 | as without     | ApplyFailed |             |
//! | some nodes are badly off for their own reasons | True, named    |             |             |

use fairlead_crds::{
    ComponentStatus,
    conditions::{READY, RECONCILING, STALLED, Truth, Wanted, find},
    names::AGENT,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::{SignedDuration, Timestamp},
};

use super::{Outcome, Reason, summary};
use crate::rollout::{
    nodes::{NodeState, Severity},
    pods::Step,
    tolerated,
    verdict::{Verdict, is_over},
};

/// How long an agent may be away before its node counts as without one: a pod that starts again, a
/// node that reboots.
pub const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// What is the case, as far as the conditions tell it.
struct Case {
    ready: Truth,
    reason: Reason,
    message: String,
    reconciling: Option<(Reason, String)>,
    stalled: bool,
}

/// The conditions after a reconciliation.
pub fn wanted(outcome: &Outcome<'_>, now: Timestamp) -> Vec<Wanted> {
    let Case { ready, reason, message, reconciling, stalled } = case(outcome, now);
    let condition = |type_, status, reason: Reason, message: &str| Wanted {
        type_,
        status,
        reason: reason.as_str(),
        message: message.to_owned(),
    };
    let mut wanted = vec![condition(READY, ready, reason, &message)];
    if let (Some((reason, message)), false) = (reconciling, stalled) {
        wanted.push(condition(RECONCILING, Truth::True, reason, &message));
    }
    if stalled {
        wanted.push(condition(STALLED, Truth::True, reason, &message));
    }
    wanted
}

/// The conditions where nothing could be read: `Ready` and `Stalled` stay as they were.
pub fn failed(before: &[Condition], reason: Reason, message: String) -> Vec<Wanted> {
    let known = find(before, READY);
    let ready = Wanted {
        type_: READY,
        status: match known.map(|ready| ready.status.as_str()) {
            Some("True") => Truth::True,
            Some("False") => Truth::False,
            _ => Truth::Unknown,
        },
        reason: reason.as_str(),
        message: message.clone(),
    };
    vec![ready, Wanted { type_: RECONCILING, status: Truth::True, reason: reason.as_str(), message }]
}

fn case(outcome: &Outcome<'_>, now: Timestamp) -> Case {
    let Outcome { spec, plan, failure, .. } = outcome;
    let progress = progress(outcome);
    let stalled =
        |reason, message| Case { ready: Truth::False, reason, message, reconciling: None, stalled: true };
    if let Err(invalid) = spec {
        let kept = match &plan.revision {
            Some(revision) => format!("nodes go on with {revision}"),
            None => "nothing is rolled out".to_owned(),
        };
        return stalled(Reason::InvalidSpec, format!("{invalid}; until that is mended {kept}"));
    }
    if plan.verdict == Some(Verdict::Hung) {
        return stalled(Reason::RolloutHung, format!("no progress for 10 minutes: {progress}"));
    }
    if let (Step::Wait { for_, .. }, true) = (&plan.pods, pods_hang(outcome, now)) {
        return stalled(Reason::RolloutHung, format!("no progress for 10 minutes: {for_}; {progress}"));
    }
    let rolling = plan.verdict == Some(Verdict::Moving) || !matches!(plan.pods, Step::Done);
    let (ready, reason) = if plan.verdict == Some(Verdict::Moving) && plan.last_good.is_none() {
        (Truth::False, Reason::RollingOut)
    } else if without_agent(&plan.nodes, now) > tolerated(plan.nodes.len()) {
        (Truth::False, Reason::AgentsNotReady)
    } else if rolling {
        (Truth::True, Reason::RollingOut)
    } else {
        (Truth::True, Reason::AsExpected)
    };
    let reconciling = match failure {
        Some((reason, sentence)) => Some((*reason, sentence.clone())),
        None => rolling.then(|| (Reason::RollingOut, waiting_for(&plan.pods, &progress))),
    };
    Case { ready, reason, message: progress, reconciling, stalled: false }
}

fn waiting_for(pods: &Step, progress: &str) -> String {
    match pods {
        Step::Wait { for_, .. } => format!("waiting: {for_}; {progress}"),
        Step::Replace(_) | Step::Done => progress.to_owned(),
    }
}

/// How far nodes and pods are, in a line.
fn progress(outcome: &Outcome<'_>) -> String {
    let plan = outcome.plan;
    let updated = plan.nodes.iter().filter(|node| node.updated).count();
    let total = plan.nodes.len();
    let mut line = match &plan.revision {
        _ if total == 0 => "the cluster has no Linux nodes".to_owned(),
        Some(revision) => format!("{updated} of {total} nodes run {revision}"),
        None => format!("{total} nodes are told nothing yet"),
    };
    if !matches!(plan.pods, Step::Done) {
        let (updated, pods) = (plan.pods_updated, plan.pods_total);
        line = format!("{line}; {updated} of {pods} pods are of the present version");
    }
    line.push_str(&summary::troubles(&plan.nodes));
    line
}

fn pods_hang(outcome: &Outcome<'_>, now: Timestamp) -> bool {
    matches!(&outcome.plan.pods, Step::Wait { since: Some(since), .. } if is_over(*since, now))
}

/// Nodes that can be reached and have had no agent that works for longer than a restart takes.
fn without_agent(nodes: &[NodeState], now: Timestamp) -> usize {
    let without = |node: &&NodeState| {
        node.trouble.as_ref().is_some_and(|trouble| {
            let long = trouble.since.is_some_and(|since| now.duration_since(since) >= GRACE);
            trouble.severity >= Severity::NotRunning && long
        })
    };
    nodes.iter().filter(|node| !node.unreachable).filter(without).count()
}

/// The agents as a component.
pub fn node_agent(outcome: &Outcome<'_>, now: Timestamp) -> ComponentStatus {
    let plan = outcome.plan;
    let without = without_agent(&plan.nodes, now);
    let troubled = plan.nodes.iter().filter(|node| !node.healthy()).count();
    let progressing = plan.verdict == Some(Verdict::Moving) || !matches!(plan.pods, Step::Done);
    let ever = plan.last_good.is_some() || plan.verdict != Some(Verdict::Moving);
    let available = ever && without <= tolerated(plan.nodes.len());
    let reason = match (available, progressing) {
        (_, true) => Reason::RollingOut,
        (false, false) => Reason::AgentsNotReady,
        (true, false) => Reason::AsExpected,
    };
    ComponentStatus {
        // Without the product's name, as in every other status of a component.
        name: AGENT.trim_start_matches("fairlead-").to_owned(),
        available,
        progressing,
        degraded: troubled > 0 && !progressing,
        reason: reason.as_str().to_owned(),
        message: format!("{troubled} of {} nodes are not healthy", plan.nodes.len()),
    }
}
