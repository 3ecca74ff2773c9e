//! Our nftables table, `inet fairlead`: what is in it, reading it, changing it.
//!
//! Services are elements of its sets; chains and rules are the same on every node, whatever
//! Services there are. README.md of the dataplane says what each is for. No other table is touched.

mod chains;
mod element;
mod mark;
mod sets;
mod structure;

use std::collections::{BTreeMap, BTreeSet};

pub use chains::{LABEL_CARRIED, LABEL_MASQUERADE};
pub use element::Element;
pub use mark::{BIT_MAX, ID_PREFIX, PolicyBit};
pub use sets::SetName;
pub use structure::{Difference, Parameters, Structure};

use crate::nft::{Client, NFPROTO_INET, NftError, Transaction};
use structure::Present;

/// Name of our table.
pub const TABLE: &str = "fairlead";
const COMMENT: &str = "Services of Kubernetes, kept by fairlead-node-agent: changes by hand are undone";

/// What the kernel has of our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The table as it should be, with these elements.
    Intact(BTreeSet<Element>),
    /// Something else: it must be installed anew.
    Broken {
        /// What is not as it should be.
        differences: Vec<Difference>,
        /// What could be read of its elements: an older version's, or what a hand left there. With
        /// them in the new table no packet meets a gap.
        elements: BTreeSet<Element>,
    },
}

/// Reads our table and compares it with what it should be made of.
pub fn read(client: &mut Client, structure: &Structure) -> Result<Found, NftError> {
    match read_present(client, structure) {
        // It went away while it was read.
        Err(error) if error.is_not_found() => Ok(Found::no_table()),
        other => other,
    }
}

fn read_present(client: &mut Client, structure: &Structure) -> Result<Found, NftError> {
    let tables = client.tables()?;
    let Some(table) = tables.into_iter().find(|table| table.family == NFPROTO_INET && table.name == TABLE)
    else {
        return Ok(Found::no_table());
    };
    let chains = client.chains()?.into_iter().filter(|c| c.family == NFPROTO_INET && c.table == TABLE);
    let present = Present {
        flags: table.flags,
        sets: client.sets(TABLE)?,
        chains: chains.map(|chain| chain.item).collect(),
        rules: client.rules(NFPROTO_INET, TABLE)?,
    };
    let mut differences = structure.compare(&present);
    let mut elements = BTreeSet::new();
    for set in SetName::all().filter(|set| Structure::has_set(&present, *set)) {
        let read = element::read_all(client, set)?;
        if !read.all_ours {
            differences.push(Difference::Elements(set.to_string()));
        }
        elements.extend(read.elements);
    }
    Ok(if differences.is_empty() { Found::Intact(elements) } else { Found::Broken { differences, elements } })
}

impl Found {
    fn no_table() -> Self {
        Self::Broken { differences: vec![Difference::NoTable], elements: BTreeSet::new() }
    }
}

/// Makes the table anew with all its elements, whatever was there. In one transaction: no packet
/// meets the table half made.
pub fn install<'a>(structure: &Structure, elements: impl IntoIterator<Item = &'a Element>) -> Transaction {
    let mut transaction = remove();
    transaction.add_table(COMMENT);
    for set in &structure.sets {
        transaction.add_set(set);
    }
    for (chain, _) in &structure.chains {
        transaction.add_chain(chain);
    }
    for (chain, rules) in &structure.chains {
        for rule in rules {
            transaction.add_rule(&chain.name, rule);
        }
    }
    for (set, elements) in by_set(elements) {
        transaction.add_elements(&set.to_string(), elements);
    }
    transaction
}

/// Removes and adds elements, all or none. One to be removed that is not there fails it all, one to
/// be added that is there already does not.
pub fn change<'a>(
    remove: impl IntoIterator<Item = &'a Element>,
    add: impl IntoIterator<Item = &'a Element>,
) -> Transaction {
    let mut transaction = Transaction::new(TABLE);
    for (set, elements) in by_set(remove) {
        transaction.delete_elements(&set.to_string(), elements);
    }
    for (set, elements) in by_set(add) {
        transaction.add_elements(&set.to_string(), elements);
    }
    transaction
}

/// Deletes the table, if it is there.
pub fn remove() -> Transaction {
    let mut transaction = Transaction::new(TABLE);
    // Deleting what is not there is an error; adding what is there is none.
    transaction.add_table(COMMENT);
    transaction.delete_table();
    transaction
}

fn by_set<'a>(elements: impl IntoIterator<Item = &'a Element>) -> BTreeMap<SetName, Vec<&'a Element>> {
    let mut sets: BTreeMap<SetName, Vec<&'a Element>> = BTreeMap::new();
    for element in elements {
        sets.entry(element.set()).or_default().push(element);
    }
    sets
}
