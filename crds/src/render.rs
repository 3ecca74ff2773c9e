//! From what a user wrote to what a node runs: every value checked, every omission decided.
//!
//! Pure: no client, no kernel, no clock. It refuses all that the API server refuses, with the
//! same sentences, since an agent that reads its ServiceNetwork from a file has no API server.

use std::time::Duration;

use crate::{
    config::{IpvsConfig, IpvsTimeouts, NodeAgentConfig, ProxyConfig, ProxyMode},
    duration::Limits,
    service_network::{
        DRAIN_TIMEOUT, IPVS_MODE_MESSAGE, IpvsSpec, IpvsTimeoutsSpec, MARK_BIT_MESSAGE,
        MARK_BIT_MODE_MESSAGE, NAME, NAME_MESSAGE, ProxySpec, ServiceNetwork, ServiceNetworkSpec,
        TCP_FIN_TIMEOUT, TCP_TIMEOUT, UDP_TIMEOUT,
    },
};

/// One thing that is wrong with a `ServiceNetwork`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {message}")]
pub struct Problem {
    /// Path of the field, such as `spec.proxy.markBit`.
    pub field: String,
    /// What it must be, and what to do: reads on after the path.
    pub message: String,
}

/// Decides every value that a node needs, or lists all that is wrong.
pub fn render(network: &ServiceNetwork) -> Result<NodeAgentConfig, Vec<Problem>> {
    let mut problems = Problems::default();
    if network.metadata.name.as_deref() != Some(NAME) {
        problems.refuse("metadata.name", NAME_MESSAGE);
    }
    let ServiceNetworkSpec { proxy } = network.spec.clone();
    let config = NodeAgentConfig { proxy: render_proxy(proxy.unwrap_or_default(), &mut problems) };
    if problems.0.is_empty() { Ok(config) } else { Err(problems.0) }
}

fn render_proxy(spec: ProxySpec, problems: &mut Problems) -> ProxyConfig {
    let ProxySpec { mode, mark_bit, ipvs } = spec;
    let default = NodeAgentConfig::default().proxy;
    let mode = mode.unwrap_or(default.mode);
    if mode == ProxyMode::None && mark_bit.is_some() {
        problems.refuse("spec.proxy.markBit", MARK_BIT_MODE_MESSAGE);
    }
    if mode == ProxyMode::None && ipvs.is_some() {
        problems.refuse("spec.proxy.ipvs", IPVS_MODE_MESSAGE);
    }
    ProxyConfig {
        mode,
        mark_bit: render_mark_bit(mark_bit, default.mark_bit, problems),
        ipvs: render_ipvs(ipvs.unwrap_or_default(), &default.ipvs, problems),
    }
}

fn render_mark_bit(bit: Option<i32>, default: u8, problems: &mut Problems) -> u8 {
    let Some(bit) = bit else { return default };
    if let Ok(bit @ (0..=7 | 12 | 13 | 16..=23)) = u8::try_from(bit) {
        return bit;
    }
    problems.refuse("spec.proxy.markBit", MARK_BIT_MESSAGE);
    default
}

fn render_ipvs(spec: IpvsSpec, default: &IpvsConfig, problems: &mut Problems) -> IpvsConfig {
    let IpvsSpec { scheduler, timeouts, drain_timeout, policy_engine } = spec;
    IpvsConfig {
        scheduler: scheduler.unwrap_or(default.scheduler),
        timeouts: render_timeouts(timeouts.unwrap_or_default(), default.timeouts, problems),
        drain_timeout: problems
            .duration("spec.proxy.ipvs.drainTimeout", drain_timeout, DRAIN_TIMEOUT)
            .unwrap_or(default.drain_timeout),
        policy_engine: policy_engine.unwrap_or(default.policy_engine),
    }
}

fn render_timeouts(spec: IpvsTimeoutsSpec, default: IpvsTimeouts, problems: &mut Problems) -> IpvsTimeouts {
    let IpvsTimeoutsSpec { tcp, tcp_fin, udp } = spec;
    IpvsTimeouts {
        tcp: problems.duration("spec.proxy.ipvs.timeouts.tcp", tcp, TCP_TIMEOUT).unwrap_or(default.tcp),
        tcp_fin: problems
            .duration("spec.proxy.ipvs.timeouts.tcpFin", tcp_fin, TCP_FIN_TIMEOUT)
            .unwrap_or(default.tcp_fin),
        udp: problems.duration("spec.proxy.ipvs.timeouts.udp", udp, UDP_TIMEOUT).unwrap_or(default.udp),
    }
}

/// All problems found so far: a user should see them at once, not one a try.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn refuse(&mut self, field: &str, message: impl Into<String>) {
        self.0.push(Problem { field: field.to_owned(), message: message.into() });
    }

    /// The duration in `text`; none where it was omitted, or refused and noted.
    fn duration(&mut self, field: &str, text: Option<String>, limits: Limits) -> Option<Duration> {
        limits.parse(&text?).map_err(|message| self.refuse(field, message)).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::{PolicyEngine, Scheduler};

    fn network(spec: Value) -> ServiceNetwork {
        ServiceNetwork::new(NAME, serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn an_empty_spec_renders_the_default_config() {
        assert_eq!(render(&network(json!({}))), Ok(NodeAgentConfig::default()));
    }

    #[test]
    fn every_field_reaches_the_config() {
        let network = network(json!({ "proxy": { "mode": "IPVS", "markBit": 16, "ipvs": {
            "scheduler": "mh",
            "timeouts": { "tcp": "48h", "tcpFin": "1m30s", "udp": "10m" },
            "drainTimeout": "0s",
            "policyEngine": "Ignore",
        } } }));
        let want = NodeAgentConfig {
            proxy: ProxyConfig {
                mode: ProxyMode::IPVS,
                mark_bit: 16,
                ipvs: IpvsConfig {
                    scheduler: Scheduler::Mh,
                    timeouts: IpvsTimeouts {
                        tcp: Duration::from_secs(48 * 3600),
                        tcp_fin: Duration::from_secs(90),
                        udp: Duration::from_secs(600),
                    },
                    drain_timeout: Duration::ZERO,
                    policy_engine: PolicyEngine::Ignore,
                },
            },
        };
        assert_eq!(render(&network), Ok(want));
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let mut network = network(
            json!({ "proxy": { "markBit": 14, "ipvs": { "drainTimeout": "1d", "timeouts": { "tcp": "0s" } } } }),
        );
        network.metadata.name = Some("other".to_owned());
        let mut fields: Vec<_> =
            render(&network).unwrap_err().into_iter().map(|problem| problem.field).collect();
        fields.sort();
        assert_eq!(
            fields,
            [
                "metadata.name",
                "spec.proxy.ipvs.drainTimeout",
                "spec.proxy.ipvs.timeouts.tcp",
                "spec.proxy.markBit"
            ]
        );
    }

    #[test]
    fn a_stored_config_is_readable_and_reads_back() {
        let stored = serde_json::to_value(NodeAgentConfig::default()).unwrap();
        assert_eq!(
            stored,
            json!({ "proxy": { "mode": "IPVS", "markBit": 12, "ipvs": {
                "scheduler": "rr",
                "timeouts": { "tcp": "24h", "tcpFin": "2m", "udp": "5m" },
                "drainTimeout": "1m",
                "policyEngine": "Refuse",
            } } })
        );
        assert_eq!(serde_json::from_value::<NodeAgentConfig>(stored).unwrap(), NodeAgentConfig::default());
    }
}
