//! What others have in nftables, as far as it decides whether Services can work: the chains with
//! their places and policies, and which marks the host firewall lets in.

use super::{
    client::{Client, NftError},
    expr::{Cmp, Expr, MetaKey, Verdict},
    objects::{Base, Chain, Hook, Of, Table},
    rule::Rule,
};

/// A rule that accepts packets by their mark alone: `meta mark & mask == value accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedMark {
    /// Bits that are compared.
    pub mask: u32,
    /// What they must be.
    pub value: u32,
}

/// A chain of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignChain {
    /// Address family of its table, `NFPROTO_*`.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its place and policy, if it is a base chain.
    pub base: Option<Base>,
    /// For base chains of the input hook: the marks accepted before anything else can happen to
    /// a packet, that is by rules at its beginning.
    pub accepted_marks: Vec<AcceptedMark>,
}

/// Everything of the tables of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Tables.
    pub tables: Vec<Table>,
    /// Chains.
    pub chains: Vec<ForeignChain>,
}

impl Client {
    /// Reads what others have; `ours` are the names of `inet` tables to leave out.
    pub fn foreign(&mut self, ours: &[&str]) -> Result<Foreign, NftError> {
        let is_ours = |family, name: &str| family == super::NFPROTO_INET && ours.contains(&name);
        let mut tables = self.tables()?;
        tables.retain(|table| !is_ours(table.family, &table.name));
        let mut chains = Vec::new();
        for Of { family, table, item: Chain { name, base } } in self.chains()? {
            if is_ours(family, &table) {
                continue;
            }
            let mut accepted_marks = Vec::new();
            if base.as_ref().is_some_and(|base| base.hook == Hook::Input) {
                match self.chain_rules(family, &table, &name) {
                    Ok(rules) => accepted_marks = rules.iter().filter_map(accepted_mark).collect(),
                    // It went since the chains were read.
                    Err(error) if error.is_not_found() => continue,
                    Err(error) => return Err(error),
                }
            }
            chains.push(ForeignChain { family, table, name, base, accepted_marks });
        }
        Ok(Foreign { tables, chains })
    }
}

/// The marks that a rule accepts, if it looks at nothing else.
pub fn accepted_mark(rule: &Rule) -> Option<AcceptedMark> {
    let mut exprs = rule.exprs.iter().filter(|expr| **expr != Expr::Counter);
    let accepted = match exprs.next()? {
        Expr::XtMark { mark, mask, invert: false } => AcceptedMark { mask: *mask, value: *mark },
        Expr::Meta { key: MetaKey::Mark, dreg } => {
            let (mask, next) = match exprs.next()? {
                Expr::Bitwise { sreg, dreg: to, mask, xor } if (sreg, to) == (dreg, dreg) => {
                    if word(xor)? != 0 {
                        return None;
                    }
                    (word(mask)?, exprs.next()?)
                }
                other => (u32::MAX, other),
            };
            let Expr::Cmp { sreg, op, data } = next else { return None };
            let value = match (op, word(data)?) {
                (Cmp::Eq, value) => value,
                // `meta mark & 0x1000 != 0`, how the same is said of a single bit
                (Cmp::Neq, 0) if mask.is_power_of_two() => mask,
                _ => return None,
            };
            (sreg == dreg).then_some(AcceptedMark { mask, value })?
        }
        _ => return None,
    };
    match (exprs.next(), exprs.next()) {
        (Some(Expr::Verdict(Verdict::Accept)), None) => Some(accepted),
        _ => None,
    }
}

fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}
