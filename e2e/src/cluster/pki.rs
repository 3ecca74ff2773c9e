//! The certificates of a cluster: two authorities, what they sign, and a kubeconfig for each client.
//!
//! Made at start into the state folder, readable by their owner alone. Keys are ECDSA P-256.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

use super::network::Subnet;
use crate::ns::Address;

/// What the API server is called inside a cluster, and `localhost`.
const API_SERVER_NAMES: &[&str] = &[
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
];

/// The group that may do everything.
const MASTERS: &str = "system:masters";

/// The certificates of a cluster, in a folder.
#[derive(Debug)]
pub struct Pki {
    folder: PathBuf,
    api_server: String,
    ca: Authority,
    /// Held while files are made, so that a key and its certificate belong together.
    making: Mutex<()>,
}

impl Pki {
    /// Makes everything a control plane needs, into a new folder. `service` is the address of the Service
    /// `kubernetes`, the first of the range of Services.
    pub fn make(folder: &Path, subnet: Subnet, service: Address) -> Result<Self> {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("failed to create {}", folder.display()))?;
        let ca = Authority::make(folder, "ca", "kubernetes-ca")?;
        let front_proxy = Authority::make(folder, "front-proxy-ca", "front-proxy-ca")?;
        let control_plane = subnet.control_plane();
        let pki =
            Self { folder: folder.to_owned(), api_server: subnet.api_server(), ca, making: Mutex::new(()) };

        let localhost = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
        let addresses = [localhost, control_plane.both(), service.both()].concat();
        let names = API_SERVER_NAMES.iter().map(|name| (*name).to_owned());
        let names: Vec<_> = names.chain(addresses.iter().map(ToString::to_string)).collect();
        let mut server = CertificateParams::new(names)?;
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        pki.ca.sign(folder, "apiserver", server, ExtendedKeyUsagePurpose::ServerAuth)?;
        pki.client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", Some(MASTERS))?;
        let front = subject("front-proxy-client", None)?;
        front_proxy.sign(folder, "front-proxy-client", front, ExtendedKeyUsagePurpose::ClientAuth)?;

        pki.kubeconfig("admin", "kubernetes-admin", Some(MASTERS))?;
        for component in ["kube-controller-manager", "kube-scheduler"] {
            pki.kubeconfig(component, &format!("system:{component}"), None)?;
        }
        let service_accounts = KeyPair::generate()?;
        write(&folder.join("sa.key"), &service_accounts.serialize_pem())?;
        write(&folder.join("sa.pub"), &service_accounts.public_key_pem())?;
        Ok(pki)
    }

    /// A file of the folder, such as `ca.crt`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The kubeconfig of a node's kubelet: user `system:node:<name>` of the group `system:nodes`.
    pub fn node_kubeconfig(&self, name: &str) -> Result<PathBuf> {
        self.kubeconfig(&format!("node-{name}"), &format!("system:node:{name}"), Some("system:nodes"))
    }

    /// A kubeconfig `<file>.kubeconfig` for a user, of a group or of none; made on the first call. It names the
    /// certificates by their paths, which machine nodes see too.
    pub fn kubeconfig(&self, file: &str, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let place = self.file(&format!("{file}.kubeconfig"));
        if place.exists() {
            return Ok(place);
        }
        self.client(file, user, group)?;
        let [certificate, key] = ["crt", "key"].map(|end| self.file(&format!("{file}.{end}")));
        // JSON is YAML, and quotes whatever a path may have in it
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "fairlead",
                "cluster": {"server": self.api_server, "certificate-authority": self.file("ca.crt")},
            }],
            "users": [{"name": user, "user": {"client-certificate": certificate, "client-key": key}}],
            "contexts": [{"name": "fairlead", "context": {"cluster": "fairlead", "user": user}}],
            "current-context": "fairlead",
        });
        write(&place, &format!("{config:#}\n"))?;
        Ok(place)
    }

    /// The certificate and the key of a node's kubelet as a server, in files; made on the first call.
    pub fn node_server(&self, name: &str, addresses: Address) -> Result<[PathBuf; 2]> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let file = format!("node-{name}-server");
        let places = ["crt", "key"].map(|end| self.file(&format!("{file}.{end}")));
        if !places.iter().all(|place| place.exists()) {
            let mut params = subject(&format!("system:node:{name}"), Some("system:nodes"))?;
            params.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
            params.subject_alt_names.extend(addresses.both().map(SanType::IpAddress));
            self.ca.sign(&self.folder, &file, params, ExtendedKeyUsagePurpose::ServerAuth)?;
        }
        Ok(places)
    }

    fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<()> {
        self.ca.sign(&self.folder, file, subject(user, group)?, ExtendedKeyUsagePurpose::ClientAuth)
    }
}

/// A certificate authority.
#[derive(Debug)]
struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn make(folder: &Path, file: &str, name: &str) -> Result<Self> {
        let mut params = subject(name, None)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        write_pair(folder, file, &certificate.pem(), &key)?;
        Ok(Self { issuer: Issuer::new(params, key) })
    }

    fn sign(
        &self,
        folder: &Path,
        file: &str,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<()> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write_pair(folder, file, &certificate.pem(), &key)
    }
}

/// A certificate's subject, as Kubernetes reads it: the user is the common name, a group an organisation.
fn subject(user: &str, group: Option<&str>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    // rcgen puts its own name where none is given
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    Ok(params)
}

fn write_pair(folder: &Path, file: &str, certificate: &str, key: &KeyPair) -> Result<()> {
    write(&folder.join(format!("{file}.crt")), certificate)?;
    write(&folder.join(format!("{file}.key")), &key.serialize_pem())
}

fn write(file: &Path, content: &str) -> Result<()> {
    let opened = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(file);
    opened
        .and_then(|mut opened| opened.write_all(content.as_bytes()))
        .with_context(|| format!("failed to write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cluster::control_plane::KUBERNETES_SERVICE;

    #[test]
    fn everything_is_its_owners_alone() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("pki");
        let pki = Pki::make(&folder, Subnet::of(1), KUBERNETES_SERVICE).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
        assert!(Pki::make(&folder, Subnet::of(1), KUBERNETES_SERVICE).is_err(), "made over another");
        drop(pki);
    }

    #[test]
    fn a_nodes_kubeconfig_is_made_once_and_names_what_is_there() {
        let parent = tempfile::tempdir().unwrap();
        let pki = Pki::make(&parent.path().join("pki"), Subnet::of(1), KUBERNETES_SERVICE).unwrap();
        let file = pki.node_kubeconfig("node1").unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["clusters"][0]["cluster"]["server"], Subnet::of(1).api_server());
        for key in ["client-certificate", "client-key"] {
            assert!(Path::new(config["users"][0]["user"][key].as_str().unwrap()).exists());
        }
        let certificate = fs::read_to_string(pki.file("node-node1.crt")).unwrap();
        assert_eq!(pki.node_kubeconfig("node1").unwrap(), file);
        assert_eq!(fs::read_to_string(pki.file("node-node1.crt")).unwrap(), certificate);
    }
}
