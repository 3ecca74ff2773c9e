//! Metrics: kube-proxy's names, so that dashboards and clusterloader2 go on working, and our own.
//!
//! Gauges and counters of the dataplane are read from the shared status at each scrape, and those
//! of IPVS from the kernel: nothing is counted twice.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use crate::{
    ipvs::{Client, Stats},
    model::{Protocol, ServicePortName},
    netlink::NetlinkError,
    serve::HealthRequests,
    status::Shared,
    watch::{KindStatus, SourceHealth},
};

type Labels = Vec<(&'static str, String)>;

/// What the agent's loop measures itself.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// From the change of an endpoint's Pod to its programming.
    pub network_programming: Histogram,
    /// Duration of one round.
    pub sync_duration: Histogram,
    /// When the last round ended, in seconds since the epoch.
    pub last_sync: Gauge<f64, std::sync::atomic::AtomicU64>,
    /// When the last change was queued.
    pub last_queued: Gauge<f64, std::sync::atomic::AtomicU64>,
    /// EndpointSlice changes received.
    pub endpoint_changes: Counter,
    /// Service changes received.
    pub service_changes: Counter,
    /// EndpointSlice changes not yet programmed.
    pub endpoint_changes_pending: Gauge,
    /// Service changes not yet programmed.
    pub service_changes_pending: Gauge,
    /// What is wrong with the source of objects.
    pub source_errors: Gauge,
    /// Why the node is not programmed: 1 for the reason that holds.
    pub refusals: Family<Labels, Gauge>,
}

/// kube-proxy's buckets: 1 ms, doubled 14 times.
fn sync_buckets() -> impl Iterator<Item = f64> {
    (0..15).map(|power| 0.001 * f64::from(1 << power))
}

/// kube-proxy's buckets: 0.25, 0.5, 1 to 59 by 1, 60 to 115 by 5, 120 to 300 by 30.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(seconds.map(f64::from))
}

impl Metrics {
    /// The metrics, in a registry of their own.
    pub fn register(
        shared: Shared,
        source: SourceHealth,
        reader: IpvsReader,
        requests: &HealthRequests,
    ) -> (Self, Registry) {
        let metrics = Self {
            network_programming: Histogram::new(programming_buckets()),
            sync_duration: Histogram::new(sync_buckets()),
            last_sync: Gauge::default(),
            last_queued: Gauge::default(),
            endpoint_changes: Counter::default(),
            service_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes_pending: Gauge::default(),
            source_errors: Gauge::default(),
            refusals: Family::default(),
        };
        let mut registry = Registry::default();
        let kube_proxy = registry.sub_registry_with_prefix("kubeproxy");
        metrics.register_kube_proxy(kube_proxy);
        requests.register(kube_proxy);
        let ours = registry.sub_registry_with_prefix("fairlead");
        ours.register(
            "source_errors",
            "What is wrong with the source of objects: broken manifests or objects, kinds that cannot be followed",
            metrics.source_errors.clone(),
        );
        ours.register(
            "node_refused",
            "1 while the node is not programmed, by reason",
            metrics.refusals.clone(),
        );
        registry.register_collector(Box::new(StatusCollector { shared, source, reader: Mutex::new(reader) }));
        (metrics, registry)
    }

    fn register_kube_proxy(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "network_programming_duration",
            "From the change of an endpoint (EndpointSlice annotation last-change-trigger-time) to its programming",
            Unit::Seconds,
            self.network_programming.clone(),
        );
        registry.register_with_unit(
            "sync_proxy_rules_duration",
            "Duration of one round of the reconciler",
            Unit::Seconds,
            self.sync_duration.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the last round ended, in seconds since the epoch",
            self.last_sync.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When the last change was queued, in seconds since the epoch",
            self.last_queued.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes",
            "EndpointSlice changes received",
            self.endpoint_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes",
            "Service changes received",
            self.service_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "EndpointSlice changes not yet programmed",
            self.endpoint_changes_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes_pending",
            "Service changes not yet programmed",
            self.service_changes_pending.clone(),
        );
    }

    /// Seconds since the epoch, now.
    pub fn now() -> f64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
    }
}

/// Reads IPVS counters of the kernel, with a socket opened at the first scrape.
#[derive(Debug, Default)]
pub struct IpvsReader {
    client: Option<Client>,
}

impl IpvsReader {
    fn read(&mut self) -> Result<Vec<(crate::ipvs::VirtualServerKey, Stats)>, NetlinkError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::open()?,
        };
        let stats = client.stats()?;
        self.client = Some(client);
        Ok(stats.into_iter().map(|(server, stats)| (server.key, stats)).collect())
    }
}

#[derive(Debug)]
struct StatusCollector {
    shared: Shared,
    source: SourceHealth,
    reader: Mutex<IpvsReader>,
}

