//! A transaction: operations that the kernel takes all together or not at all.

use crate::netlink::Requests;

use super::{
    elements::{self, Encode},
    objects::{Chain, Set, Table},
    rule::Rule,
    uapi::{BATCH_BEGIN, BATCH_END, NFPROTO_INET, NFPROTO_UNSPEC, SUBSYSTEM, element, msg, table},
};

/// Operations on one `inet` table.
#[derive(Debug)]
pub struct Transaction {
    table: String,
    pub(super) requests: Requests,
    /// What each request does, for the error that names it.
    pub(super) operations: Vec<String>,
    sets: u32,
}

impl Transaction {
    /// An empty transaction on a table.
    pub fn new(table: impl Into<String>) -> Self {
        let mut requests = Requests::new();
        requests.push(BATCH_BEGIN, 0, &header(NFPROTO_UNSPEC, SUBSYSTEM), |_| {});
        // The kernel blames the first message when the whole could not be committed.
        let operations = vec!["commit an nftables transaction".to_owned()];
        Self { table: table.into(), requests, operations, sets: 0 }
    }

    /// True when there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.requests.len() == 1
    }

    /// Number of messages, for metrics.
    pub fn operations(&self) -> usize {
        self.requests.len() - 1
    }

    /// Makes the table if it is not there.
    pub fn add_table(&mut self, comment: &str) {
        let name = self.table.clone();
        let operation = format!("add table {name}");
        self.push(msg::NEWTABLE, libc::NLM_F_CREATE, operation, |w| {
            Table::encode_name(w, &name, Some(comment));
            w.be32(table::FLAGS, 0);
        });
    }

    /// Deletes the table with all that is in it.
    pub fn delete_table(&mut self) {
        let name = self.table.clone();
        let operation = format!("delete table {name}");
        self.push(msg::DELTABLE, 0, operation, |w| Table::encode_name(w, &name, None));
    }

    /// Adds a set or map.
    pub fn add_set(&mut self, set: &Set) {
        let table = self.table.clone();
        self.sets += 1;
        let id = self.sets;
        let operation = format!("add set {}", set.name);
        self.push(msg::NEWSET, libc::NLM_F_CREATE, operation, |w| set.encode(w, &table, id));
    }

    /// Adds a chain.
    pub fn add_chain(&mut self, chain: &Chain) {
        let table = self.table.clone();
        let operation = format!("add chain {}", chain.name);
        self.push(msg::NEWCHAIN, libc::NLM_F_CREATE, operation, |w| chain.encode(w, &table));
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let table = self.table.clone();
        let comment = rule.comment.as_deref().unwrap_or("without a comment");
        let operation = format!("add rule `{comment}` to chain {chain}");
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        self.push(msg::NEWRULE, flags, operation, |w| rule.encode(w, &table, chain));
    }

    /// Adds elements to a set; those that are there already stay.
    pub fn add_elements<E: Encode>(&mut self, set: &str, elements: impl IntoIterator<Item = E>) {
        self.elements(msg::NEWSETELEM, libc::NLM_F_CREATE, "add", set, elements);
    }

    /// Deletes elements of a set. One that is not there fails the transaction.
    pub fn delete_elements<E: Encode>(&mut self, set: &str, elements: impl IntoIterator<Item = E>) {
        self.elements(msg::DELSETELEM, 0, "delete", set, elements);
    }

    fn elements<E: Encode>(
        &mut self,
        kind: u16,
        flags: i32,
        verb: &str,
        set: &str,
        elements: impl IntoIterator<Item = E>,
    ) {
        let table = self.table.clone();
        for body in elements::chunks(elements) {
            self.push(kind, flags, format!("{verb} elements of set {set}"), |w| {
                w.string(element::LIST_TABLE, &table).string(element::LIST_SET, set);
                w.bytes(element::LIST_ELEMENTS | crate::netlink::attr::NLA_F_NESTED, &body);
            });
        }
    }

    fn push(
        &mut self,
        kind: u16,
        flags: i32,
        operation: String,
        fill: impl FnOnce(&mut crate::netlink::AttrWriter<'_>),
    ) {
        self.requests.push(message(kind), flags, &header(NFPROTO_INET, 0), fill);
        self.operations.push(operation);
    }

    /// Closes the batch.
    pub(super) fn finish(mut self) -> (Requests, Vec<String>) {
        self.requests.push(BATCH_END, 0, &header(NFPROTO_UNSPEC, SUBSYSTEM), |_| {});
        (self.requests, self.operations)
    }
}

/// Message type of nftables.
pub(super) fn message(kind: u16) -> u16 {
    SUBSYSTEM << 8 | kind
}

/// `struct nfgenmsg`.
pub(super) fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}
