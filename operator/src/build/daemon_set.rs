//! The DaemonSet of the agents.
//!
//! Its pods are replaced by the operator, one after another (`OnDelete`), not by the DaemonSet
//! controller: a pod counts as replaced once its node is programmed, which only the operator sees.

use fairlead_crds::{
    names::{AGENT, APP_LABEL, NAMESPACE},
    revision::digest,
};
use serde_json::{Value, json};

use super::{Install, labels};

/// Digest of the pod template that a pod was made from. A pod whose digest is another is outdated.
pub const TEMPLATE_ANNOTATION: &str = "fairlead.dev/template";

const PROGRAM: &str = "/usr/local/bin/fairlead-node-agent";
const STATE: &str = "/var/lib/fairlead";
const MODULES: &str = "/lib/modules";
/// `/proc/sys` is read-only in a container that is not privileged; the network's part of the host's
/// comes here.
const SYSCTLS: &str = "/host/proc/sys/net";

pub fn daemon_set(install: &Install) -> Value {
    let mut template = template(install);
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".to_owned(), json!({ TEMPLATE_ANNOTATION: template_digest(install) }));
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": AGENT, "namespace": NAMESPACE, "labels": labels() },
        "spec": {
            "selector": { "matchLabels": { APP_LABEL: AGENT } },
            "updateStrategy": { "type": "OnDelete" },
            "template": template,
        },
    })
}

pub fn template_digest(install: &Install) -> String {
    digest(&template(install))
}

fn template(install: &Install) -> Value {
    let mut spec = json!({
        "serviceAccountName": AGENT,
        // Services, and often the pod network, do not work before the agent does.
        "hostNetwork": true,
        "dnsPolicy": "Default",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "priorityClassName": "system-node-critical",
        "tolerations": [{ "operator": "Exists" }],
        "initContainers": [load_modules(install)],
        "containers": [agent(install)],
        "volumes": [
            { "name": "state", "hostPath": { "path": STATE, "type": "DirectoryOrCreate" } },
            { "name": "sysctls", "hostPath": { "path": "/proc/sys/net", "type": "Directory" } },
            { "name": "modules", "hostPath": { "path": MODULES } },
        ],
    });
    let secrets: Vec<_> = install.image_pull_secrets.iter().map(|name| json!({ "name": name })).collect();
    if let (Some(spec), false) = (spec.as_object_mut(), secrets.is_empty()) {
        spec.insert("imagePullSecrets".to_owned(), secrets.into());
    }
    json!({ "metadata": { "labels": labels() }, "spec": spec })
}

/// Loads what any mode may need. Privileged, because a container that is not may not load modules;
/// it ends before the agent starts.
fn load_modules(install: &Install) -> Value {
    json!({
        "name": "load-modules",
        "image": install.image,
        "command": [PROGRAM, "load-modules"],
        "securityContext": { "privileged": true, "readOnlyRootFilesystem": true },
        "resources": requests(),
        "volumeMounts": [{ "name": "modules", "mountPath": MODULES, "readOnly": true }],
    })
}

fn agent(install: &Install) -> Value {
    json!({
        "name": AGENT,
        "image": install.image,
        "command": [PROGRAM],
        "args": ["run"],
        "env": [
            { "name": "NODE_NAME", "valueFrom": field("spec.nodeName") },
            { "name": "POD_NAME", "valueFrom": field("metadata.name") },
            { "name": "NAMESPACE", "valueFrom": field("metadata.namespace") },
            { "name": "FAIRLEAD_API_SERVERS", "value": install.api_servers },
            { "name": "FAIRLEAD_PROC_SYS_NET", "value": SYSCTLS },
        ],
        "securityContext": {
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        // No limits: an agent that is throttled or killed stops following Services.
        "resources": requests(),
        "volumeMounts": [
            { "name": "state", "mountPath": STATE },
            { "name": "sysctls", "mountPath": SYSCTLS },
            { "name": "modules", "mountPath": MODULES, "readOnly": true },
        ],
        // On a node with tens of thousands of Services the first pass takes a while: five minutes.
        "startupProbe": {
            "httpGet": { "host": "127.0.0.1", "port": 10256, "path": "/livez", "scheme": "HTTP" },
            "periodSeconds": 2,
            "failureThreshold": 150,
        },
        "livenessProbe": {
            "httpGet": { "host": "127.0.0.1", "port": 10256, "path": "/livez", "scheme": "HTTP" },
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "readinessProbe": {
            "httpGet": { "host": "127.0.0.1", "port": 10249, "path": "/readyz", "scheme": "HTTP" },
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        },
    })
}

fn field(path: &str) -> Value {
    json!({ "fieldRef": { "apiVersion": "v1", "fieldPath": path } })
}

fn requests() -> Value {
    json!({ "requests": { "cpu": "20m", "memory": "40Mi" } })
}
