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
    if not_running.is_some() {
        return not_running;
    }
    if let Some(programmed) = of(PROGRAMMED).filter(|it| !updated && it.status == "False") {
        return Some(told(Severity::NotProgrammed, programmed));
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
    match pod.waiting() {
        Some(waiting) => because(format!("pod {name} is not Ready: {waiting}")),
        None => because(format!("pod {name} is not Ready")),
    }
}
