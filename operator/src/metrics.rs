//! Metrics of the operator.

use std::time::Duration;

use fairlead_crds::NodesStatus;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

type Labels = Vec<(&'static str, String)>;

/// What is counted. Cheap to clone: all clones count the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    reconciles: Family<Labels, Counter>,
    duration: Histogram,
    writes: Family<Labels, Counter>,
    leader: Gauge,
    nodes: Family<Labels, Gauge>,
    revision: Family<Labels, Gauge>,
}

/// From a look that finds nothing to do to one that tells a thousand nodes.
const BUCKETS: [f64; 11] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

impl Metrics {
    /// The metrics, in a registry of their own.
    pub fn register() -> (Self, Registry) {
        let metrics = Self {
            reconciles: Family::default(),
            duration: Histogram::new(BUCKETS),
            writes: Family::default(),
            leader: Gauge::default(),
            nodes: Family::default(),
            revision: Family::default(),
        };
        let mut registry = Registry::with_prefix("fairlead_operator");
        registry.register("reconciles", "Reconciliations by result: ok, error", metrics.reconciles.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "Duration of a reconciliation",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register(
            "writes",
            "Writes to the API by kind, verb and result: ok, error",
            metrics.writes.clone(),
        );
        registry.register("leader", "1 while this process leads", metrics.leader.clone());
        registry.register("nodes", "Nodes by state: total, updated, healthy", metrics.nodes.clone());
        registry.register(
            "revision_info",
            "1 for the revision that nodes are to run, with the last good one",
            metrics.revision.clone(),
        );
        (metrics, registry)
    }

    /// A reconciliation has ended.
    pub fn reconciled(&self, ok: bool, took: Duration) {
        self.reconciles.get_or_create(&vec![("result", result(ok))]).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// A write was tried.
    pub fn wrote(&self, kind: &str, verb: &'static str, ok: bool) {
        let verb = verb.split(' ').next().unwrap_or(verb);
        let labels = vec![("kind", kind.to_owned()), ("verb", verb.to_owned()), ("result", result(ok))];
        self.writes.get_or_create(&labels).inc();
    }

    /// Leadership was won.
    pub fn leads(&self) {
        self.leader.set(1);
    }

    /// What the status says of nodes and revisions.
    pub fn state(&self, nodes: &NodesStatus, revision: Option<&str>, last_good: Option<&str>) {
        for (state, count) in [("total", nodes.total), ("updated", nodes.updated), ("healthy", nodes.healthy)]
        {
            self.nodes.get_or_create(&vec![("state", state.to_owned())]).set(count.into());
        }
        self.revision.clear();
        if let Some(revision) = revision {
            let last_good = last_good.unwrap_or_default().to_owned();
            let labels = vec![("revision", revision.to_owned()), ("last_good", last_good)];
            self.revision.get_or_create(&labels).set(1);
        }
    }
}

/// The metrics in the OpenMetrics text format.
pub fn text(registry: &Registry) -> String {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => text,
        Err(error) => {
            tracing::error!(%error, "metrics not written");
            String::new()
        }
    }
}

fn result(ok: bool) -> String {
    if ok { "ok" } else { "error" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_names_that_are_documented() {
        let (metrics, registry) = Metrics::register();
        metrics.reconciled(true, Duration::from_millis(3));
        metrics.wrote("DaemonSet", "apply", true);
        metrics.leads();
        metrics.state(
            &NodesStatus { total: 3, updated: 2, ..NodesStatus::default() },
            Some("fairlead-b"),
            Some("fairlead-a"),
        );
        metrics.state(
            &NodesStatus { total: 3, updated: 3, ..NodesStatus::default() },
            Some("fairlead-b"),
            Some("fairlead-b"),
        );
        let text = text(&registry);
        for line in [
            r#"fairlead_operator_reconciles_total{result="ok"} 1"#,
            r#"fairlead_operator_writes_total{kind="DaemonSet",verb="apply",result="ok"} 1"#,
            "fairlead_operator_reconcile_duration_seconds_count 1",
            "fairlead_operator_leader 1",
            r#"fairlead_operator_nodes{state="updated"} 3"#,
            r#"fairlead_operator_revision_info{revision="fairlead-b",last_good="fairlead-b"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("fairlead-a"), "{text}");
    }
}
