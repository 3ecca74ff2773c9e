//! How a node fares with the revision it is to run.

use fairlead_crds::{
    conditions::{ACCEPTED, HEALTHY, PROGRAMMED, find, is_true},
    revision::CONFIG_VERSION,
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

use crate::watch::{AgentPod, AgentView};

/// What is known of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its ServiceNetworkNode.
    pub agent: Option<&'a AgentView>,
    /// The agent's pod.
    pub pod: Option<&'a AgentPod>,
    /// Since when it has had none.
    pub bare_since: Option<Timestamp>,
    /// The control plane has lost its kubelet.
    pub unreachable: bool,
}

/// How a node fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// It has programmed the revision it is to run.
    pub updated: bool,
    /// It runs another revision: it is being moved, where an empty one is new.
    pub moving: bool,
    /// Nobody can expect it to do anything now.
    pub unreachable: bool,
    /// When it had programmed what it is to run.
    pub updated_at: Option<Timestamp>,
    /// What is wrong, if anything is.
    pub trouble: Option<Trouble>,
    /// Version of its agent.
    pub version: Option<String>,
}

/// What is wrong with a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// How bad it is.
    pub severity: Severity,
    /// One CamelCase word: the agent's own, where the agent tells of it.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// Since when, where that is known.
    pub since: Option<Timestamp>,
}

/// How bad a node's trouble is, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It is on its way.
    Pending,
    /// It works, less well than it should.
    Degraded,
    /// It cannot be reached.
    Unreachable,
    /// Its agent does not run.
    NotRunning,
    /// Its agent says that the revision is not in effect.
    NotProgrammed,
    /// Its agent refuses the revision.
    Refused,
}

impl NodeState {
    /// Judges a node against the revision it is to run.
    pub fn judge(facts: NodeFacts<'_>, revision: Option<&str>) -> Self {
        let NodeFacts { name, agent, pod: _, bare_since: _, unreachable } = facts;
        let status = agent.map(|agent| &agent.status);
        let runs = status.and_then(|status| status.revision.as_deref());
        let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
        let updated = revision.is_some() && runs == revision && is_true(conditions, PROGRAMMED);
        let updated_at =
            if updated { find(conditions, PROGRAMMED).map(|it| it.last_transition_time.0) } else { None };
        Self {
            name: name.to_owned(),
            updated,
            moving: runs.is_some() && runs != revision,
            unreachable,
            updated_at,
            trouble: trouble(facts, revision, updated),
            version: status.and_then(|status| status.version.clone()),
        }
    }

    /// Whether nothing is wrong.
    pub fn healthy(&self) -> bool {
        self.trouble.is_none()
    }

    /// Whether its agent refuses the revision itself.
    pub fn refuses(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.severity == Severity::Refused)
    }

    /// Whether a rollout has to wait for it.
    pub fn awaited(&self) -> bool {
        !self.updated && !self.unreachable
    }
}

