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
    /// For base chains of the input hook: the marks that a rule accepts, wherever in the chain.
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::nft::expr::Reg;

    const BIT: AcceptedMark = AcceptedMark { mask: 0x1000, value: 0x1000 };

    #[rstest]
    #[case::is(Rule::new("").mark_is(0x1000, 0x1000).accept(), Some(BIT))]
    #[case::has(Rule::new("").mark_has(0x1000).accept(), Some(BIT))]
    #[case::counted(Rule::new("").mark_has(0x1000).counter().accept(), Some(BIT))]
    #[case::two_bits_are_not_one(Rule::new("").mark_has(0x3000).accept(), None)]
    #[case::lacks(Rule::new("").mark_lacks(0x1000).accept(), Some(AcceptedMark { mask: 0x1000, value: 0 }))]
    #[case::more_conditions(Rule::new("").mark_has(0x1000).protocol(6).accept(), None)]
    #[case::condition_before(Rule::new("").protocol(6).mark_has(0x1000).accept(), None)]
    #[case::dropped(Rule::new("").mark_has(0x1000).discard(), None)]
    #[case::no_verdict(Rule::new("").mark_has(0x1000), None)]
    #[case::everything(Rule::new("").accept(), None)]
    fn a_rule_accepts_by_its_mark_alone(#[case] rule: Rule, #[case] accepted: Option<AcceptedMark>) {
        assert_eq!(accepted_mark(&rule), accepted);
    }

    #[test]
    fn a_whole_mark_is_compared_without_a_mask() {
        let exprs = vec![
            Expr::Meta { key: MetaKey::Mark, dreg: Reg::FIRST },
            Expr::Cmp { sreg: Reg::FIRST, op: Cmp::Eq, data: 7u32.to_ne_bytes().to_vec() },
            Expr::Verdict(Verdict::Accept),
        ];
        let accepted = accepted_mark(&Rule { exprs, comment: None });
        assert_eq!(accepted, Some(AcceptedMark { mask: u32::MAX, value: 7 }));
    }

    #[test]
    fn the_mark_match_of_iptables_counts_unless_inverted() {
        let rule = |invert| Rule {
            exprs: vec![
                Expr::XtMark { mark: 0x1000, mask: 0x1000, invert },
                Expr::Counter,
                Expr::Verdict(Verdict::Accept),
            ],
            comment: None,
        };
        assert_eq!(accepted_mark(&rule(false)), Some(BIT));
        assert_eq!(accepted_mark(&rule(true)), None);
    }
}
