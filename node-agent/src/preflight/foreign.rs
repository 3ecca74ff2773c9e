//! The nftables of others, as the conflicts are judged by.

use super::conflicts::{BaseChain, ChainInfo, Registry, Ruleset, TableFamily, TableInfo};
use crate::nft;

impl From<nft::Foreign> for Ruleset {
    fn from(foreign: nft::Foreign) -> Self {
        let tables = foreign.tables.into_iter().filter_map(|table| info(table.family, table.name));
        let chains = foreign.chains.into_iter().filter_map(|chain| {
            let accepted_marks = chain.accepted_marks;
            let base = chain.base.map(|base| {
                let drops = base.policy == nft::Policy::Drop;
                BaseChain { hook: base.hook, priority: base.priority, drops, accepted_marks }
            });
            Some(ChainInfo { table: info(chain.family, chain.table)?, name: chain.name, base })
        });
        Self { tables: tables.collect(), chains: chains.collect() }
    }
}

fn info(family: u8, name: String) -> Option<TableInfo> {
    let family = TableFamily::from_number(family)?;
    Some(TableInfo { registry: Registry::Nftables, family, name })
}