fn trouble(facts: NodeFacts<'_>, revision: Option<&str>, updated: bool) -> Option<Trouble> {
    let NodeFacts { name: _, agent, pod, bare_since, unreachable } = facts;
    let because = |severity, reason: &str, message: String| {
        Some(Trouble { severity, reason: reason.to_owned(), message, since: None })
    };
    if unreachable {
        let message = "its kubelet does not report: bring the node back, or delete its Node".to_owned();
        return because(Severity::Unreachable, "NodeUnreachable", message);
    }
    let not_running = not_running(pod, bare_since);
    let Some(agent) = agent.filter(|agent| !agent.status.conditions.is_empty()) else {
        return not_running.or_else(|| {
            because(Severity::Pending, "NotReporting", "its agent has not reported yet".to_owned())
        });
    };
    let of = |type_: &str| find(&agent.status.conditions, type_);
    // What an agent said of an earlier revision is no word on this one.
    let current = agent.status.observed_generation >= agent.metadata.generation;
    let accepted = of(ACCEPTED)
        .filter(|it| current && agent.spec.revision.as_deref() == revision && it.status == "False");
    if let Some(refused) = accepted {
        return Some(told(Severity::Refused, refused));
    }
    let versions = &agent.status.config_versions;
    if !versions.is_empty() && !versions.iter().any(|version| version == CONFIG_VERSION) {
        let message = format!(
            "its agent knows {}, not {CONFIG_VERSION}: its pod has to be replaced",
            versions.join(", ")
        );
        return because(Severity::NotProgrammed, "AgentTooOld", message);
    }
    // An agent that leaves its node alone is not Ready, and says why. One whose container does not run
    // says nothing: its report is of before.
    let runs = pod.is_some_and(|pod| pod.spec.node_name.is_some() && pod.waiting().is_none());
    let idle = of(PROGRAMMED).filter(|it| !updated && it.status == "False");
    if let (Some(idle), true) = (idle, runs) {
        return Some(told(Severity::NotProgrammed, idle));
    }
    if not_running.is_some() {
        return not_running;
    }
    if !updated {
        let runs = agent.status.revision.as_deref().unwrap_or("no revision");
        return because(Severity::Pending, "RollingOut", format!("it runs {runs} still"));
    }
    of(HEALTHY).filter(|it| it.status == "False").map(|unhealthy| told(Severity::Degraded, unhealthy))
}

fn told(severity: Severity, condition: &Condition) -> Trouble {
    let Condition { reason, message, last_transition_time, .. } = condition;
    Trouble {
        severity,
        reason: reason.clone(),
        message: message.clone(),
        since: Some(last_transition_time.0),
    }
}

