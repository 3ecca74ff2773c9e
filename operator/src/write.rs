//! The one way by which the operator writes.
//!
//! Every write is by the one field manager, is counted, has a time in which it must be answered, and
//! does not happen in a process that does not lead.

use std::{future::Future, time::Duration};

use fairlead_crds::names::OPERATOR_MANAGER;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::{ApiResource, DynamicObject},
};
use serde_json::Value;

use crate::{
    leader::{Fence, NotLeading},
    metrics::Metrics,
};

const ANSWER: Duration = Duration::from_secs(30);

/// Something could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} {kind} {name}")]
pub struct WriteError {
    /// What was tried.
    pub verb: &'static str,
    /// On what.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Why it failed.
    #[source]
    pub cause: WriteFailure,
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteFailure {
    /// The API server refused it or was not reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The API server did not answer.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// This process must not write.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
}

/// An object to write.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its API.
    pub resource: ApiResource,
    /// Its namespace, if it has one.
    pub namespace: Option<&'static str>,
    /// Its name.
    pub name: String,
}

/// Writes.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    fence: Fence,
    metrics: Metrics,
}

impl Writer {
    /// Through a client, while the fence is open.
    pub fn new(client: Client, fence: Fence, metrics: Metrics) -> Self {
        Self { client, fence, metrics }
    }

    /// Server-side apply: these fields are ours, whoever set them.
    pub async fn apply(&self, target: &Target, object: &Value) -> Result<(), WriteError> {
        let params = PatchParams::apply(OPERATOR_MANAGER).force();
        let api = self.api(target);
        self.write("apply", target, async {
            api.patch(&target.name, &params, &Patch::Apply(object)).await.map(drop)
        })
        .await
    }

    /// Server-side apply of the status.
    pub async fn apply_status(&self, target: &Target, object: &Value) -> Result<(), WriteError> {
        let params = PatchParams::apply(OPERATOR_MANAGER).force();
        let api = self.api(target);
        let patch = Patch::Apply(object);
        self.write("apply the status of", target, async {
            api.patch_status(&target.name, &params, &patch).await.map(drop)
        })
        .await
    }

    /// A change of single fields of an object that is otherwise immutable.
    pub async fn change(&self, target: &Target, change: &Value) -> Result<(), WriteError> {
        let params =
            PatchParams { field_manager: Some(OPERATOR_MANAGER.to_owned()), ..PatchParams::default() };
        let api = self.api(target);
        let patch = Patch::Merge(change);
        self.write("change", target, async { api.patch(&target.name, &params, &patch).await.map(drop) }).await
    }

    /// Deletes exactly the object that was seen. One that is gone already, or is another by now, is no
    /// error: it will be seen.
    pub async fn delete(&self, target: &Target, seen: Preconditions) -> Result<(), WriteError> {
        let params = DeleteParams::background().preconditions(seen);
        let api = self.api(target);
        let delete = async {
            match api.delete(&target.name, &params).await {
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
                result => result.map(drop),
            }
        };
        self.write("delete", target, delete).await
    }

    fn api(&self, target: &Target) -> Api<DynamicObject> {
        match target.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &target.resource),
            None => Api::all_with(self.client.clone(), &target.resource),
        }
    }

    async fn write(
        &self,
        verb: &'static str,
        target: &Target,
        request: impl Future<Output = Result<(), kube::Error>>,
    ) -> Result<(), WriteError> {
        let kind = &target.resource.kind;
        let result = match self.fence.check() {
            Err(not_leading) => Err(not_leading.into()),
            Ok(()) => match tokio::time::timeout(ANSWER, request).await {
                Ok(result) => result.map_err(WriteFailure::Api),
                Err(_) => Err(WriteFailure::TimedOut(ANSWER)),
            },
        };
        self.metrics.wrote(kind, verb, result.is_ok());
        tracing::debug!(verb, kind, name = target.name, ok = result.is_ok(), "wrote");
        result.map_err(|cause| WriteError { verb, kind: kind.clone(), name: target.name.clone(), cause })
    }
}
