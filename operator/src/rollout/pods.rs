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
    let within_reach = |pod: &AgentPod| match pod.spec.node_name.as_ref().and_then(|node| hosts.get(node)) {
        Some(host) => !host.unreachable,
        // Its Node is gone; the garbage collector of pods sees to it.
        None => pod.spec.node_name.is_none(),
    };
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
    let idle = pods.iter().filter(|pod| !is_outdated(pod, template)).find(|pod| {
        let host = pod.spec.node_name.as_ref().and_then(|node| hosts.get(node));
        host.is_some_and(|host| !host.programmed)
    });
    if let Some(idle) = idle {
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
    pod.spec.node_name.as_ref().map_or("without a node".to_owned(), |node| format!("on {node}"))
}

fn wait(for_: String, since: Option<Timestamp>) -> Step {
    Step::Wait { for_, since }
}
