//! The `ServiceNetwork` resource: the one object by which a cluster's service network is set.
//!
//! Holds what a user may write, with the bounds and CEL rules by which the API server refuses
//! the rest. Nothing is defaulted here: an omitted field stays omitted, and `render` decides it.
//! The doc comments of fields are what `kubectl explain` prints.

#![allow(clippy::duplicated_attributes, reason = "every printer column has attributes of its own")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{CustomResource, KubeSchema, Resource};
use serde::{Deserialize, Serialize, de::IgnoredAny};

use crate::{
    config::{PolicyEngine, ProxyMode, Scheduler},
    duration::{self, Limits},
    status::ServiceNetworkStatus,
};

/// The only name that a `ServiceNetwork` may have.
pub const NAME: &str = "cluster";

pub(crate) const NAME_MESSAGE: &str = "must be cluster: a cluster has one ServiceNetwork";
pub(crate) const MARK_BIT_MESSAGE: &str =
    "must be 0 to 7, 12, 13 or 16 to 23: kube-proxy, Cilium and Calico own 8 to 11, 14 and 15";
pub(crate) const MARK_BIT_MODE_MESSAGE: &str =
    "must not be set with mode None, which marks no packet: remove markBit, or set mode to IPVS";
pub(crate) const IPVS_MODE_MESSAGE: &str =
    "must not be set with mode None, which uses no IPVS: remove ipvs, or set mode to IPVS";

/// The kernel takes at most INT_MAX / HZ seconds (`ip_vs_set_timeout` in `ip_vs_ctl.c`), which at
/// 1000 Hz is 596 hours, and takes 0 as "leave it", so that it would not set what was asked.
pub(crate) const TCP_TIMEOUT: Limits = Limits::seconds(1, 576 * 3600);
pub(crate) const TCP_FIN_TIMEOUT: Limits = Limits::seconds(1, 3600);
pub(crate) const UDP_TIMEOUT: Limits = Limits::seconds(1, 24 * 3600);
pub(crate) const DRAIN_TIMEOUT: Limits = Limits::seconds(0, 3600);

/// What the service network of a cluster should be. Everything may be omitted: `spec: {}` is a
/// complete and safe ServiceNetwork.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "ServiceNetwork",
    shortname = "svcnet",
    category = "networking",
    derive = "PartialEq",
    status = "ServiceNetworkStatus",
    doc = "The service network of a cluster: how its nodes carry traffic to Services. There is one, and its name is cluster.",
    validation = Rule::new(format!("self.metadata.name == '{NAME}'")).message(format!("metadata.name {NAME_MESSAGE}").as_str()),
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".status.effective.proxy.mode",
        description = "The dataplane in effect where nothing rules it out."
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether what was asked for holds."
    ),
    printcolumn(
        name = "Updated",
        type_ = "integer",
        json_path = ".status.nodes.updated",
        description = "Nodes that have programmed it."
    ),
    printcolumn(
        name = "Nodes",
        type_ = "integer",
        json_path = ".status.nodes.total",
        description = "Nodes of the cluster."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why, in a word."
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        description = "Why, with numbers, and what to do."
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        priority = 1,
        json_path = ".status.version",
        description = "The version of Fairlead on every node."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceNetworkSpec {
    /// How nodes carry traffic to Services. Omitted: every field in it takes Fairlead's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxySpec>,
}

/// How nodes carry traffic to Services.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.ipvs) || !has(self.mode) || self.mode == 'IPVS'")
        .message(IPVS_MODE_MESSAGE)
        .field_path(".ipvs"),
    validation = Rule::new("!has(self.markBit) || !has(self.mode) || self.mode != 'None'")
        .message(MARK_BIT_MODE_MESSAGE)
        .field_path(".markBit"),
)]
pub struct ProxySpec {
    /// The dataplane that carries Services. IPVS: virtual servers of the kernel's IPVS, which
    /// nftables picks the packets for. None: Fairlead programs no Service, because another proxy
    /// does. Omitted: Fairlead's choice, at present IPVS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<ProxyMode>,

    /// Number of the bit in the packet mark that says "deliver to IPVS": 0 to 7, 12, 13 or 16 to
    /// 23. Change it where other software on the nodes uses the bit. Bits 8 to 11, 14 and 15
    /// belong to kube-proxy, Cilium and Calico and are refused; Calico also uses 16 and up unless
    /// its mark mask was changed, so choose one of those only without it. Not together with mode
    /// None. Omitted: Fairlead's choice, at present 12 (mark 0x1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 23))]
    #[x_kube(validation = Rule::new("!(self < 0 || self > 23 || (self >= 8 && self <= 11) || self == 14 || self == 15)").message(MARK_BIT_MESSAGE))]
    pub mark_bit: Option<i32>,

