//! What the folder source promises, on real files.

mod convert;
mod folder;
mod manifests;
mod parse;

use std::{fs, path::Path};

use super::{Change, ObjectId};

const NODE: &str = "\
apiVersion: v1
kind: Node
metadata: {name: node-a}
spec: {podCIDRs: [10.1.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
";

fn service(name: &str, cluster_ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {cluster_ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
}

/// A short name for every change: `+Service default/a`, `-Service default/a`, `Synced`.
fn names(changes: &[Change]) -> Vec<String> {
    changes
        .iter()
        .map(|change| match ObjectId::of(change) {
            None => "Synced".to_owned(),
            Some(id) if id.gone().as_ref() == Some(change) => format!("-{id}"),
            Some(id) => format!("+{id}"),
        })
        .collect()
}
