//! Leader election: of several operators one writes.
//!
//! `elector` decides and knows no clock but the one it is given, `lease` does the I/O, `fence` keeps
//! every write path shut in a process that does not lead.

mod elector;
mod fence;
mod lease;

pub use self::{
    elector::{Elector, Record, Step, Timing},
    fence::{Fence, NotLeading},
    lease::{Candidate, LEASE, LeaseError},
};
