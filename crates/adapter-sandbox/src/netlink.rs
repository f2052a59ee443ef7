//! Enough of the kernel's network configuration protocol to make a pair of interfaces, and to ask
//! for what [`crate::uplinks`] and [`crate::flows`] need to know.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
    netlink::{self, SocketAddrNetlink},
    recv, send, socket_with,
};

use crate::reach::Subnet;

/// The loopback interface always has this index.
pub(crate) const LOOPBACK: u32 = 1;

// What `libc` does not name, from linux/if_link.h, linux/veth.h and linux/rtnetlink.h.
const VETH_INFO_PEER: u16 = 1;
const HEADER: usize = 16;

/// The kernel fills no more than this with one part of a long answer.
const LONGEST: usize = 64 << 10;

/// One end of a pair of interfaces.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) index: u32,
}

/// Where a route leads.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    Gateway(Ipv4Addr),
    /// What goes there is dropped.
    Nowhere,
}

/// A connection to the configuration of one network namespace: the one it was opened in.
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        // No protocol is number 0, which is that of routing.
        let flags = SocketFlags::CLOEXEC;
        Ok(Self(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?))
    }

    /// One that speaks with the kernel's packet filter instead.
    pub(crate) fn netfilter() -> io::Result<Self> {
        let (flags, protocol) = (SocketFlags::CLOEXEC, Some(netlink::NETFILTER));
        Ok(Self(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?))
    }

    /// One that hears of changes, and never waits for them. Nothing else can be asked through it.
    pub(crate) fn listening(groups: i32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, groups.cast_unsigned()))?;
        Ok(Self(socket))
    }

    /// Throws away what has been heard. Whether it was anything, or more than there was room for.
    pub(crate) fn drain(&self) -> bool {
        let mut buffer = [0; 4096];
        let mut is_any = false;
        loop {
            match recv(self.0.as_fd(), &mut buffer[..], RecvFlags::empty()) {
                Ok(_) | Err(rustix::io::Errno::NOBUFS) => is_any = true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return is_any,
            }
        }
    }

    /// Brings an interface up.
    pub(crate) fn raise(&self, index: u32) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.interface(index, libc::IFF_UP);
        self.request(message)
    }

    /// Removes an interface, and the other end of its cable. One that is not there is removed.
    pub(crate) fn remove(&self, index: u32) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_DELLINK, 0);
        message.interface(index, 0);
        match self.request(message) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            outcome => outcome,
        }
    }

    /// Makes two interfaces that are one cable: one here, its peer in another namespace.
    pub(crate) fn make_pair(
        &self,
        here: &End<'_>,
        peer: &End<'_>,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        message.interface(here.index, 0);
        message.name(here.name);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.attribute(libc::IFLA_INFO_KIND, b"veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |end| {
                    end.interface(peer.index, 0);
                    end.name(peer.name);
                    let fd = namespace.as_raw_fd();
                    end.attribute(libc::IFLA_NET_NS_FD, &fd.to_ne_bytes());
                });
            });
        });
        self.request(message)
    }

    /// Gives an interface an address.
    pub(crate) fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        message.put(&[family(), prefix, 0, 0]);
        message.put(&index.to_ne_bytes());
        message.attribute(libc::IFA_LOCAL, &address.octets());
        message.attribute(libc::IFA_ADDRESS, &address.octets());
        self.request(message)
    }

    /// Adds a route for what has no better one.
    pub(crate) fn add_route(&self, to: Subnet, way: Way) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT);
        let kind = match way {
            Way::Gateway(_) => libc::RTN_UNICAST,
            Way::Nowhere => libc::RTN_BLACKHOLE,
        };
        message.put(&[family(), to.prefix(), 0, 0, table, protocol, libc::RT_SCOPE_UNIVERSE, kind]);
        message.put(&0u32.to_ne_bytes());
        message.attribute(libc::RTA_DST, &to.first().octets());
        if let Way::Gateway(gateway) = way {
            message.attribute(libc::RTA_GATEWAY, &gateway.octets());
        }
        self.request(message)
    }

    /// Sends a request that is answered with success or an error number.
    pub(crate) fn request(&self, message: Message) -> io::Result<()> {
        self.send(message.flagged(libc::NLM_F_ACK))?;
        let mut answer = [0; 1024];
        let (_, length) = recv(self.0.as_fd(), &mut answer[..], RecvFlags::empty())?;
        // An acknowledgement is an error message whose number may be zero.
        Messages(&answer[..length])
            .next()
            .map_or(Err(io::ErrorKind::UnexpectedEof.into()), |(_, payload)| outcome(payload))
    }

    /// Sends a request that is answered with a message, and shows its payload.
    pub(crate) fn ask<T>(
        &self,
        message: Message,
        read: impl FnOnce(&[u8]) -> Option<T>,
    ) -> io::Result<T> {
        self.send(message)?;
        let mut answer = [0; 4096];
        let (_, length) = recv(self.0.as_fd(), &mut answer[..], RecvFlags::empty())?;
        let answered = match Messages(&answer[..length]).next() {
            Some((kind, payload)) if i32::from(kind) == libc::NLMSG_ERROR => {
                outcome(payload)?;
                None
            }
            Some((_, payload)) => read(payload),
            None => None,
        };
        answered.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Asks for everything of a kind. The answer comes in parts: see [`Self::next_part`].
    pub(crate) fn ask_for_all(&self, message: Message) -> io::Result<()> {
        self.send(message.flagged(libc::NLM_F_DUMP))
    }

    /// Receives a part of an answer, and shows each payload. Whether it was the last one.
    pub(crate) fn next_part(&self, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        let mut part = vec![0; LONGEST];
        let (_, length) =
            rustix::io::retry_on_intr(|| recv(self.0.as_fd(), &mut part[..], RecvFlags::empty()))?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (kind, payload) in Messages(&part[..length]) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(true),
                libc::NLMSG_ERROR => outcome(payload)?,
                _ => each(payload),
            }
        }
        Ok(false)
    }

    fn send(&self, message: Message) -> io::Result<()> {
        send(&self.0, &message.finish(), SendFlags::empty())?;
        Ok(())
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What an acknowledgement says.
fn outcome(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().copied().map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The messages of a datagram: the kind and the payload of each.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_ne_bytes(*self.0.first_chunk()?);
        let length = usize::try_from(length).ok()?;
        let kind = u16::from_ne_bytes(self.0.get(4..6)?.try_into().ok()?);
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// The attributes in a payload, or inside another attribute: the kind and the value of each.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the attribute of this kind.
    pub(crate) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(other, value)| (other == kind).then_some(value))
    }

    pub(crate) fn address(self, kind: u16) -> Option<Ipv4Addr> {
        Some(<[u8; 4]>::try_from(self.find(kind)?).ok()?.into())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // The upper two bits say how the value is written.
        const KIND: u16 = 0x3fff;
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & KIND;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

pub(crate) fn family() -> u8 {
    u8::try_from(libc::AF_INET).expect("a small number")
}

/// A request, or the inside of an attribute: both are put together the same way.
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn new(kind: u16, flags: i32) -> Self {
        let mut message = Self(vec![0; HEADER]);
        message.0[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.flagged(flags | libc::NLM_F_REQUEST)
    }

    fn flagged(mut self, flags: i32) -> Self {
        let flags = u16::try_from(flags).expect("flags have 16 bits");
        let flags = flags | u16::from_ne_bytes([self.0[6], self.0[7]]);
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// `struct ifinfomsg`, with the flags to set.
    fn interface(&mut self, index: u32, flags: i32) {
        self.put(&[0; 4]);
        self.put(&index.to_ne_bytes());
        self.put(&flags.to_ne_bytes());
        self.put(&flags.to_ne_bytes());
    }

    fn name(&mut self, name: &str) {
        let terminated = [name.as_bytes(), &[0]].concat();
        self.attribute(libc::IFLA_IFNAME, &terminated);
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |message| message.put(value));
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.put(&[0; 2]);
        self.put(&kind.to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.0.len() - start).expect("a request is short");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a request is short");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}
