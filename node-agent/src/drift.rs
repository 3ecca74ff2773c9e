//! Notices at once when somebody else changes what we rely on: our nftables table, the routing rules
//! and routes, links and addresses. IPVS sends no events; there the audit finds it.

use std::{sync::mpsc::Sender, thread, time::Duration};

use crate::{
    agent::Input,
    netlink::{Attrs, Message, NetlinkError, Socket},
    policy_route,
};

/// Multicast group of table changes (`enum nfnetlink_groups`, NFNLGRP_NFTABLES).
const NFNLGRP_NFTABLES: u32 = 7;
/// Every object's first attribute is the name of its table (`NFTA_*_TABLE`).
const NFTA_TABLE: u16 = 1;
/// NFT_MSG_NEWGEN closes each transaction and names no table.
const NFT_MSG_NEWGEN: u16 = 15;
/// `sizeof(struct nfgenmsg)`.
const NFGENMSG: usize = 4;
/// How often a monitor looks whether the agent is still there.
const POLL: Duration = Duration::from_secs(1);

/// What somebody else changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drift {
    /// Our nftables table.
    Table,
    /// Rules, routes, links or addresses.
    Routes,
}

/// Starts the monitors. `ours` is the port of the socket through which we change the table.
pub fn watch(inputs: &Sender<Input>, ours: u32) -> Result<(), NetlinkError> {
    let table = Socket::with_groups(libc::NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?;
    monitor("fairlead-nft", table, inputs.clone(), Drift::Table, move |message| {
        message.port != ours && touches_our_table(message)
    })?;
    let routes = Socket::with_groups(libc::NETLINK_ROUTE, &policy_route::watch_groups())?;
    monitor("fairlead-route", routes, inputs.clone(), Drift::Routes, |_| true)
}

fn monitor(
    name: &str,
    mut socket: Socket,
    inputs: Sender<Input>,
    drift: Drift,
    matters: impl Fn(&Message<'_>) -> bool + Send + 'static,
) -> Result<(), NetlinkError> {
    socket.set_receive_timeout(POLL)?;
    let run = move || loop {
        let mut seen = false;
        let lost = match socket.events(|message| seen |= matters(&message)) {
            Ok(()) => false,
            // Events were lost: anything may have changed.
            Err(NetlinkError::Overrun) => true,
            Err(error) => {
                tracing::error!(%error, ?drift, "no longer following events, only the audit notices changes");
                return;
            }
        };
        let input = if seen || lost { Input::Drift(drift) } else { Input::Tick };
        if inputs.send(input).is_err() {
            return;
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(run).map_err(NetlinkError::Open)?;
    Ok(())
}

fn touches_our_table(message: &Message<'_>) -> bool {
    message.kind & 0xff != NFT_MSG_NEWGEN
        && message
            .payload
            .get(NFGENMSG..)
            .and_then(|attributes| Attrs::new(attributes).find(NFTA_TABLE))
            .and_then(crate::netlink::Attr::str)
            == Some(crate::dataplane::ruleset::TABLE)
}
