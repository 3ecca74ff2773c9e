//! The status of a node, from what its dataplane says. Pure.

use std::{fmt::Display, time::Duration};

use fairlead_crds::{
    ProxyMode, ServiceNetworkNode, ServiceNetworkNodeStatus,
    conditions::{self, ACCEPTED, HEALTHY, PROGRAMMED, Truth, Wanted},
    revision::CONFIG_VERSION,
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

use crate::{
    status::{Applied, Dataplane},
    watch::{SourceError, api::Verdict},
};

/// A change that has waited this long is not going to be programmed: `/healthz` has the same measure.
const LATE: Duration = Duration::from_secs(60);
/// The API takes 32,768 characters; nobody reads them.
const LONGEST_MESSAGE: usize = 1024;
/// How many of several are named.
const NAMED: usize = 3;

/// The reasons of the conditions. Beside them stand those of a node that is left alone (`Refused`), of a
/// source (`SourceError`) and of a revision that is not run (`RefusalReason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// All is as it should be.
    AsExpected,
    /// No revision is asked for.
    NoRevision,
    /// On its way; short-lived, and written only when it is not.
    Progressing,
    /// The revision asked for is not the one that runs.
    NotAccepted,
    /// The kernel refused service ports; tried again.
    ServicesFailed,
    /// Service ports are not programmed for what their Services say.
    ServicesRefused,
    /// Changes wait and are not programmed.
    Late,
}

impl Reason {
    /// As it stands in a condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AsExpected => "AsExpected",
            Self::NoRevision => "NoRevision",
            Self::Progressing => "Progressing",
            Self::NotAccepted => "NotAccepted",
            Self::ServicesFailed => "ServicesFailed",
            Self::ServicesRefused => "ServicesRefused",
            Self::Late => "Late",
        }
    }
}

/// What is to be written to `own`, whose conditions are `before`; `version` is the agent's.
pub fn status(
    own: &ServiceNetworkNode,
    before: &[Condition],
    verdict: &Verdict,
    dataplane: &Dataplane,
    version: &str,
    now: Timestamp,
) -> ServiceNetworkNodeStatus {
    let asked = own.spec.revision.as_deref();
    let wanted =
        vec![accepted(asked, verdict), programmed(asked, verdict, dataplane), healthy(verdict, dataplane)];
    let generation = own.metadata.generation;
    ServiceNetworkNodeStatus {
        observed_generation: generation,
        revision: dataplane
            .applied
            .as_ref()
            .and_then(|applied| applied.revision.as_deref())
            .map(str::to_owned),
        mode: dataplane.applied.as_ref().map(|applied| mode(applied.mode).to_owned()),
        version: Some(version.to_owned()),
        config_versions: vec![CONFIG_VERSION.to_owned()],
        conditions: conditions::update(before, wanted, generation, now),
    }
}

fn accepted(asked: Option<&str>, verdict: &Verdict) -> Wanted {
    let (status, reason, message) = match (asked, verdict) {
        (None, _) => (Truth::Unknown, Reason::NoRevision.as_str(), "no revision is asked for".to_owned()),
        (Some(asked), Verdict::Accepted { revision }) if asked == revision => {
            (Truth::True, Reason::AsExpected.as_str(), format!("revision {asked} was read and understood"))
        }
        (Some(asked), Verdict::Refused { revision, reason, message }) if asked == revision => {
            (Truth::False, reason.as_str(), message.clone())
        }
        (Some(asked), _) => {
            (Truth::Unknown, Reason::Progressing.as_str(), format!("revision {asked} is being read"))
        }
    };
    wanted(ACCEPTED, status, reason, message)
}

fn programmed(asked: Option<&str>, verdict: &Verdict, dataplane: &Dataplane) -> Wanted {
    let no = |reason: &'static str, message: String| wanted(PROGRAMMED, Truth::False, reason, message);
    if let Some(refused) = &dataplane.refused {
        return no(refused.reason, refused.message.clone());
    }
    let applied = dataplane.applied.as_ref();
    let runs = applied.and_then(|applied| applied.revision.as_deref());
    if let (Some(asked), Verdict::Refused { revision, .. }) = (asked, verdict)
        && asked == revision
    {
        let kept = runs.map_or("no revision is in the kernel".to_owned(), |runs| format!("{runs} is kept"));
        return no(Reason::NotAccepted.as_str(), format!("revision {asked} is not run, {kept}"));
    }
    let Some(applied) = applied.filter(|_| asked.is_none() || runs == asked) else {
        let what = asked.map_or("the configuration".to_owned(), |asked| format!("revision {asked}"));
        return no(Reason::Progressing.as_str(), format!("{what} is being programmed"));
    };
    match failed(dataplane).or_else(|| late(dataplane)) {
        Some((reason, message)) => no(reason, message),
        None => wanted(PROGRAMMED, Truth::True, Reason::AsExpected.as_str(), in_kernel(applied)),
    }
}

