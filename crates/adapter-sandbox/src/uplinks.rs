//! The addresses from which this host reaches others, and from which instances therefore leave it.
//!
//! `masquerade` would find them by itself, but whoever uses it makes the kernel look through the
//! whole table of tracked connections whenever any interface or address goes away. So the addresses
//! are named in the rules, and watched.

use std::{
    collections::BTreeMap,
    fmt::Write,
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd},
};

use crate::{
    addresses::is_of_instances,
    netlink::{Attributes, LOOPBACK, Message, Netlink, family},
    reach::Subnet,
    sys,
};

/// More addresses than this are not named in rules.
const MOST: usize = 512;

/// Only the way to it is asked for: a.root-servers.net, which is public and never moves.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);

/// The kernel's numbers, from linux/if_addr.h and linux/rtnetlink.h.
const SECONDARY: u8 = 0x01;
const RTMGRP_IPV4_IFADDR: i32 = 0x10;
const RTMGRP_IPV4_ROUTE: i32 = 0x40;

/// The sender's address of what instances send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Translation {
    /// The first rule that fits.
    To(Vec<Source>),
    /// Whatever the kernel finds.
    Masquerade,
}

/// From which address something is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// What leaves by this interface; by any, if there is none.
    link: Option<u32>,
    /// What goes there; anywhere, if there is none.
    to: Option<Subnet>,
    address: Ipv4Addr,
}

impl Translation {
    /// The inside of the chain that translates.
    pub(crate) fn rules(&self) -> String {
        let Self::To(sources) = self else { return "        masquerade\n".into() };
        let mut text = String::new();
        for Source { link, to, address } in sources {
            let link = link.map(|index| format!("oif {index} ")).unwrap_or_default();
            let to = to.map(|subnet| format!("ip daddr {subnet} ")).unwrap_or_default();
            writeln!(text, "        {link}{to}snat ip to {address}").expect("a string grows");
        }
        // An instance's own address means nothing to anybody else.
        text + "        drop\n"
    }

    /// The addresses that are used by `self` and no longer by `next`. Flows that left from the
    /// address of the usual way count, too, if that is another one now.
    pub(crate) fn given_up_by(&self, next: &Self) -> Vec<Ipv4Addr> {
        let addresses = |of: &Self| -> Vec<Ipv4Addr> {
            of.sources().iter().map(|source| source.address).collect()
        };
        let usual = |of: &Self| of.sources().iter().find(|source| source.link.is_none()).copied();
        let kept = addresses(next);
        let mut given_up = addresses(self);
        given_up.retain(|address| !kept.contains(address));
        if usual(self) != usual(next) {
            given_up.extend(usual(self).map(|source| source.address));
        }
        given_up.sort_unstable();
        given_up.dedup();
        given_up
    }

    fn sources(&self) -> &[Source] {
        match self {
            Self::To(sources) => sources,
            Self::Masquerade => &[],
        }
    }
}

/// A watch over the host's addresses and its way to the Internet.
pub(crate) struct Uplinks {
    questions: Netlink,
    changes: Netlink,
}

/// An address of an interface of this host.
#[derive(Clone, Copy, Debug)]
struct Address {
    link: u32,
    address: Ipv4Addr,
    /// What is reached through this interface without a gateway.
    near: Subnet,
}

/// How the kernel would send something.
#[derive(Debug)]
struct Route {
    gateway: Option<Ipv4Addr>,
    address: Option<Ipv4Addr>,
}

impl Uplinks {
    /// Begins to watch.
    pub(crate) fn watch() -> io::Result<Self> {
        let changes = Netlink::listening(RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE)?;
        sys::filter_received(&changes, &mut of_others())?;
        Ok(Self { questions: Netlink::open()?, changes })
    }

