//! Which pod of the agents is replaced next.
//!
//! One after another, and the next only when everything that could have been hurt by the last one
//! works. A pod that is outdated and does not work anyway has nothing to lose and goes first.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use crate::{build::TEMPLATE_ANNOTATION, watch::AgentPod};

/// A node where a pod of the agents has to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// The control plane has lost its kubelet: no pod changes there.
    pub unreachable: bool,
    /// It has programmed what it is to run.
    pub programmed: bool,
    /// Since when it has had no pod of the agent, if it has none.
    pub bare_since: Option<Timestamp>,
}

/// What is known when the next pod is chosen.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The agents' pods.
    pub pods: &'a [Arc<AgentPod>],
    /// The nodes by name.
    pub hosts: &'a BTreeMap<String, Host>,
    /// Digest of the pod template in force.
    pub template: &'a str,
    /// Whether the DaemonSet controller has seen that template: it would make a pod of the old one.
    pub template_seen: bool,
    /// Uid of the pod that was deleted last, in case the watch has not told of it yet.
    pub deleted_last: Option<&'a str>,
}

/// What to do about the pods.
#[derive(Clone, Debug)]
pub enum Step {
    /// Every pod that can be is of the present template.
    Done,
    /// Delete this one.
    Replace(Arc<AgentPod>),
    /// Wait for something.
    Wait {
        /// What for.
        for_: String,
        /// Since when it is as it is, where that is known.
        since: Option<Timestamp>,
    },
}

/// Whether a pod was made from another template.
pub fn is_outdated(pod: &AgentPod, template: &str) -> bool {
    pod.annotations().get(TEMPLATE_ANNOTATION).is_none_or(|digest| digest != template)
}

/// What to do next.
pub fn next(situation: &Situation<'_>) -> Step {
    let Situation { pods, hosts, template, template_seen, deleted_last } = situation;
    // Of a pod whose Node is gone the garbage collector of pods takes care.
    let host_of = |pod: &AgentPod| pod.node().and_then(|node| hosts.get(node));
    let within_reach = |pod: &AgentPod| host_of(pod).is_some_and(|host| !host.unreachable);
    let mut pods: Vec<_> = pods.iter().filter(|pod| within_reach(pod)).collect();
    pods.sort_by_key(|pod| pod.name_any());
    if !pods.iter().any(|pod| is_outdated(pod, template)) {
        return Step::Done;
    }
    if !template_seen {
        return wait("the DaemonSet controller has not seen the new template yet".to_owned(), None);
    }
    if let Some(going) = pods.iter().find(|pod| is_going(pod, *deleted_last)) {
        let since = going.metadata.deletion_timestamp.as_ref().map(|time| time.0);
        return wait(format!("pod {} {} is on its way out", going.name_any(), place(going)), since);
    }
    if let Some((node, host)) = hosts.iter().find(|(_, host)| !host.unreachable && host.bare_since.is_some())
    {
        return wait(format!("node {node} has no pod of the agent yet"), host.bare_since);
    }
    if let Some(useless) = pods.iter().find(|pod| is_outdated(pod, template) && !pod.is_ready()) {
        return Step::Replace(Arc::clone(useless));
    }
    if let Some(unready) = pods.iter().find(|pod| !pod.is_ready()) {
        let why = unready.waiting().map(|reason| format!(": {reason}")).unwrap_or_default();
        let since = unready.since().map(|time| time.0);
        return wait(format!("pod {} {} is not Ready{why}", unready.name_any(), place(unready)), since);
    }
    let mut replaced = pods.iter().filter(|pod| !is_outdated(pod, template));
    if let Some(idle) = replaced.find(|pod| host_of(pod).is_some_and(|host| !host.programmed)) {
        let since = idle.since().map(|time| time.0);
        return wait(format!("the node of pod {} {} is not programmed", idle.name_any(), place(idle)), since);
    }
    match pods.into_iter().find(|pod| is_outdated(pod, template)) {
        Some(pod) => Step::Replace(Arc::clone(pod)),
        None => Step::Done,
    }
}

fn is_going(pod: &AgentPod, deleted_last: Option<&str>) -> bool {
    pod.metadata.deletion_timestamp.is_some()
        || pod.metadata.uid.as_deref() == deleted_last && deleted_last.is_some()
}

fn place(pod: &AgentPod) -> String {
    pod.node().map_or("without a node".to_owned(), |node| format!("on {node}"))
}

