//! The closed list of reasons that the operator gives.

/// Why a condition of a ServiceNetwork, or a component, is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is to be done.
    AsExpected,
    /// Nodes or pods are being changed.
    RollingOut,
    /// A rollout makes no progress any more.
    RolloutHung,
    /// Nothing can be made of the spec: the user has to change it.
    InvalidSpec,
    /// The API server does not take what the operator writes; it tries again.
    ApplyFailed,
    /// Something that the operator has to read cannot be read; it tries again.
    ReadFailed,
    /// Too many nodes have no agent that works.
    AgentsNotReady,
}

impl Reason {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AsExpected => "AsExpected",
            Self::RollingOut => "RollingOut",
            Self::RolloutHung => "RolloutHung",
            Self::InvalidSpec => "InvalidSpec",
            Self::ApplyFailed => "ApplyFailed",
            Self::ReadFailed => "ReadFailed",
            Self::AgentsNotReady => "AgentsNotReady",
        }
    }
}
