//! The dataplane: classify in nftables, schedule in IPVS. See README.md beside this file.

pub mod ruleset;
