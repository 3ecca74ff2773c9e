//! The nftables of others, as the conflicts are judged by.

use super::conflicts::{AcceptedMark, BaseChain, ChainInfo, Hook, Registry, Ruleset, TableFamily, TableInfo};
use crate::nft;

impl From<nft::Foreign> for Ruleset {
    fn from(foreign: nft::Foreign) -> Self {
        let tables = foreign.tables.into_iter().filter_map(|table| info(table.family, table.name));
        let chains = foreign.chains.into_iter().filter_map(|chain| {
            let accepted_marks: Vec<_> = chain
                .accepted_marks
                .iter()
                .map(|accepted| AcceptedMark { mask: accepted.mask, value: accepted.value })
                .collect();
            let base = chain.base.and_then(|base| {
                let drops = base.policy == nft::Policy::Drop;
                Some(BaseChain { hook: hook(base.hook)?, priority: base.priority, drops, accepted_marks })
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

fn hook(hook: nft::Hook) -> Option<Hook> {
    match hook {
        nft::Hook::Prerouting => Some(Hook::Prerouting),
        nft::Hook::Input => Some(Hook::Input),
        nft::Hook::Forward => Some(Hook::Forward),
        nft::Hook::Output => Some(Hook::Output),
        nft::Hook::Postrouting => Some(Hook::Postrouting),
        nft::Hook::Other(_) => None,
    }
}
