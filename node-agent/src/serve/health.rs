//! `:10256`: what kube-proxy 1.34 answers to load balancers and to the kubelet.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::{Endpoints, Text, answer};
use crate::{model::Family, status::Dataplane};

/// An update that has waited this long is not going to be programmed: twice kube-proxy's sync period.
const LATE: Duration = Duration::from_secs(60);

/// The endpoints of the health port.
pub fn health_router(endpoints: Endpoints) -> Router {
    Router::new().route("/healthz", get(healthz)).route("/livez", get(livez)).with_state(endpoints)
}

/// Load balancers ask whether to send new connections here: not to a node that is going away.
async fn healthz(State(endpoints): State<Endpoints>) -> Text {
    let dataplane = endpoints.shared.read();
    // As kube-proxy since 1.34: a Node that is not known, or no longer, is not eligible.
    let eligible = dataplane.eligible.unwrap_or(false);
    let report = Report::of(&dataplane, &endpoints.families, Now::default(), Some(eligible));
    report.answer(&endpoints.requests.healthz)
}

/// The kubelet asks whether to restart us: that a node is going away is no reason.
async fn livez(State(endpoints): State<Endpoints>) -> Text {
    let report = Report::of(&endpoints.shared.read(), &endpoints.families, Now::default(), None);
    report.answer(&endpoints.requests.livez)
}

/// The time, on both clocks.
#[derive(Clone, Copy, Debug)]
struct Now {
    clock: Timestamp,
    monotonic: Instant,
}

impl Default for Now {
    fn default() -> Self {
        Self { clock: Timestamp::now(), monotonic: Instant::now() }
    }
}

/// `ProxyHealth` of kubernetes `pkg/proxy/healthcheck/proxy_health.go`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    #[serde(serialize_with = "go_time")]
    last_updated: Option<Timestamp>,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    /// Of the proxy alone, eligible or not.
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<Family, FamilyReport>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    #[serde(serialize_with = "go_time")]
    last_updated: Option<Timestamp>,
    healthy: bool,
}

impl Report {
    fn of(dataplane: &Dataplane, families: &[Family], now: Now, node_eligible: Option<bool>) -> Self {
        let waited = |since: Instant| now.monotonic.saturating_duration_since(since);
        let healthy = dataplane.queued_since.is_none_or(|since| waited(since) < LATE);
        let last_programmed = dataplane.last_programmed.and_then(timestamp);
        // One reconciler programs both families in one round.
        let family = FamilyReport { last_updated: last_programmed, healthy };
        let mut report = Self {
            last_updated: last_programmed,
            current_time: now.clock,
            node_eligible,
            healthy,
            status: families.iter().map(|name| (*name, family)).collect(),
        };
        if report.is_ok() {
            // Older kube-proxies told here when their loop last ran, changes or not, and users of
            // this field took an old time for trouble.
            report.last_updated = Some(now.clock);
        }
        report
    }

    fn is_ok(&self) -> bool {
        self.healthy && self.node_eligible.unwrap_or(true)
    }

    fn answer(
        &self,
        requests: &super::MetricFamily<[(&'static str, &'static str); 1], super::Counter>,
    ) -> Text {
        let (status, code) =
            if self.is_ok() { (StatusCode::OK, "200") } else { (StatusCode::SERVICE_UNAVAILABLE, "503") };
        requests.get_or_create(&[("code", code)]).inc();
        // Strings, numbers and maps with string keys cannot fail to be serialised.
        answer(status, "application/json", serde_json::to_string(self).unwrap_or_default())
    }
}

fn timestamp(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}

/// Go writes a time that never was as the first moment of the year 1, and its users test for that.
#[expect(clippy::ref_option, reason = "serde calls it with a reference to the field")]
fn go_time<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => time.serialize(serializer),
        None => serializer.serialize_str("0001-01-01T00:00:00Z"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Now {
        Now { clock: "2026-05-01T12:00:00Z".parse().unwrap(), monotonic: Instant::now() + LATE * 10 }
    }

    /// A dataplane whose oldest change has waited so long.
    fn waiting(now: Now, waited: Duration) -> Dataplane {
        Dataplane {
            queued_since: now.monotonic.checked_sub(waited),
            last_programmed: Some("2026-05-01T11:00:00Z".parse::<Timestamp>().unwrap().into()),
            ..Dataplane::default()
        }
    }

    fn json(dataplane: &Dataplane, eligible: Option<bool>) -> serde_json::Value {
        serde_json::to_value(Report::of(dataplane, &Family::ALL, now(), eligible)).unwrap()
    }

    #[test]
    fn the_body_has_kube_proxys_shape() {
        let dataplane = Dataplane { queued_since: None, ..waiting(now(), LATE) };
        let programmed = serde_json::json!({"lastUpdated": "2026-05-01T11:00:00Z", "healthy": true});
        let body = serde_json::json!({
            "lastUpdated": "2026-05-01T12:00:00Z",
            "currentTime": "2026-05-01T12:00:00Z",
            "nodeEligible": true,
            "healthy": true,
            "status": {"IPv4": programmed, "IPv6": programmed},
        });
        assert_eq!(json(&dataplane, Some(true)), body);
    }

    #[test]
    fn a_change_that_waits_too_long_is_unhealthy_and_one_that_waits_is_not() {
        let now = now();
        let report = |waited| Report::of(&waiting(now, waited), &[Family::V4], now, None);
        assert!(report(Duration::from_secs(59)).is_ok());
        let late = report(Duration::from_secs(60));
        assert!(!late.is_ok());
        assert!(!late.status[&Family::V4].healthy);
        // Trouble shows the time of the last success.
        assert_eq!(late.last_updated.unwrap().to_string(), "2026-05-01T11:00:00Z");
    }

    #[test]
    fn a_node_that_is_going_away_is_refused_though_its_proxy_is_healthy() {
        let dataplane = Dataplane { queued_since: None, ..waiting(now(), LATE) };
        let report = Report::of(&dataplane, &Family::ALL, now(), Some(false));
        assert!(!report.is_ok());
        assert!(report.healthy);
        assert_eq!(json(&dataplane, Some(false))["nodeEligible"], false);
        assert_eq!(json(&dataplane, Some(false))["lastUpdated"], "2026-05-01T11:00:00Z");
    }

    #[test]
    fn livez_knows_no_eligibility() {
        assert!(json(&Dataplane::default(), None).get("nodeEligible").is_none());
    }

    #[test]
    fn what_was_never_programmed_has_gos_zero_time() {
        let body = json(&Dataplane::default(), Some(true));
        assert_eq!(body["status"]["IPv4"]["lastUpdated"], "0001-01-01T00:00:00Z");
        assert_eq!(body["healthy"], true);
    }

    #[test]
    fn only_the_families_that_are_programmed_are_told_of() {
        let report = Report::of(&Dataplane::default(), &[Family::V4], now(), None);
        assert_eq!(report.status.keys().collect::<Vec<_>>(), [&Family::V4]);
    }
}