fn healthy(verdict: &Verdict, dataplane: &Dataplane) -> Wanted {
    // The worst first.
    let refused = dataplane.refused.as_ref().map(|refused| (refused.reason, refused.message.clone()));
    let not_accepted = match verdict {
        Verdict::Refused { reason, message, .. } => Some((reason.as_str(), message.clone())),
        Verdict::NotAsked | Verdict::Accepted { .. } => None,
    };
    let trouble = refused
        .or(not_accepted)
        .or_else(|| failed(dataplane))
        .or_else(|| late(dataplane))
        .or_else(|| source(&dataplane.source.errors))
        .or_else(|| refused_ports(dataplane));
    match trouble {
        Some((reason, message)) => wanted(HEALTHY, Truth::False, reason, message),
        None => wanted(HEALTHY, Truth::True, Reason::AsExpected.as_str(), "nothing is wrong".to_owned()),
    }
}

fn failed(dataplane: &Dataplane) -> Option<(&'static str, String)> {
    let failed = dataplane.rows.error.saturating_sub(dataplane.rows.refused);
    ports(dataplane, failed, false, "not in the kernel, tried again")
        .map(|m| (Reason::ServicesFailed.as_str(), m))
}

fn refused_ports(dataplane: &Dataplane) -> Option<(&'static str, String)> {
    let refused = dataplane.rows.refused;
    ports(dataplane, refused, true, "not programmed").map(|m| (Reason::ServicesRefused.as_str(), m))
}

fn ports(dataplane: &Dataplane, count: usize, refused: bool, what: &str) -> Option<String> {
    let named = dataplane.errors.iter().filter(|error| error.refused == refused);
    let named = several(named.map(|error| format!("{}: {}", error.name, error.reason)), count);
    let ports = if count == 1 { "service port is" } else { "service ports are" };
    (count > 0).then(|| format!("{count} {ports} {what} ({named})"))
}

fn late(dataplane: &Dataplane) -> Option<(&'static str, String)> {
    dataplane.queued_since.filter(|since| since.elapsed() > LATE)?;
    let message = format!("changes have waited to be programmed for more than {} s", LATE.as_secs());
    Some((Reason::Late.as_str(), message))
}

fn source(errors: &[SourceError]) -> Option<(&'static str, String)> {
    let is_of_one_object = |error: &&SourceError| matches!(error, SourceError::Object { .. });
    let first = errors.iter().find(|error| !is_of_one_object(error)).or(errors.first())?;
    let same = errors.iter().filter(|error| error.reason() == first.reason());
    Some((first.reason(), several(same.clone(), same.count())))
}

/// The first few of several, and how many more there are.
fn several(items: impl Iterator<Item = impl Display>, count: usize) -> String {
    let named: Vec<_> = items.take(NAMED).map(|item| item.to_string()).collect();
    let more = count.saturating_sub(named.len());
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{}{more}", named.join("; "))
}

fn in_kernel(applied: &Applied) -> String {
    let revision = applied.revision.as_deref().unwrap_or("the configuration of the last run");
    match applied.mode {
        ProxyMode::IPVS => format!("{revision} and every Service are in the kernel"),
        ProxyMode::None => format!("{revision} has mode None: Fairlead programs no Service"),
    }
}

fn mode(mode: ProxyMode) -> &'static str {
    match mode {
        ProxyMode::IPVS => "IPVS",
        ProxyMode::None => "None",
    }
}

fn wanted(type_: &'static str, status: Truth, reason: &'static str, mut message: String) -> Wanted {
    if let Some((end, _)) = message.char_indices().nth(LONGEST_MESSAGE) {
        message.truncate(end);
    }
    Wanted { type_, status, reason, message }
}

#[cfg(test)]
mod tests {
    use fairlead_crds::ServiceNetworkNodeSpec;

    use super::*;
    use crate::{
        bring_up::Refused,
        dataplane::{RowError, table::Counts},
        model::{Protocol, ServicePortName},
        watch::{ObjectId, api::RefusalReason},
    };

    const ASKED: &str = "fairlead-2";

    fn accepted() -> Verdict {
        Verdict::Accepted { revision: ASKED.to_owned() }
    }

    fn with_applied(revision: &str) -> Dataplane {
        let applied = Applied { revision: Some(revision.into()), mode: ProxyMode::IPVS };
        Dataplane { applied: Some(applied), settled: true, ..Dataplane::default() }
    }

    fn row(name: &str, refused: bool) -> RowError {
        let name = ServicePortName {
            namespace: "a".into(),
            service: name.into(),
            port: "".into(),
            protocol: Protocol::Tcp,
        };
        RowError { name, reason: "no memory".to_owned(), refused }
    }

    fn status_of(verdict: &Verdict, dataplane: &Dataplane) -> ServiceNetworkNodeStatus {
        let spec = ServiceNetworkNodeSpec { revision: Some(ASKED.to_owned()) };
        let mut own = ServiceNetworkNode::new("n1", spec);
        own.metadata.generation = Some(7);
        status(&own, &[], verdict, dataplane, "0.1.0", Timestamp::UNIX_EPOCH)
    }

