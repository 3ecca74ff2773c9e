//! The Lease through which candidates agree: the I/O of the elector.

use std::time::{Duration, Instant};

use fairlead_crds::names::{NAMESPACE, OPERATOR_MANAGER};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};

use super::{
    elector::{Elector, Record, Step},
    fence::Fence,
};

/// The name of the Lease.
pub const LEASE: &str = "fairlead-operator";

/// Why a round of the election came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The lease cannot be read.
    #[error("failed to read lease {LEASE}")]
    Read(#[source] kube::Error),
    /// The lease cannot be written. A conflict says that another was quicker.
    #[error("failed to write lease {LEASE}")]
    Write(#[source] kube::Error),
    /// The API server does not answer in time.
    #[error("no answer within {0:?} to a request on lease {LEASE}")]
    TimedOut(Duration),
}

/// A candidate with its access to the Lease.
pub struct Candidate {
    api: Api<Lease>,
    elector: Elector,
    fence: Fence,
}

impl Candidate {
    /// A candidate, and the fence that is open while it leads.
    pub fn new(client: Client, elector: Elector) -> (Self, Fence) {
        let fence = Fence::default();
        (Self { api: Api::namespaced(client, NAMESPACE), elector, fence: fence.clone() }, fence)
    }

    /// Waits for leadership.
    pub async fn acquire(&mut self) {
        loop {
            match self.bounded_round(self.elector.timing().deadline).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(
                        error = crate::error::chain(&error),
                        "election failed, will be tried again"
                    );
                }
            }
            tokio::time::sleep(self.elector.timing().retry).await;
        }
    }

    /// Stays the leader; returns when that is over.
    pub async fn keep(&mut self) {
        loop {
            let Some(until) = self.elector.leads_until() else { return };
            let left = || until.saturating_duration_since(Instant::now());
            tokio::time::sleep(self.elector.timing().retry.min(left())).await;
            if left().is_zero() {
                return;
            }
            match self.bounded_round(left()).await {
                Ok(true) => {}
                // Somebody else holds it: whatever the deadline says, it is over.
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(
                        error = crate::error::chain(&error),
                        "lease not renewed, will be tried again"
                    );
                }
            }
        }
    }

    /// Gives leadership up, so that another need not wait for the lease to run out.
    pub async fn release(&mut self) -> Result<(), LeaseError> {
        self.fence.close();
        let Some(mut lease) = self.api.get_opt(LEASE).await.map_err(LeaseError::Read)? else { return Ok(()) };
        if record(&lease).holder != self.elector.identity() {
            return Ok(());
        }
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.acquire_time = Some(now.clone());
        spec.renew_time = Some(now);
        self.api.replace(LEASE, &params(), &lease).await.map(drop).map_err(LeaseError::Write)
    }

    async fn bounded_round(&mut self, bound: Duration) -> Result<bool, LeaseError> {
        tokio::time::timeout(bound, self.round()).await.unwrap_or(Err(LeaseError::TimedOut(bound)))
    }

    /// Reads the lease and takes it if it may. True when it is ours now.
    async fn round(&mut self) -> Result<bool, LeaseError> {
        let lease = self.api.get_opt(LEASE).await.map_err(LeaseError::Read)?;
        let sent = Instant::now();
        let Step::Take { transition } = self.elector.judge(lease.as_ref().map(record), sent) else {
            return Ok(false);
        };
        match lease {
            None => {
                let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
                let mut lease = Lease { metadata, spec: None };
                self.claim(&mut lease, false);
                self.api.create(&params(), &lease).await
            }
            // With the resourceVersion that was read: if another was quicker, this is a conflict.
            Some(mut lease) => {
                self.claim(&mut lease, transition);
                self.api.replace(LEASE, &params(), &lease).await
            }
        }
        .map_err(LeaseError::Write)?;
        self.elector.wrote(sent);
        if let Some(until) = self.elector.leads_until() {
            self.fence.open_until(until);
        }
        Ok(true)
    }

    fn claim(&self, lease: &mut Lease, transition: bool) {
        let now = MicroTime(Timestamp::now());
        let spec: &mut LeaseSpec = lease.spec.get_or_insert_default();
        if transition || spec.acquire_time.is_none() {
            spec.acquire_time = Some(now.clone());
        }
        let transitions = spec.lease_transitions.unwrap_or_default();
        spec.lease_transitions = Some(transitions.saturating_add(i32::from(transition)));
        spec.holder_identity = Some(self.elector.identity().to_owned());
        // Validated to whole seconds when the arguments were read.
        spec.lease_duration_seconds = i32::try_from(self.elector.timing().lease.as_secs()).ok();
        spec.renew_time = Some(now);
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
    Record {
        duration: Duration::from_secs(seconds),
        // Not the resourceVersion: a label that somebody puts on the Lease is no renewal.
        stamp: format!("{:?} {:?} {:?}", spec.acquire_time, spec.renew_time, spec.lease_transitions),
        holder: spec.holder_identity.unwrap_or_default(),
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(OPERATOR_MANAGER.to_owned()), ..PostParams::default() }
}