    /// Settings of mode IPVS. Only with mode IPVS or with mode omitted. Omitted: every field in it
    /// takes Fairlead's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipvs: Option<IpvsSpec>,
}

/// Settings of the IPVS dataplane.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpvsSpec {
    /// How IPVS picks the backend of a new connection, by the kernel's names: rr (round robin),
    /// wrr (weighted round robin), lc (least connections), wlc (weighted least connections), lblc
    /// (locality-based least connections), lblcr (the same with replication), dh (destination
    /// hashing), sh (source hashing), sed (shortest expected delay), nq (never queue), fo
    /// (weighted failover), ovf (weighted overflow), mh (Maglev hashing). A Service's annotation
    /// fairlead.dev/ipvs-scheduler takes precedence. Changing it disturbs no open connection.
    /// Omitted: Fairlead's choice, at present rr.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,

    /// How long IPVS remembers connections that carry no packets. Omitted: every field in it
    /// takes Fairlead's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<IpvsTimeoutsSpec>,

    /// How long a TCP backend that has left its Service keeps its open connections, 0s to 1h, such
    /// as 60s or 5m. It starts when the endpoint has left every EndpointSlice, not when it turns
    /// unready or terminating, and ends early once no connection is left; 0s cuts them at once.
    /// New connections never go to such a backend. UDP and SCTP backends are always cut at once.
    /// Omitted: Fairlead's choice, at present 60s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = duration::MAX_LENGTH), regex(pattern = duration::PATTERN))]
    #[x_kube(validation = Limits::format_rule(), validation = DRAIN_TIMEOUT.range_rule())]
    pub drain_timeout: Option<String>,

    /// What to do on a node where a NetworkPolicy engine filters forwarded packets, which traffic
    /// to Services bypasses under IPVS. Refuse: program no Service on that node and say why.
    /// Ignore: program them all the same; NetworkPolicies then do not hold for traffic to
    /// Services. Omitted: Fairlead's choice, at present Refuse.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_engine: Option<PolicyEngine>,
}

/// Connection timeouts of IPVS.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpvsTimeoutsSpec {
    /// How long an established TCP connection may be idle, 1s to 576h, such as 24h. Where the
    /// node's net.netfilter.nf_conntrack_tcp_timeout_established is longer, that is used instead,
    /// since a connection that conntrack knows and IPVS has forgotten hangs. Omitted: Fairlead's
    /// choice, at present 24h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = duration::MAX_LENGTH), regex(pattern = duration::PATTERN))]
    #[x_kube(validation = Limits::format_rule(), validation = TCP_TIMEOUT.range_rule())]
    pub tcp: Option<String>,

    /// How long a TCP connection is remembered after a FIN, 1s to 1h, such as 2m. Omitted:
    /// Fairlead's choice, at present 2m.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = duration::MAX_LENGTH), regex(pattern = duration::PATTERN))]
    #[x_kube(validation = Limits::format_rule(), validation = TCP_FIN_TIMEOUT.range_rule())]
    pub tcp_fin: Option<String>,

    /// How long a UDP flow may be idle before its next packet may go to another backend, 1s to
    /// 24h, such as 5m. Omitted: Fairlead's choice, at present 5m.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = duration::MAX_LENGTH), regex(pattern = duration::PATTERN))]
    #[x_kube(validation = Limits::format_rule(), validation = UDP_TIMEOUT.range_rule())]
    pub udp: Option<String>,
}

/// A `ServiceNetwork` as a file holds it. Read through this, a wrong `apiVersion` and a misspelt
/// field beside `spec` are refused, which the API type, like every Kubernetes object, lets pass.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "StrictRoot")]
pub struct ServiceNetworkManifest(pub ServiceNetwork);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StrictRoot {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: ServiceNetworkSpec,
    // As `kubectl get -o yaml` prints it; a file has nothing to say about it.
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

impl TryFrom<StrictRoot> for ServiceNetworkManifest {
    type Error = String;

    fn try_from(root: StrictRoot) -> Result<Self, Self::Error> {
        let StrictRoot { api_version, kind, metadata, spec, _status } = root;
        let (want_version, want_kind) = (ServiceNetwork::api_version(&()), ServiceNetwork::kind(&()));
        if api_version != want_version || kind != want_kind {
            return Err(format!(
                "apiVersion and kind must be {want_version} and {want_kind}, not {api_version:?} and {kind:?}"
            ));
        }
        Ok(Self(ServiceNetwork { metadata, spec, status: None }))
    }
}
