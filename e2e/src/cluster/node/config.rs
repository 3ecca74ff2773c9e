//! The configuration of a node's programs, rendered.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// containerd's socket.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// containerd's content: images, unpacked, and containers.
pub const ROOT: &str = "/var/lib/containerd";
/// kubelet's files, and what pods keep in volumes.
pub const KUBELET_ROOT: &str = "/var/lib/kubelet";
/// Where CNI looks for the network of pods.
pub const CNI_FOLDER: &str = "/etc/cni/net.d";
/// The network of pods.
pub const CNI_CONFIG: &str = "/etc/cni/net.d/10-rig.conflist";
/// Which control group kubelet makes those of pods in; of machines, the root.
const PODS_GROUP: &str = "/";

/// The file of [`containerd`].
pub const CONTAINERD_CONFIG: &str = "/etc/containerd/rig.toml";
/// The file of [`kubelet`].
pub const KUBELET_CONFIG: &str = "/etc/kubernetes/rig.json";
/// Where a node looks for DNS: nowhere, so that nothing waits for an answer that cannot come.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The address the cluster's DNS has by convention, if it has one.
const CLUSTER_DNS: &str = "10.96.0.10";

/// containerd's configuration. `sandbox` is the image that holds a pod's namespaces, `cni` the plugins' folder.
pub fn containerd(sandbox: &str, cni: &Path) -> String {
    let cni = cni.display().to_string();
    // imports: the host's own containerd has its files where ours would look for more
    // restrict_oom_score_adj: in a container, the rig may not lower it, and a pod asks for it
    format!(
        r#"version = 4
root = "{ROOT}"
state = "/run/containerd"
imports = []
[plugins.'io.containerd.server.v1.grpc']
  address = "{SOCKET}"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = {sandbox:?}
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = [{cni:?}]
  conf_dir = "{CNI_FOLDER}"
"#
    )
}

/// kubelet's certificates.
#[derive(Debug, Clone, Copy)]
pub struct Certificates<'a> {
    /// Signs its clients.
    pub ca: &'a Path,
    /// Its own, as a server. Without one it makes itself one, whose RSA key takes an emulated node ten seconds.
    pub certificate: &'a Path,
    /// The key of that.
    pub key: &'a Path,
}

/// kubelet's configuration. `cgroup` is the control group of its pods, if not the root.
pub fn kubelet(certificates: Certificates<'_>, cgroup: Option<&str>) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": certificates.ca },
        },
        "tlsCertFile": certificates.certificate,
        "tlsPrivateKeyFile": certificates.key,
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup.unwrap_or(PODS_GROUP),
        // a host of the rig's may have either
        "failCgroupV1": false,
        "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "clusterDNS": [CLUSTER_DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": RESOLV_CONF,
        // the canary chain of iptables: nothing of the cluster uses iptables
        "makeIPTablesUtilChains": false,
        // images are there from the start, and are not to be thrown out
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        // emulated nodes take their time to stop anything
        "runtimeRequestTimeout": "5m",
    })
}

/// The arguments of kubelet.
pub fn kubelet_arguments(
    name: &str,
    kubeconfig: &Path,
    addresses: [IpAddr; 2],
    labels: &BTreeMap<String, String>,
) -> Vec<String> {
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let addresses = addresses.map(|address| address.to_string()).join(",");
    vec![
        format!("--config={KUBELET_CONFIG}"),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={name}"),
        format!("--node-ip={addresses}"),
        format!("--node-labels={}", labels.join(",")),
        format!("--root-dir={KUBELET_ROOT}"),
        "-v=2".to_owned(),
    ]
}

/// The network of a node's pods: a bridge of their ranges, one of each family.
pub fn cni(ranges: &[String]) -> Result<Value> {
    ensure!(!ranges.is_empty(), "a network of pods without addresses");
    let mut routes = Vec::new();
    for range in ranges {
        let network: IpAddr = range
            .split('/')
            .next()
            .unwrap_or_default()
            .parse()
            .with_context(|| format!("{range} is no range of pods"))?;
        routes.push(json!({ "dst": if network.is_ipv4() { "0.0.0.0/0" } else { "::/0" } }));
    }
    let ranges: Vec<_> = ranges.iter().map(|range| json!([{ "subnet": range }])).collect();
    Ok(json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            // a pod may be its own Service's only endpoint
            "hairpinMode": true,
            "ipMasq": false,
            "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
        }],
    }))
}

/// Every file of a node that does not depend on the cluster's answers.
pub fn files(
    sandbox: &str,
    cni: &Path,
    certificates: Certificates<'_>,
    cgroup: Option<&str>,
) -> BTreeMap<PathBuf, String> {
    BTreeMap::from([
        (CONTAINERD_CONFIG.into(), containerd(sandbox, cni)),
        (KUBELET_CONFIG.into(), kubelet(certificates, cgroup).to_string()),
        (RESOLV_CONF.into(), String::new()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_an_address_of_each_family_and_a_way_out() {
        let config = cni(&["10.240.1.0/24".to_owned(), "fd00:10:244:1::/64".to_owned()]).unwrap();
        let ipam = &config["plugins"][0]["ipam"];
        assert_eq!(
            ipam["ranges"],
            json!([[{ "subnet": "10.240.1.0/24" }], [{ "subnet": "fd00:10:244:1::/64" }]])
        );
        assert_eq!(ipam["routes"], json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]));
    }

    #[test]
    fn a_network_without_addresses_is_refused() {
        assert!(cni(&[]).is_err());
        assert!(cni(&["pods".to_owned()]).unwrap_err().to_string().contains("pods"));
    }

    #[test]
    fn containerd_holds_pods_with_our_own_image() {
        let config = containerd("fairlead.dev/rig/pause@sha256:00", Path::new("/cache/it's/cni"));
        assert!(config.contains(r#"sandbox = "fairlead.dev/rig/pause@sha256:00""#), "{config}");
        assert!(config.contains(r#"bin_dirs = ["/cache/it's/cni"]"#), "{config}");
    }

    #[test]
    fn kubelet_makes_its_groups_below_the_clusters() {
        let [ca, certificate, key] = ["/ca.crt", "/n1.crt", "/n1.key"].map(Path::new);
        let certificates = Certificates { ca, certificate, key };
        let config = kubelet(certificates, Some("/fairlead-1/n1"));
        assert_eq!(config["cgroupRoot"], "/fairlead-1/n1");
        assert_eq!(config["tlsCertFile"], "/n1.crt");
        assert_eq!(kubelet(certificates, None)["cgroupRoot"], "/");
    }

    #[test]
    fn kubelet_is_told_its_addresses_and_labels() {
        let addresses = ["10.89.1.10".parse().unwrap(), "fd00:89:1::10".parse().unwrap()];
        let labels = BTreeMap::from([("rig/kind".to_owned(), "machine".to_owned())]);
        let arguments = kubelet_arguments("n1", Path::new("/k"), addresses, &labels);
        assert!(arguments.contains(&"--node-ip=10.89.1.10,fd00:89:1::10".to_owned()), "{arguments:?}");
        assert!(arguments.contains(&"--node-labels=rig/kind=machine".to_owned()), "{arguments:?}");
    }
}
