//! Writes the CRDs into `crds/`, or with `--check` says whether those there are what it would write.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use fairlead_crds::{ServiceNetwork, ServiceNetworkNode};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

const USAGE: &str = "usage: crdgen [--check]

Writes the CustomResourceDefinitions of ServiceNetwork and ServiceNetworkNode into the folder crds/ of
the repository.

  --check  write nothing; fail when a file is not what would be written";

#[derive(Debug, thiserror::Error)]
enum CrdgenError {
    #[error("failed to serialise the CRD")]
    Json(#[from] serde_json::Error),
    #[error("failed to write the CRD as YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
    #[error("failed to read {0}: run `make generate`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("failed to write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is stale: run `make generate`", path.display())]
    Stale { path: PathBuf },
    #[error(
        "line {line} of the CRD holds a default: the API server would write it into the user's object; \
         leave the field an Option and decide the value in render"
    )]
    Default { line: usize },
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let check = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => false,
        ["--check"] => true,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crds = [ServiceNetwork::crd(), ServiceNetworkNode::crd()];
    match crds.iter().try_for_each(|crd| run(folder, crd, check)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crdgen: {}", with_sources(&error));
            ExitCode::FAILURE
        }
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// As controller-gen names its files.
fn file(crd: &CustomResourceDefinition) -> String {
    format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural)
}

fn run(folder: &Path, crd: &CustomResourceDefinition, check: bool) -> Result<(), CrdgenError> {
    let path = folder.join(file(crd));
    let yaml = generate(crd)?;
    refuse_defaults(&yaml)?;
    if !check {
        return fs::write(&path, yaml).map_err(|source| CrdgenError::Write { path, source });
    }
    let present = match fs::read_to_string(&path) {
        Ok(present) => present,
        Err(source) => return Err(CrdgenError::Read { path, source }),
    };
    if present == yaml { Ok(()) } else { Err(CrdgenError::Stale { path }) }
}

fn generate(crd: &CustomResourceDefinition) -> Result<String, CrdgenError> {
    let mut crd = serde_json::to_value(crd)?;
    tidy(&mut crd);
    let yaml = serde_saphyr::to_string(&crd)?;
    Ok(format!("# Written by `make generate` from the types in crds/src. Do not edit.\n{yaml}"))
}

/// Takes out what the derive adds and no reader of the CRD needs.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // schemars calls every `Option` nullable. The API server drops a null where the field
            // is not, so that `proxy:` with nothing after it means the same as leaving it out;
            // where it is, the null is kept and meets `has()` and the rules.
            map.retain(|key, value| {
                !(key == "nullable" && value.is_boolean() || key == "title" && value.is_string())
            });
            map.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        // Bounds come as `23.0`, which no API server gives back: an eternal difference to GitOps.
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().and_then(|float| format!("{float}").parse::<i64>().ok()) {
                *number = whole.into();
            }
        }
        _ => {}
    }
}

fn refuse_defaults(yaml: &str) -> Result<(), CrdgenError> {
    match yaml.lines().position(|line| line.trim_start().starts_with("default:")) {
        None => Ok(()),
        Some(index) => Err(CrdgenError::Default { line: index + 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_passes_on_what_was_written_and_fails_once_it_differs() {
        let folder = tempfile::tempdir().unwrap();
        let crd = ServiceNetwork::crd();
        let path = folder.path().join("fairlead.dev_servicenetworks.yaml");
        assert!(matches!(run(folder.path(), &crd, true), Err(CrdgenError::Read { .. })));
        run(folder.path(), &crd, false).unwrap();
        run(folder.path(), &crd, true).unwrap();
        let edited = fs::read_to_string(&path).unwrap().replace("IPVS", "IPTables");
        fs::write(&path, edited).unwrap();
        assert!(matches!(run(folder.path(), &crd, true), Err(CrdgenError::Stale { .. })));
    }

    #[test]
    fn a_default_is_refused_with_its_line() {
        let yaml = generate(&ServiceNetwork::crd()).unwrap().replacen("maximum: ", "default: ", 1);
        assert!(matches!(refuse_defaults(&yaml), Err(CrdgenError::Default { .. })));
    }
}
