//! The client: commits transactions and reads what is there, ours and others'.

use std::collections::BTreeSet;

use crate::netlink::{Attr, Attrs, KernelError, Message, NetlinkError, Requests, Socket};

use super::{
    elements::{self, RawElement},
    objects::{Chain, Of, Set, Table},
    rule::Rule,
    transaction::{Transaction, header, message},
    uapi::{GEN_ID, NFPROTO_INET, NFPROTO_UNSPEC, element, msg, rule, set},
};

/// How often a set is read before it is given up.
const ELEMENT_READS: usize = 16;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The transport failed; after a commit, read the kernel to know what it did.
    #[error("failed to {operation}")]
    Netlink {
        /// What was tried.
        operation: String,
        /// Cause.
        source: NetlinkError,
    },
    /// The kernel refused a transaction, and nothing of it was done.
    #[error("failed to {operation}, nothing was changed")]
    Refused {
        /// The first operation that was refused.
        operation: String,
        /// The kernel's reason.
        source: KernelError,
    },
    /// A set never held still long enough to be read.
    #[error("failed to {operation}: it changes all the time")]
    Unsteady {
        /// What was tried.
        operation: String,
    },
    /// The kernel answered something else than was asked for.
    #[error("failed to {operation}: the kernel's answer makes no sense")]
    Answer {
        /// What was tried.
        operation: String,
    },
}

impl NftError {
    /// True when what was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Netlink { source, .. } => source.errno() == Some(libc::ENOENT),
            Self::Refused { source, .. } => source.errno == libc::ENOENT,
            Self::Unsteady { .. } | Self::Answer { .. } => false,
        }
    }
}

/// A connection to nftables in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
}

impl Client {
    /// The port of its socket, which events of its own changes carry.
    pub fn port(&self) -> Result<u32, NftError> {
        let failed = |source| NftError::Netlink { operation: "name its socket".to_owned(), source };
        self.socket.port().map_err(failed)
    }

    /// Opens a connection.
    pub fn open() -> Result<Self, NftError> {
        let socket = Socket::open(libc::NETLINK_NETFILTER)
            .map_err(|source| NftError::Netlink { operation: "open nftables".to_owned(), source })?;
        Ok(Self { socket })
    }

