//! What the agent tells the cluster: the status of its ServiceNetworkNode, and Events on its Node.
//!
//! Owns what a status says and when it is written; changes nothing on the node, and nothing on the node
//! waits for it.
//!
//! ```text
//! Dataplane + revision asked for -> status (pure) -> differs from what the API has? -> write
//! ```

mod events;
mod status;
mod writer;

pub use self::{
    status::{Reason, status},
    writer::Reporter,
};
