//! What daemon, launcher and inits say to each other: one JSON value per packet of a
//! `SOCK_SEQPACKET` pair, with descriptors beside it where a message needs them.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use model::{InstanceId, LaunchSpec, Limits, Usage};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
        sendmsg, socketpair, sockopt,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{fault::Fault, reach::Subnet};

/// The longest message. An environment of this size is already beyond what is sensible, and the
/// kernel copies a packet in one piece.
pub(crate) const LONGEST: usize = 128 << 10;

/// The most descriptors beside a message: a pidfd, a socket, and four groups.
const MOST_DESCRIPTORS: usize = 6;

/// More than an init, the only one whose last words are read, says in its life.
const MOST_LAST_WORDS: usize = 16;

/// From the daemon to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// The first message.
    Start(Settings),
    /// Carries the output descriptor, if there is one.
    Launch(Box<LaunchSpec>),
    Attach {
        request: u64,
        id: InstanceId,
        artifact: PathBuf,
        /// What holds from now on.
        limits: Box<Limits>,
    },
    Measure {
        request: u64,
        id: InstanceId,
    },
    Stop {
        id: InstanceId,
        grace_millis: u64,
    },
}

/// How the launcher is to work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) state: PathBuf,
    pub(crate) network_range: (std::net::Ipv4Addr, u8),
    pub(crate) network_stock: usize,
    /// How much of the host's memory no instance may have; unset is the usual share.
    pub(crate) memory_reserve: Option<u64>,
    pub(crate) end_patience: std::time::Duration,
    pub(crate) is_trial: bool,
    pub(crate) allowed_networks: Vec<Subnet>,
    pub(crate) untracked_ports: Vec<u16>,
    pub(crate) flows_per_instance: Option<u32>,
}

/// From the launcher to the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    Ready(Abilities),
    Failed(Fault),
    Launched {
        id: InstanceId,
        pid: u32,
    },
    /// Nothing is left of the instance.
    LaunchFailed {
        id: InstanceId,
        fault: Fault,
    },
    Attached {
        request: u64,
        result: Result<(), Fault>,
    },
    Measured {
        request: u64,
        result: Result<Usage, Fault>,
    },
    /// Its processes are gone.
    Ended {
        id: InstanceId,
        status: Status,
        out_of_memory: bool,
    },
    /// Everything it had is gone.
    Released {
        id: InstanceId,
    },
    /// Something the operator should read.
    Warning(String),
    /// Something the operator may read.
    Notice(String),
}

/// What the launcher found it can do.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Abilities {
    /// Guarantees that do not hold here.
    pub(crate) weaknesses: Vec<String>,
    /// Why there is no egress network, if there is none.
    pub(crate) no_egress: Option<String>,
    /// What all instances together may use; none if nothing limits them together.
    pub(crate) memory_bytes: Option<u64>,
}

/// From the launcher to an init.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The user namespace has its ids: build the instance.
    Go,
    /// Start the worker: no zygote will.
    Start,
    /// A zygote has forked the worker, which has this id inside.
    Adopt(i32),
    /// Carries the artifact as a detached mount, with the limits if they are others from now on.
    Attach(Option<Box<Limits>>),
    /// Ask the worker to end.
    Terminate,
}

/// From an init to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The instance is there, but for its worker.
    Built,
    Started,
    Failed(Fault),
    Attached(Result<(), Fault>),
    Ended(Status),
}

/// From a zygote to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Offer {
    /// It can fork.
    Ready,
    /// The answer to a request, in order: the id of the child, whose pidfd comes with it.
    Forked(i32),
    /// The other answer.
    Failed(Fault),
}

/// From a worker that a zygote has forked to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Birth {
    /// It is confined and about to be a worker; this is its id inside.
    Ready(i32),
    Failed(Fault),
}

/// What a process ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    Code(i32),
    Signal(i32),
    Unknown,
}

/// A connected pair.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, two) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for end in [&one, &two] {
        sockopt::set_socket_send_buffer_size(end, 2 * LONGEST)?;
    }
    Ok((one, two))
}

/// Encodes a message.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > LONGEST {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    Ok(bytes)
}

/// Sends an encoded message.
pub(crate) fn send_bytes(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::io::retry_on_intr(|| {
        sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Sends a message.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    send_bytes(socket, &encode(message)?, descriptor.as_slice())
}

/// A message, and the descriptor beside it; `None` at the end of the conversation.
pub(crate) type Received<M> = Option<(M, Option<OwnedFd>)>;

/// Receives a message, or `None` once the other end is closed and all that it said has been read.
pub(crate) fn receive<M: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<Received<M>> {
    receive_with(socket, buffer, RecvFlags::empty())
}

/// The same, without waiting for a message.
pub(crate) fn receive_now<M: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<Received<M>> {
    receive_with(socket, buffer, RecvFlags::DONTWAIT)
}

/// What is unread of somebody who has ended, in order.
pub(crate) fn last_words<M: DeserializeOwned>(socket: impl AsFd, buffer: &mut [u8]) -> Vec<M> {
    std::iter::from_fn(|| match receive_now(&socket, buffer) {
        Ok(Some((message, _))) => Some(message),
        Ok(None) | Err(_) => None,
    })
    .take(MOST_LAST_WORDS)
    .collect()
}

fn receive_with<M: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> io::Result<Received<M>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut read = || {
        rustix::io::retry_on_intr(|| {
            let mut parts = [IoSliceMut::new(buffer)];
            recvmsg(&socket, &mut parts, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC)
        })
    };
    let received = match read() {
        // Said once, and before the messages: the other end was closed with something unread.
        Err(Errno::CONNRESET) => read(),
        received => received,
    }?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok(Some((serde_json::from_slice(&buffer[..received.bytes])?, descriptor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its end is closed with an order unread, as that of an init whose worker ended meanwhile.
    fn closed_after(words: &[Report]) -> OwnedFd {
        let (ours, theirs) = pair().expect("a pair");
        send(&ours, &Order::Terminate, None).expect("an order");
        for word in words {
            send(&theirs, word, None).expect("a word");
        }
        ours
    }

    #[test]
    fn last_words_are_heard_to_the_end() {
        let words = [Report::Started, Report::Attached(Ok(())), Report::Ended(Status::Code(7))];
        let heard: Vec<Report> = last_words(closed_after(&words), &mut [0; 4096]);
        assert_eq!(format!("{heard:?}"), format!("{words:?}"));
    }

    #[test]
    fn an_unread_order_hides_no_word() {
        let ours = closed_after(&[Report::Ended(Status::Code(7))]);
        let mut buffer = [0; 4096];
        let first: Received<Report> = receive(&ours, &mut buffer).expect("a word");
        assert!(matches!(first, Some((Report::Ended(Status::Code(7)), None))), "{first:?}");
        let end: Received<Report> = receive(&ours, &mut buffer).expect("the end");
        assert!(end.is_none(), "{end:?}");
    }
}