    /// Commits a transaction: all of it, or an error and nothing of it.
    pub fn commit(&mut self, transaction: Transaction) -> Result<(), NftError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let (mut batch, operations) = transaction.finish();
        let mut barrier = Requests::new();
        let unspecific = header(NFPROTO_UNSPEC, 0);
        barrier.push(message(msg::GETGEN), libc::NLM_F_ACK, &unspecific, |_| {});
        let refused = self.socket.transaction(&mut batch, &mut barrier).map_err(failed("commit"))?;
        // Later errors are often consequences of the first.
        match refused.into_iter().next() {
            None => Ok(()),
            Some((index, source)) => {
                let operation = operations.into_iter().nth(index);
                let operation = operation.unwrap_or_else(|| "commit an nftables transaction".to_owned());
                Err(NftError::Refused { operation, source })
            }
        }
    }

    /// Number of the present ruleset: it grows with every transaction, of whomever.
    pub fn generation(&mut self) -> Result<u32, NftError> {
        let mut generation = None;
        let what = "read the nftables generation";
        self.socket
            .get(
                message(msg::GETGEN),
                &header(NFPROTO_UNSPEC, 0),
                |_| {},
                |answer| {
                    generation = attributes(&answer).1.find(GEN_ID).and_then(Attr::be32);
                },
            )
            .map_err(failed(what))?;
        generation.ok_or_else(|| NftError::Answer { operation: what.to_owned() })
    }

    /// All tables of all families.
    pub fn tables(&mut self) -> Result<Vec<Table>, NftError> {
        self.dump(msg::GETTABLE, NFPROTO_UNSPEC, "read the nftables tables", &[], |family, attrs, all| {
            all.extend(Table::decode(family, attrs));
        })
    }

    /// All chains of all families.
    pub fn chains(&mut self) -> Result<Vec<Of<Chain>>, NftError> {
        self.dump(msg::GETCHAIN, NFPROTO_UNSPEC, "read the nftables chains", &[], |family, attrs, all| {
            all.extend(Chain::decode(family, attrs));
        })
    }

    /// The rules of a table, in order, each with the name of its chain.
    pub fn rules(&mut self, family: u8, table: &str) -> Result<Vec<(String, Rule)>, NftError> {
        let what = format!("read the rules of table {table}");
        self.dump(msg::GETRULE, family, &what, &[(rule::TABLE, table)], |_, attrs, all| {
            all.extend(Rule::decode(attrs));
        })
    }

    /// The rules of one chain, in order.
    pub fn chain_rules(&mut self, family: u8, table: &str, chain: &str) -> Result<Vec<Rule>, NftError> {
        let what = format!("read the rules of chain {chain} of table {table}");
        let of = [(rule::TABLE, table), (rule::CHAIN, chain)];
        self.dump(msg::GETRULE, family, &what, &of, |_, attrs, all| {
            all.extend(Rule::decode(attrs).filter(|(name, _)| name == chain).map(|(_, rule)| rule));
        })
    }

    /// The sets and maps of an `inet` table.
    pub fn sets(&mut self, table: &str) -> Result<Vec<Set>, NftError> {
        let what = format!("read the sets of table {table}");
        self.dump(msg::GETSET, NFPROTO_INET, &what, &[(set::TABLE, table)], |_, attrs, all| {
            all.extend(Set::decode(attrs).filter(|set| set.table == table).map(|set| set.item));
        })
    }

    /// The elements of a set of an `inet` table, each as `decode` reads it.
    ///
    /// A hash set grows in the background, which is no new generation: the kernel finds its place
    /// for the next piece of the answer by counting, and what has moved meanwhile is told twice or
    /// not at all (seen on 6.18: 84,666 of 100,000 just after they were added). So an answer of
    /// several pieces counts only when the next one is the same.
    pub fn elements<T: Ord>(
        &mut self,
        table: &str,
        set: &str,
        decode: impl Fn(RawElement<'_>) -> T,
    ) -> Result<BTreeSet<T>, NftError> {
        let what = format!("read the elements of set {set} of table {table}");
        let of = [(element::LIST_TABLE, table), (element::LIST_SET, set)];
        let mut before = None;
        for _ in 0..ELEMENT_READS {
            let pieces: Vec<Vec<T>> =
                self.dump(msg::GETSETELEM, NFPROTO_INET, &what, &of, |_, attrs, all| {
                    all.push(
                        elements::in_answer(attrs).filter_map(RawElement::decode).map(&decode).collect(),
                    );
                })?;
            let in_one = pieces.len() <= 1;
            let read: BTreeSet<T> = pieces.into_iter().flatten().collect();
            if in_one || before.as_ref() == Some(&read) {
                return Ok(read);
            }
            before = Some(read);
        }
        Err(NftError::Unsteady { operation: what })
    }

    fn dump<T>(
        &mut self,
        kind: u16,
        family: u8,
        what: &str,
        of: &[(u16, &str)],
        collect: impl Fn(u8, &Attrs<'_>, &mut Vec<T>),
    ) -> Result<Vec<T>, NftError> {
        let fill = |w: &mut crate::netlink::AttrWriter<'_>| {
            for (attribute, name) in of {
                w.string(*attribute, name);
            }
        };
        self.socket
            .dump(message(kind), &header(family, 0), fill, Vec::new, |all, answer| {
                let (family, attrs) = attributes(&answer);
                collect(family, &attrs, all);
            })
            .map_err(failed(what))
    }
}

fn failed(operation: &str) -> impl FnOnce(NetlinkError) -> NftError {
    let operation = operation.to_owned();
    |source| NftError::Netlink { operation, source }
}

/// Family and attributes behind `struct nfgenmsg`.
fn attributes<'a>(message: &Message<'a>) -> (u8, Attrs<'a>) {
    match message.payload.split_first_chunk::<4>() {
        Some(([family, ..], attrs)) => (*family, Attrs::new(attrs)),
        None => (NFPROTO_UNSPEC, Attrs::new(&[])),
    }
}
