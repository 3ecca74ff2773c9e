//! What the table is made of besides elements, and how it differs from what the kernel has.

use std::{collections::BTreeMap, fmt};

use super::{chains, mark::PolicyBit, sets::SetName};
use crate::{
    model::Family,
    nft::{Chain, Rule, Set},
};

/// What the rules depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The policy bit of the mark.
    pub bit: PolicyBit,
    /// The families of which the podCIDRs of this node are known, IPv4 and IPv6. Without one there
    /// is no telling which clients of a ClusterIP come from elsewhere, and none is masqueraded.
    pub local_pods: [bool; 2],
}

impl Parameters {
    pub(super) fn knows_local_pods(self, family: Family) -> bool {
        let [v4, v6] = self.local_pods;
        if family == Family::V4 { v4 } else { v6 }
    }
}

/// Sets, chains and rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Structure {
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<(Chain, Vec<Rule>)>,
}

/// What was read of the table besides elements.
#[derive(Clone, Debug, Default)]
pub(super) struct Present {
    pub flags: u32,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
    /// Rules in order, each with its chain.
    pub rules: Vec<(String, Rule)>,
}

/// One way in which the table is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// There is no table.
    NoTable,
    /// The table is dormant or owned by a process.
    TableFlags(u32),
    /// A set is missing or of another type.
    Set(String),
    /// A set that we did not make.
    UnknownSet(String),
    /// A chain is missing or elsewhere.
    Chain(String),
    /// A chain that we did not make.
    UnknownChain(String),
    /// The rules of a chain are not ours, or not in our order.
    Rules {
        /// The chain.
        chain: String,
        /// Comment of the first rule that differs: ours, or the other's where ours are at an end.
        rule: String,
    },
    /// A set holds an element that we never write.
    Elements(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => f.write_str("the table is missing"),
            Self::TableFlags(flags) => write!(f, "the table has the flags {flags:#x}"),
            Self::Set(name) => write!(f, "set {name} is missing or of another type"),
            Self::UnknownSet(name) => write!(f, "set {name} is not ours"),
            Self::Chain(name) => write!(f, "chain {name} is missing or in another place"),
            Self::UnknownChain(name) => write!(f, "chain {name} is not ours"),
            Self::Rules { chain, rule } => write!(f, "chain {chain} differs at rule `{rule}`"),
            Self::Elements(set) => write!(f, "set {set} holds an element that is not ours"),
        }
    }
}

impl Structure {
    /// What the table should be made of.
    pub fn new(parameters: Parameters) -> Self {
        let sets = SetName::all().map(SetName::definition).collect();
        Self { sets, chains: chains::chains(parameters) }
    }

    /// How what is there differs from it.
    pub(super) fn compare(&self, present: &Present) -> Vec<Difference> {
        let mut differences = Vec::new();
        if present.flags != 0 {
            differences.push(Difference::TableFlags(present.flags));
        }
        self.compare_sets(&present.sets, &mut differences);
        self.compare_chains(present, &mut differences);
        differences
    }

    /// True when a set is there and of the right type, so that its elements can be read.
    pub(super) fn has_set(present: &Present, name: SetName) -> bool {
        let wanted = name.definition();
        // Another version may say something else of the same set.
        let same = |set: &Set| Set { comment: wanted.comment.clone(), ..set.clone() } == wanted;
        present.sets.iter().any(same)
    }

    fn compare_sets(&self, present: &[Set], differences: &mut Vec<Difference>) {
        let mut found: BTreeMap<&str, &Set> = present.iter().map(|set| (set.name.as_str(), set)).collect();
        for set in &self.sets {
            if found.remove(set.name.as_str()) != Some(set) {
                differences.push(Difference::Set(set.name.clone()));
            }
        }
        differences.extend(found.into_keys().map(|name| Difference::UnknownSet(name.to_owned())));
    }

    fn compare_chains(&self, present: &Present, differences: &mut Vec<Difference>) {
        let mut found: BTreeMap<&str, &Chain> =
            present.chains.iter().map(|chain| (chain.name.as_str(), chain)).collect();
        for (chain, rules) in &self.chains {
            if found.remove(chain.name.as_str()) != Some(chain) {
                differences.push(Difference::Chain(chain.name.clone()));
                continue;
            }
            let of_chain = present.rules.iter().filter(|(name, _)| *name == chain.name).map(|(_, rule)| rule);
            if let Some(rule) = first_difference(rules, of_chain) {
                differences.push(Difference::Rules { chain: chain.name.clone(), rule });
            }
        }
        differences.extend(found.into_keys().map(|name| Difference::UnknownChain(name.to_owned())));
    }
}

/// The comment of the first rule that differs.
fn first_difference<'a>(wanted: &'a [Rule], present: impl Iterator<Item = &'a Rule>) -> Option<String> {
    let mut wanted = wanted.iter();
    let mut present = present;
    loop {
        let (ours, theirs) = (wanted.next(), present.next());
        if ours.is_none() && theirs.is_none() {
            return None;
        }
        if ours != theirs {
            let comment = ours.or(theirs).and_then(|rule| rule.comment.clone());
            return Some(comment.unwrap_or_else(|| "without a comment".to_owned()));
        }
    }
}

#[cfg(test)]
#[path = "structure_tests.rs"]
mod tests;