    /// Each condition as `status reason`.
    fn conditions_of(verdict: &Verdict, dataplane: &Dataplane) -> [String; 3] {
        let status = status_of(verdict, dataplane);
        [ACCEPTED, PROGRAMMED, HEALTHY].map(|type_| {
            let condition = conditions::find(&status.conditions, type_).unwrap();
            format!("{} {}", condition.status, condition.reason)
        })
    }

    fn message(verdict: &Verdict, dataplane: &Dataplane, type_: &str) -> String {
        conditions::find(&status_of(verdict, dataplane).conditions, type_).unwrap().message.clone()
    }

    #[test]
    fn a_node_that_runs_what_it_was_asked_to_says_so() {
        let status = status_of(&accepted(), &with_applied(ASKED));
        assert_eq!(conditions_of(&accepted(), &with_applied(ASKED)), ["True AsExpected"; 3]);
        assert_eq!(status.observed_generation, Some(7));
        assert_eq!((status.revision.as_deref(), status.mode.as_deref()), (Some(ASKED), Some("IPVS")));
        assert_eq!(status.config_versions, [CONFIG_VERSION]);
    }

    #[test]
    fn a_revision_on_its_way_to_the_kernel_is_not_programmed_and_nothing_is_wrong() {
        let before = conditions_of(&accepted(), &with_applied("fairlead-1"));
        assert_eq!(before, ["True AsExpected", "False Progressing", "True AsExpected"]);
        let unread = conditions_of(&Verdict::NotAsked, &with_applied("fairlead-1"));
        assert_eq!(unread, ["Unknown Progressing", "False Progressing", "True AsExpected"]);
    }

    #[test]
    fn a_revision_that_is_not_understood_leaves_the_last_one_in_effect() {
        let verdict = Verdict::Refused {
            revision: ASKED.to_owned(),
            reason: RefusalReason::NotUnderstood,
            message: "revision fairlead-2 holds the unknown field dns: upgrade it".to_owned(),
        };
        let node = with_applied("fairlead-1");
        let expected = ["False RevisionNotUnderstood", "False NotAccepted", "False RevisionNotUnderstood"];
        assert_eq!(conditions_of(&verdict, &node), expected);
        assert_eq!(status_of(&verdict, &node).revision.as_deref(), Some("fairlead-1"));
        assert!(message(&verdict, &node, PROGRAMMED).contains("fairlead-1 is kept"));
    }

    #[test]
    fn a_node_that_is_left_alone_is_neither_programmed_nor_healthy() {
        let refused = Refused { reason: "KubeProxyConflict", message: "kube-proxy answers".to_owned() };
        let node = Dataplane { refused: Some(refused), ..Dataplane::default() };
        let expected = ["True AsExpected", "False KubeProxyConflict", "False KubeProxyConflict"];
        assert_eq!(conditions_of(&accepted(), &node), expected);
        assert_eq!(status_of(&accepted(), &node).mode, None);
    }

    #[test]
    fn services_that_the_kernel_refuses_are_counted_and_the_first_are_named() {
        let rows = Counts { error: 5, refused: 1, ..Counts::default() };
        let errors = ["v", "w", "x", "y"].map(|name| row(name, false)).into_iter().chain([row("z", true)]);
        let node = Dataplane { rows, errors: errors.collect(), ..with_applied(ASKED) };
        let expected = ["True AsExpected", "False ServicesFailed", "False ServicesFailed"];
        assert_eq!(conditions_of(&accepted(), &node), expected);
        let message = message(&accepted(), &node, PROGRAMMED);
        assert!(message.starts_with("4 service ports are not in the kernel"), "{message}");
        assert!(
            message.contains("a/v") && !message.contains("a/y") && message.contains("and 1 more"),
            "{message}"
        );
    }

    #[test]
    fn what_users_wrote_wrongly_is_unhealthy_but_does_not_hold_up_a_rollout() {
        let rows = Counts { error: 1, refused: 1, ..Counts::default() };
        let mut node = Dataplane { rows, errors: vec![row("z", true)], ..with_applied(ASKED) };
        let expected = ["True AsExpected", "True AsExpected", "False ServicesRefused"];
        assert_eq!(conditions_of(&accepted(), &node), expected);
        node.source.errors = vec![
            SourceError::Object { object: ObjectId::Node("n1".into()), problem: "bad".to_owned() },
            SourceError::Follow { kind: "Service", problem: "forbidden".to_owned() },
        ];
        let expected = ["True AsExpected", "True AsExpected", "False NotFollowing"];
        assert_eq!(conditions_of(&accepted(), &node), expected);
    }

    #[test]
    fn with_mode_none_nothing_to_program_is_programmed() {
        let mut node = with_applied(ASKED);
        node.applied = Some(Applied { revision: Some(ASKED.into()), mode: ProxyMode::None });
        assert_eq!(conditions_of(&accepted(), &node), ["True AsExpected"; 3]);
        assert_eq!(status_of(&accepted(), &node).mode.as_deref(), Some("None"));
    }
}