fn wait(for_: String, since: Option<Timestamp>) -> Step {
    Step::Wait { for_, since }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::fixtures::{at, pod, waiting};

    struct Cluster {
        pods: Vec<Arc<AgentPod>>,
        hosts: BTreeMap<String, Host>,
        template_seen: bool,
        deleted_last: Option<String>,
    }

    impl Cluster {
        fn of(pods: Vec<AgentPod>) -> Self {
            let host = |pod: &AgentPod| {
                (
                    pod.node().unwrap().to_owned(),
                    Host { unreachable: false, programmed: true, bare_since: None },
                )
            };
            Self {
                hosts: pods.iter().map(host).collect(),
                pods: pods.into_iter().map(Arc::new).collect(),
                template_seen: true,
                deleted_last: None,
            }
        }

        fn with_host(mut self, node: &str, change: impl FnOnce(&mut Host)) -> Self {
            let host = Host { unreachable: false, programmed: true, bare_since: None };
            change(self.hosts.entry(node.to_owned()).or_insert(host));
            self
        }

        fn next(&self) -> String {
            let step = next(&Situation {
                pods: &self.pods,
                hosts: &self.hosts,
                template: "new",
                template_seen: self.template_seen,
                deleted_last: self.deleted_last.as_deref(),
            });
            match step {
                Step::Done => "done".to_owned(),
                Step::Replace(pod) => format!("replace {}", pod.name_any()),
                Step::Wait { for_, .. } => for_,
            }
        }
    }

    #[test]
    fn pods_of_the_present_template_are_left_alone() {
        assert_eq!(Cluster::of(vec![pod("a", "new", true), pod("b", "new", false)]).next(), "done");
        assert_eq!(Cluster::of(Vec::new()).next(), "done");
    }

    #[test]
    fn outdated_pods_are_replaced_one_after_another() {
        assert_eq!(Cluster::of(vec![pod("b", "old", true), pod("a", "old", true)]).next(), "replace agent-a");
        assert_eq!(Cluster::of(vec![pod("b", "old", true), pod("a", "new", true)]).next(), "replace agent-b");
    }

    #[test]
    fn the_next_waits_until_the_last_is_ready_and_its_node_programmed() {
        let starting = waiting(pod("a", "new", false), "CrashLoopBackOff");
        let cluster = Cluster::of(vec![starting, pod("b", "old", true)]);
        assert_eq!(cluster.next(), "pod agent-a on a is not Ready: CrashLoopBackOff");
        let idle = Cluster::of(vec![pod("a", "new", true), pod("b", "old", true)])
            .with_host("a", |host| host.programmed = false);
        assert_eq!(idle.next(), "the node of pod agent-a on a is not programmed");
    }

    #[test]
    fn the_next_waits_until_the_last_is_gone_and_made_anew() {
        let mut leaving = pod("a", "old", true);
        leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
        assert_eq!(
            Cluster::of(vec![leaving, pod("b", "old", true)]).next(),
            "pod agent-a on a is on its way out"
        );

        let mut unseen = Cluster::of(vec![pod("a", "old", true), pod("b", "old", true)]);
        unseen.deleted_last = unseen.pods[0].uid();
        assert_eq!(unseen.next(), "pod agent-a on a is on its way out");

        let bare =
            Cluster::of(vec![pod("b", "old", true)]).with_host("a", |host| host.bare_since = Some(at(9)));
        assert_eq!(bare.next(), "node a has no pod of the agent yet");
    }

    #[test]
    fn an_outdated_pod_that_does_not_work_has_nothing_to_lose() {
        let cluster =
            Cluster::of(vec![pod("a", "new", false), pod("b", "old", false), pod("c", "old", true)]);
        assert_eq!(cluster.next(), "replace agent-b");
    }

    #[test]
    fn nothing_is_replaced_before_the_new_template_would_be_used() {
        let mut cluster = Cluster::of(vec![pod("a", "old", true)]);
        cluster.template_seen = false;
        assert_eq!(cluster.next(), "the DaemonSet controller has not seen the new template yet");
    }

    #[test]
    fn a_node_out_of_reach_holds_nothing_up_and_its_pod_is_left_alone() {
        let lost = |pods| Cluster::of(pods).with_host("a", |host| host.unreachable = true);
        assert_eq!(lost(vec![pod("a", "old", false), pod("b", "old", true)]).next(), "replace agent-b");
        assert_eq!(lost(vec![pod("a", "old", false), pod("b", "new", true)]).next(), "done");
        let bare = Cluster::of(vec![pod("b", "old", true)]).with_host("a", |host| {
            *host = Host { unreachable: true, programmed: false, bare_since: Some(at(9)) };
        });
        assert_eq!(bare.next(), "replace agent-b");
    }

    #[test]
    fn a_pod_without_a_digest_is_outdated() {
        let mut foreign = pod("a", "new", true);
        foreign.metadata.annotations = None;
        assert_eq!(Cluster::of(vec![foreign]).next(), "replace agent-a");
    }
}
