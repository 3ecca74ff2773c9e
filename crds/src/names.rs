//! Names that operator, agent and users share. They are API: a released one never changes.

/// The namespace of the operator, the agents and the revisions.
pub const NAMESPACE: &str = "fairlead-system";

/// The DaemonSet of the agents, their ServiceAccount and their container.
pub const AGENT: &str = "fairlead-node-agent";

/// Label of the agents' pods, with [`AGENT`] as its value.
pub const APP_LABEL: &str = "app.kubernetes.io/name";

/// Field manager of all that the operator applies.
pub const OPERATOR_MANAGER: &str = "fairlead-operator";

/// Field manager of the status that an agent applies.
pub const AGENT_MANAGER: &str = "fairlead-node-agent";

/// Label of every revision of ours, with [`REVISION_OF_AGENT`] as its value. The agents' pods never
/// carry it: the DaemonSet controller adopts revisions that match its selector.
pub const REVISION_LABEL: &str = "fairlead.dev/revision-of";

/// Value of [`REVISION_LABEL`] on a revision of the agents' config.
pub const REVISION_OF_AGENT: &str = "node-agent";

/// Label, with value `true`, of the revision that every node has programmed last. A new node takes it
/// when nobody tells it otherwise.
pub const LAST_GOOD_LABEL: &str = "fairlead.dev/last-good";