    /// Readable when something has changed.
    pub(crate) fn changes(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    /// Whether anything has changed since this was asked last.
    pub(crate) fn has_changed(&self) -> bool {
        self.changes.drain()
    }

    /// What holds now.
    pub(crate) fn translation(&self) -> io::Result<Translation> {
        let mut links: BTreeMap<u32, Vec<Address>> = BTreeMap::new();
        for address in self.addresses()? {
            links.entry(address.link).or_default().push(address);
        }
        let mut sources = Vec::new();
        for (link, addresses) in &links {
            let usual = match addresses.as_slice() {
                [only] => only.address,
                several => {
                    sources.extend(several.iter().map(|address| Source {
                        link: Some(*link),
                        to: Some(address.near),
                        address: address.address,
                    }));
                    self.usual_of(*link, several)
                }
            };
            sources.push(Source { link: Some(*link), to: None, address: usual });
        }
        // What leaves by an interface without an address of its own.
        let usual = self.route(None).ok().and_then(|route| route.address);
        sources.extend(usual.map(|address| Source { link: None, to: None, address }));
        if sources.len() > MOST {
            return Err(io::Error::other(format!("the host has more than {MOST} addresses")));
        }
        Ok(Translation::To(sources))
    }

    /// From which address of an interface the kernel would send to what is far away.
    fn usual_of(&self, link: u32, addresses: &[Address]) -> Ipv4Addr {
        let gateway = self.route(Some(link)).ok().and_then(|route| route.gateway);
        let beside = |address: &&Address| gateway.is_some_and(|it| address.near.contains(it));
        addresses.iter().find(beside).unwrap_or(&addresses[0]).address
    }

    /// The addresses that others know, the first of each network, in the kernel's order.
    fn addresses(&self) -> io::Result<Vec<Address>> {
        let mut message = Message::new(libc::RTM_GETADDR, 0);
        message.put(&[family(), 0, 0, 0]);
        message.put(&0u32.to_ne_bytes());
        self.questions.ask_for_all(message)?;
        let mut addresses = Vec::new();
        while !self.questions.next_part(|payload| addresses.extend(Address::read(payload)))? {}
        Ok(addresses)
    }

    fn route(&self, link: Option<u32>) -> io::Result<Route> {
        let mut message = Message::new(libc::RTM_GETROUTE, 0);
        message.put(&[family(), 32, 0, 0, 0, 0, 0, 0]);
        message.put(&0u32.to_ne_bytes());
        message.attribute(libc::RTA_DST, &PUBLIC.octets());
        if let Some(link) = link {
            message.attribute(libc::RTA_OIF, &link.to_ne_bytes());
        }
        self.questions.ask(message, Route::read)
    }
}

impl Address {
    /// Reads a `struct ifaddrmsg` and its attributes. None for what is not of interest.
    fn read(payload: &[u8]) -> Option<Self> {
        let [_, prefix, flags, scope, index @ ..] = *payload.first_chunk::<8>()?;
        let link = u32::from_ne_bytes(index);
        let is_known = flags & SECONDARY == 0 && scope == libc::RT_SCOPE_UNIVERSE;
        if !is_known || link == LOOPBACK || is_of_instances(link) {
            return None;
        }
        let attributes = || Attributes(&payload[8..]);
        let address = attributes().address(libc::IFA_LOCAL)?;
        // On a link between two it is the other end's.
        let peer = attributes().address(libc::IFA_ADDRESS).unwrap_or(address);
        Some(Self { link, address, near: Subnet::around(peer, prefix) })
    }
}

impl Route {
    /// Reads a `struct rtmsg` and its attributes.
    fn read(payload: &[u8]) -> Option<Self> {
        let attributes = payload.get(12..)?;
        let address = |kind| Attributes(attributes).address(kind);
        Some(Self { gateway: address(libc::RTA_GATEWAY), address: address(libc::RTA_PREFSRC) })
    }
}

/// Accepts changes of addresses that are not of instances' interfaces, and changes of routes to
/// large parts of the Internet. Otherwise every instance would wake the launcher several times.
fn of_others() -> [libc::sock_filter; 9] {
    /// In a `struct nlmsghdr` the low byte of its type; in the `struct ifaddrmsg` behind it the
    /// high byte of the interface's number; in a `struct rtmsg` the length of the prefix.
    const TYPE: u32 = if cfg!(target_endian = "little") { 4 } else { 5 };
    const INDEX: u32 = if cfg!(target_endian = "little") { 23 } else { 20 };
    const PREFIX: u32 = 17;
    const ALL: u32 = u32::MAX;
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, offset);
    let equal = |yes, no, value: u16| {
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value.into())
    };
    let finish = |length| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, length);
    [
        load(TYPE),
        equal(1, 0, libc::RTM_NEWADDR),
        equal(0, 2, libc::RTM_DELADDR),
        load(INDEX),
        equal(3, 2, u16::from(crate::addresses::HIGH_BYTE_OF_INDEX)),
        load(PREFIX),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, 0, 8),
        finish(ALL),
        finish(0),
    ]
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).expect("a small number"), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(link: Option<u32>, last: u8) -> Source {
        Source { link, to: None, address: Ipv4Addr::new(192, 0, 2, last) }
    }

    #[test]
    fn what_is_no_longer_used_is_given_up() {
        let to = |sources: &[Source]| Translation::To(sources.to_vec());
        let before = to(&[source(Some(2), 2), source(Some(3), 3), source(None, 2)]);
        assert_eq!(before.given_up_by(&before), [] as [Ipv4Addr; 0]);
        let moved = to(&[source(Some(2), 9), source(Some(3), 3), source(None, 9)]);
        assert_eq!(before.given_up_by(&moved), [Ipv4Addr::new(192, 0, 2, 2)]);
        // The way out is another one, although the first address is still there.
        let other_way = to(&[source(Some(2), 2), source(Some(3), 3), source(None, 3)]);
        assert_eq!(before.given_up_by(&other_way), [Ipv4Addr::new(192, 0, 2, 2)]);
    }

    #[test]
    fn more_exact_rules_come_first() {
        let near = Subnet::around(Ipv4Addr::new(10, 7, 7, 1), 24);
        let exact = Source { to: Some(near), ..source(Some(4), 1) };
        let text = Translation::To(vec![exact, source(Some(4), 2), source(None, 3)]).rules();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "oif 4 ip daddr 10.7.7.0/24 snat ip to 192.0.2.1",
                "oif 4 snat ip to 192.0.2.2",
                "snat ip to 192.0.2.3",
                "drop"
            ]
        );
    }
}