fn not_running(pod: Option<&AgentPod>, bare_since: Option<Timestamp>) -> Option<Trouble> {
    let since = pod.and_then(AgentPod::since).map(|time| time.0).or(bare_since);
    let because = |message| {
        Some(Trouble { severity: Severity::NotRunning, reason: "AgentNotReady".to_owned(), message, since })
    };
    let Some(pod) = pod else { return because("it has no pod of the agent".to_owned()) };
    if pod.is_ready() {
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    because(match pod.waiting() {
        Some(waiting) => format!("pod {name} is not Ready: {waiting}"),
        None if pod.spec.node_name.is_none() => format!("pod {name} is not scheduled"),
        None => format!("pod {name} is not Ready"),
    })
}

#[cfg(test)]
mod tests {
    use fairlead_crds::conditions::Truth;

    use super::*;
    use crate::rollout::fixtures::{agent, at, condition, pod, waiting, with};

    const WANTED: Option<&str> = Some("fairlead-1");

    fn judge(agent: Option<&AgentView>, pod: Option<&AgentPod>) -> NodeState {
        let bare_since = pod.is_none().then(|| at(70));
        let facts = NodeFacts { name: "n", agent, pod, bare_since, unreachable: false };
        NodeState::judge(facts, WANTED)
    }

    fn reason(state: &NodeState) -> (Severity, &str, &str) {
        let trouble = state.trouble.as_ref().unwrap();
        (trouble.severity, &trouble.reason, &trouble.message)
    }

    fn well() -> AgentView {
        agent("n", "fairlead-1", "fairlead-1")
    }

    fn says(type_: &str, reason: &str) -> AgentView {
        with(well(), condition(type_, Truth::False, reason, "a sentence", 110))
    }

    #[test]
    fn a_node_that_has_programmed_what_it_is_to_run_and_whose_pod_is_ready_is_well() {
        let state = judge(Some(&well()), Some(&pod("n", "t", true)));
        assert!(state.updated && state.healthy() && !state.moving && !state.awaited());
        assert_eq!((state.updated_at, state.version.as_deref()), (Some(at(100)), Some("0.1.0")));
    }

    #[test]
    fn a_node_that_runs_an_earlier_revision_is_moving() {
        let state = judge(Some(&agent("n", "fairlead-1", "fairlead-0")), Some(&pod("n", "t", true)));
        assert!(!state.updated && state.moving && state.awaited());
        assert_eq!(reason(&state), (Severity::Pending, "RollingOut", "it runs fairlead-0 still"));
    }

    #[test]
    fn an_agent_that_has_not_reported_is_waited_for() {
        let state = judge(None, Some(&pod("n", "t", true)));
        assert!(!state.updated && !state.moving && state.awaited());
        assert_eq!(reason(&state).1, "NotReporting");
    }

    #[test]
    fn what_an_agent_says_is_told_in_its_words() {
        let ready = pod("n", "t", true);
        let refused = says(ACCEPTED, "UnknownField");
        assert_eq!(
            reason(&judge(Some(&refused), Some(&ready))),
            (Severity::Refused, "UnknownField", "a sentence")
        );
        let missing = says(PROGRAMMED, "MissingKernelModule");
        let state = judge(Some(&missing), Some(&ready));
        assert_eq!(reason(&state), (Severity::NotProgrammed, "MissingKernelModule", "a sentence"));
        assert!(!state.updated);
        let unwell = says(HEALTHY, "ForeignState");
        let state = judge(Some(&unwell), Some(&ready));
        assert_eq!(reason(&state), (Severity::Degraded, "ForeignState", "a sentence"));
        assert!(state.updated);
    }

    #[test]
    fn what_an_agent_said_of_an_earlier_revision_is_no_word_on_this_one() {
        let mut told_anew = with(
            agent("n", "fairlead-1", "fairlead-0"),
            condition(ACCEPTED, Truth::False, "UnknownField", "", 110),
        );
        told_anew.metadata.generation = Some(2);
        assert!(!judge(Some(&told_anew), Some(&pod("n", "t", true))).refuses());
        told_anew.status.observed_generation = Some(2);
        assert!(judge(Some(&told_anew), Some(&pod("n", "t", true))).refuses());
    }

    #[test]
    fn an_agent_that_leaves_its_node_alone_is_not_ready_and_says_why() {
        let beside_kube_proxy = says(PROGRAMMED, "KubeProxyConflict");
        let unready = pod("n", "t", false);
        assert_eq!(reason(&judge(Some(&beside_kube_proxy), Some(&unready))).1, "KubeProxyConflict");
        let crashing = waiting(unready, "CrashLoopBackOff");
        assert_eq!(reason(&judge(Some(&beside_kube_proxy), Some(&crashing))).1, "AgentNotReady");
    }

    #[test]
    fn a_report_does_not_hide_that_the_agent_is_gone() {
        let state = judge(Some(&well()), None);
        assert_eq!(reason(&state), (Severity::NotRunning, "AgentNotReady", "it has no pod of the agent"));
        assert_eq!(state.trouble.unwrap().since, Some(at(70)));
        let crashing = waiting(pod("n", "t", false), "CrashLoopBackOff");
        let state = judge(Some(&well()), Some(&crashing));
        assert_eq!(reason(&state).2, "pod agent-n is not Ready: CrashLoopBackOff");
        // what it programmed is in the kernel all the same
        assert!(state.updated);
    }

    #[test]
    fn a_node_out_of_reach_is_not_waited_for() {
        let moving = agent("n", "fairlead-1", "fairlead-0");
        let facts =
            NodeFacts { name: "n", agent: Some(&moving), pod: None, bare_since: None, unreachable: true };
        let state = NodeState::judge(facts, WANTED);
        assert!(!state.awaited() && !state.healthy());
        assert_eq!(reason(&state).1, "NodeUnreachable");
    }

    #[test]
    fn an_agent_that_does_not_know_the_config_has_to_be_replaced() {
        let mut older = agent("n", "fairlead-0", "fairlead-0");
        older.status.config_versions = vec!["config.fairlead.dev/v0".to_owned()];
        let state = judge(Some(&older), Some(&pod("n", "t", true)));
        assert_eq!(reason(&state).1, "AgentTooOld");
    }
}