impl Collector for StatusCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.shared.read();
        let rows = status.rows;
        gauges(
            &mut encoder,
            "fairlead_service_ports",
            "Service ports by state",
            [("pending", rows.pending), ("done", rows.done), ("error", rows.error)]
                .map(|(state, n)| (vec![("state", state.to_owned())], n as u64)),
        )?;
        gauges(
            &mut encoder,
            "fairlead_draining_backends",
            "Backends that keep their connections and take no new ones",
            [(vec![], status.draining as u64)],
        )?;
        let totals = &status.totals;
        gauges(
            &mut encoder,
            "fairlead_restored_objects",
            "Kernel objects of an earlier run that were taken over at start",
            [(vec![], totals.restored)],
        )?;
        counters(
            &mut encoder,
            "fairlead_pruned_objects",
            "Kernel objects of an earlier run that were removed after every source had synced",
            [(vec![], totals.pruned)],
        )?;
        let labelled = |label: &'static str, map: &BTreeMap<&'static str, u64>| -> Vec<_> {
            map.iter().map(|(kind, n)| (vec![(label, (*kind).to_owned())], *n)).collect()
        };
        counters(
            &mut encoder,
            "fairlead_kernel_operations",
            "Operations that the kernel carried out, by kind",
            labelled("operation", &totals.operations),
        )?;
        counters(
            &mut encoder,
            "fairlead_kernel_failures",
            "Operations and reads that the kernel refused, by kind",
            labelled("operation", &totals.failures),
        )?;
        counters(
            &mut encoder,
            "fairlead_repairs",
            "Kernel objects that others had changed or removed, by kind",
            labelled("object", &totals.repairs),
        )?;
        self.encode_source(&mut encoder)?;
        self.encode_ipvs(&mut encoder, &status.owners)
    }
}

impl StatusCollector {
    fn encode_source(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let kinds = self.source.get().kinds;
        let by_kind = |value: fn(&KindStatus) -> Option<u64>| -> Vec<_> {
            let values = kinds.iter().filter_map(|(kind, status)| Some((*kind, value(status)?)));
            values.map(|(kind, value)| (vec![("kind", kind.to_owned())], value)).collect()
        };
        gauges(
            encoder,
            "fairlead_source_objects",
            "Objects of the API that are in effect, by kind",
            by_kind(|kind| u64::try_from(kind.objects).ok()),
        )?;
        gauges(
            encoder,
            "fairlead_source_silence_seconds",
            "Time since the last sign of life of a watch, by kind; a server that is well gives one a minute",
            by_kind(|kind| kind.alive.map(|at| at.elapsed().as_secs())),
        )?;
        counters(
            encoder,
            "fairlead_source_lists",
            "Lists of the API, the first included, by kind",
            by_kind(|kind| Some(kind.lists)),
        )?;
        counters(
            encoder,
            "fairlead_source_failures",
            "Failed attempts to follow the API, by kind",
            by_kind(|kind| Some(kind.failures)),
        )
    }

    fn encode_ipvs(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        owners: &std::collections::HashMap<crate::ipvs::VirtualServerKey, ServicePortName>,
    ) -> Result<(), std::fmt::Error> {
        type Series = (&'static str, &'static str, fn(&Stats) -> u64);

        if owners.is_empty() {
            return Ok(());
        }
        let read = self.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner).read();
        let stats = match read {
            Ok(stats) => stats,
            Err(error) => {
                tracing::warn!(%error, "failed to read the counters of IPVS");
                return Ok(());
            }
        };
        let mut ports: BTreeMap<&ServicePortName, Stats> = BTreeMap::new();
        for (key, stats) in &stats {
            if let Some(name) = owners.get(key) {
                let total = ports.entry(name).or_default();
                *total = total.plus(stats);
            }
        }
        let series: [Series; 5] = [
            ("connections", "Connections scheduled", |s| s.connections),
            ("incoming_packets", "Packets from clients", |s| s.packets_in),
            ("outgoing_packets", "Packets to clients", |s| s.packets_out),
            ("incoming_bytes", "Bytes from clients", |s| s.bytes_in),
            ("outgoing_bytes", "Bytes to clients", |s| s.bytes_out),
        ];
        for (name, help, value) in series {
            let values = ports.iter().map(|(port, stats)| (port_labels(port), value(stats)));
            counters(encoder, &format!("fairlead_ipvs_{name}"), help, values)?;
        }
        Ok(())
    }
}

fn port_labels(name: &ServicePortName) -> Labels {
    let protocol = match name.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    vec![
        ("namespace", name.namespace.to_string()),
        ("service", name.service.to_string()),
        ("port", name.port.to_string()),
        ("protocol", protocol.to_owned()),
    ]
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, u64)>,
) -> Result<(), std::fmt::Error> {
    let kind = prometheus_client::metrics::MetricType::Gauge;
    let mut metric = encoder.encode_descriptor(name, &format!("{help}."), None, kind)?;
    for (labels, value) in values {
        let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        // A family of no labels would be printed as `{}`.
        if labels.is_empty() {
            return value.encode(metric);
        }
        value.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, u64)>,
) -> Result<(), std::fmt::Error> {
    let kind = prometheus_client::metrics::MetricType::Counter;
    let mut metric = encoder.encode_descriptor(name, &format!("{help}."), None, kind)?;
    for (labels, value) in values {
        let value = ConstCounter::new(value);
        // A family of no labels would be printed as `{}`.
        if labels.is_empty() {
            return value.encode(metric);
        }
        value.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// The registry as text, in the OpenMetrics format.
pub fn render(registry: &Registry) -> String {
    let mut text = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut text, registry) {
        let _ = writeln!(text, "# failed to encode the metrics: {error}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_proxys_names_and_buckets_are_there() {
        let (metrics, registry) = Metrics::register(
            Shared::default(),
            SourceHealth::default(),
            IpvsReader::default(),
            &HealthRequests::default(),
        );
        metrics.network_programming.observe(0.3);
        metrics.endpoint_changes.inc();
        let text = render(&registry);
        for line in [
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"16.384\"} 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds 0.0",
            "fairlead_service_ports{state=\"done\"} 0",
            "fairlead_pruned_objects_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
    }
}
