//! Enough of the kernel's network configuration protocol to make a pair of interfaces.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// The loopback interface always has this index.
pub(crate) const LOOPBACK: u32 = 1;

// What `libc` does not name, from linux/if_link.h, linux/veth.h and linux/rtnetlink.h.
const VETH_INFO_PEER: u16 = 1;
const HEADER: usize = 16;

/// One end of a pair of interfaces.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) index: u32,
}

/// A connection to the configuration of one network namespace: the one it was opened in.
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        // No protocol is number 0, which is that of routing.
        let flags = SocketFlags::CLOEXEC;
        Ok(Self(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?))
    }

    /// Brings an interface up.
    pub(crate) fn raise(&self, index: u32) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.interface(index, libc::IFF_UP);
        self.request(message)
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

    /// Sends everything without a better route through a gateway.
    pub(crate) fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT);
        message.put(&[family(), 0, 0, 0, table, protocol, libc::RT_SCOPE_UNIVERSE]);
        message.put(&[libc::RTN_UNICAST]);
        message.put(&0u32.to_ne_bytes());
        message.attribute(libc::RTA_GATEWAY, &gateway.octets());
        self.request(message)
    }

    fn request(&self, message: Message) -> io::Result<()> {
        send(&self.0, &message.finish(), SendFlags::empty())?;
        let mut answer = [0; 1024];
        let (_, length) = recv(self.0.as_fd(), &mut answer[..], RecvFlags::empty())?;
        // An acknowledgement is an error message whose number may be zero.
        let errno = answer[..length].get(HEADER..HEADER + 4).and_then(|raw| raw.try_into().ok());
        match errno.map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn family() -> u8 {
    u8::try_from(libc::AF_INET).expect("a small number")
}

/// A request, or the inside of an attribute: both are put together the same way.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let flags = u16::try_from(flags).expect("flags have 16 bits");
        let mut message = Self(vec![0; HEADER]);
        message.0[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        message
    }

    fn put(&mut self, bytes: &[u8]) {
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

    fn attribute(&mut self, kind: u16, value: &[u8]) {
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
