//! What the kernel remembers of connections whose instance is gone.
//!
//! An address is used again. If flows of its former instance were still tracked then, late packets
//! for that one would reach the new one, and count against its share.

use std::{collections::HashSet, io, net::Ipv4Addr};

use crate::netlink::{Attributes, Message, Netlink, family};

// From linux/netfilter/nfnetlink_conntrack.h: the subsystem is the upper half of a message's type.
const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;

/// `struct nfgenmsg`.
const HEADER: usize = 4;

/// Which flows are to be forgotten.
#[derive(Debug)]
pub(crate) struct Forgotten {
    /// Those of these instances.
    pub(crate) instances: HashSet<Ipv4Addr>,
    /// Those of any instance of `all` that left from one of these addresses of the host.
    pub(crate) sources: Vec<Ipv4Addr>,
    /// The addresses of all instances: the first and the last.
    pub(crate) all: (Ipv4Addr, Ipv4Addr),
}

/// Forgets flows, a part of the table at a time.
pub(crate) struct Forgetting {
    table: Netlink,
    /// The first connection is busy with its long answer.
    orders: Netlink,
    what: Forgotten,
}

impl Forgetting {
    /// Fails where the kernel cannot be asked for flows.
    pub(crate) fn start(what: Forgotten) -> io::Result<Self> {
        let (table, orders) = (Netlink::netfilter()?, Netlink::netfilter()?);
        table.ask_for_all(message(GET))?;
        Ok(Self { table, orders, what })
    }

    /// Goes on with the next few hundred flows. Whether all is done.
    pub(crate) fn step(&self) -> io::Result<bool> {
        let mut failure = None;
        let is_over = self.table.next_part(|payload| {
            let Some(flow) = payload.get(HEADER..) else { return };
            if self.what.includes(flow) {
                failure = failure.take().or(self.remove(flow).err());
            }
        })?;
        failure.map_or(Ok(is_over), Err)
    }

    fn remove(&self, flow: &[u8]) -> io::Result<()> {
        let mut order = message(DELETE);
        for kind in [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE] {
            if let Some(value) = Attributes(flow).find(kind) {
                let nested = u16::try_from(libc::NLA_F_NESTED).expect("the upper bit of 16");
                let flag = if kind == CTA_TUPLE_ORIG { nested } else { 0 };
                order.attribute(kind | flag, value);
            }
        }
        match self.orders.request(order) {
            // It has ended by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            outcome => outcome,
        }
    }
}

impl Forgotten {
    fn includes(&self, flow: &[u8]) -> bool {
        let address = |tuple, side| {
            let addresses = Attributes(Attributes(flow).find(tuple)?).find(CTA_TUPLE_IP)?;
            Attributes(addresses).address(side)
        };
        let sender = address(CTA_TUPLE_ORIG, CTA_IP_V4_SRC);
        let receiver = address(CTA_TUPLE_ORIG, CTA_IP_V4_DST);
        let is_gone = |end: Option<Ipv4Addr>| end.is_some_and(|end| self.instances.contains(&end));
        let is_ours = sender.is_some_and(|sender| self.all.0 <= sender && sender <= self.all.1);
        let source = address(CTA_TUPLE_REPLY, CTA_IP_V4_DST);
        let has_lost_source = is_ours && source.is_some_and(|it| self.sources.contains(&it));
        is_gone(sender) || is_gone(receiver) || has_lost_source
    }
}

fn message(kind: u16) -> Message {
    let mut message = Message::new(kind, 0);
    message.put(&[family(), 0, 0, 0]);
    message
}
