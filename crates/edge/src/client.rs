//! The connection of a client, with limits in time that HTTP libraries leave to others.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready},
    net::TcpStream,
    time::{Sleep, sleep, timeout},
};

use crate::{framing::HeadWatch, room::Room, server::ServerLimits};

/// A client, as long as its connection lasts.
///
/// ```text
/// idle since … ──► busy ──► answered ──► idle since … ──► busy …
///      └─────► gave way              (all bytes are written)
/// ```
pub struct Client {
    socket: TcpStream,
    address: SocketAddr,
    /// [`BUSY`], [`ANSWERED`], [`GAVE_WAY`], or [`FIRST_IDLE`] plus when it became idle.
    state: AtomicU64,
    is_ambiguous: AtomicBool,
    is_late: bool,
}

const BUSY: u64 = 0;
const ANSWERED: u64 = 1;
const GAVE_WAY: u64 = 2;
const FIRST_IDLE: u64 = 3;

impl Client {
    pub(crate) fn new(socket: TcpStream, address: SocketAddr, now: u64, is_late: bool) -> Self {
        let state = AtomicU64::new(FIRST_IDLE + now);
        Self { socket, address, state, is_ambiguous: AtomicBool::new(false), is_late }
    }

    /// Whether it came when the server had been told to stop: only what is quick and says so is to
    /// be answered, such as a check of health.
    pub fn is_late(&self) -> bool {
        self.is_late
    }

    /// Where it calls from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns when the client will not wait for its reply: its connection broke, or it closed its
    /// sending side `grace` ago.
    ///
    /// A reset shows at once, also within the grace. A client that has closed its sending side may
    /// still read (`nc`, some proxies); over TCP, one that has gone altogether looks the same until
    /// something is sent. So both get the grace, and no more. Over a socket of this machine they
    /// differ, and who has gone gets none.
    pub async fn gone(&self, grace: Duration) {
        match self.closing().await {
            // Nothing but an error can follow.
            Ok(ready) if !ready.is_error() && !self.has_hung_up() => {}
            Ok(_) | Err(_) => return,
        }
        // An error means that the event loop has ended, and with it everything that waits.
        let _ = timeout(grace, self.socket.ready(Interest::ERROR)).await;
    }

    /// Whether neither side will send any more, which a socket of this machine knows as soon as its
    /// other end is closed (unix(7)).
    fn has_hung_up(&self) -> bool {
        let mut ready = [PollFd::new(&self.socket, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let polled = rustix::io::retry_on_intr(|| poll(&mut ready, Some(&at_once)));
        polled.is_ok() && ready[0].revents().contains(PollFlags::HUP)
    }

    /// Whether the client has closed its sending side, or its connection broke.
    pub fn has_closed(&self) -> bool {
        let mut closing = pin!(self.closing());
        closing.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Returns once the client has closed its sending side, or its connection broke.
    ///
    /// What it has sent and nobody has read yet is left alone. Among the events of a socket, those
    /// of priority come with the end of what can be read, and without what can be read; urgent data
    /// is not listened for, so there are no others.
    async fn closing(&self) -> io::Result<Ready> {
        self.socket.ready(Interest::PRIORITY | Interest::ERROR).await
    }

    /// Whether the head of its request said in two ways where the body ends.
    pub(crate) fn is_ambiguous(&self) -> bool {
        self.is_ambiguous.load(Ordering::Relaxed)
    }

    /// When it became idle, if it is.
    pub(crate) fn idle_since(&self) -> Option<u64> {
        self.state.load(Ordering::SeqCst).checked_sub(FIRST_IDLE)
    }

    pub(crate) fn has_given_way(&self) -> bool {
        self.state.load(Ordering::Relaxed) == GAVE_WAY
    }

    /// Closes the connection if it has been idle since then. A request that arrives at the same
    /// time either counts or is refused as a whole.
    pub(crate) fn give_way(&self, since: u64) -> bool {
        let idle = FIRST_IDLE + since;
        let swap = self.state.compare_exchange(idle, GAVE_WAY, Ordering::SeqCst, Ordering::SeqCst);
        if swap.is_ok() {
            // Its task sees the end of the stream. An error means that it is gone already.
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        }
        swap.is_ok()
    }

    fn rest(&self, room: &Room) {
        if self.state.load(Ordering::Relaxed) == ANSWERED {
            // In this order: whoever looks for idle ones says so first and then looks.
            self.state.store(FIRST_IDLE + room.now(), Ordering::SeqCst);
            room.noticed_idle();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.address)
    }
}

/// A request of a client, from its head to the end of its response.
pub(crate) struct InProgress(Arc<Client>);

impl InProgress {
    /// None if the connection is being closed to make room.
    pub(crate) fn begin(client: Arc<Client>) -> Option<Self> {
        let begin = |state| (state != GAVE_WAY).then_some(BUSY);
        client.state.fetch_update(Ordering::SeqCst, Ordering::Relaxed, begin).ok()?;
        Some(Self(client))
    }

    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.0
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.state.store(ANSWERED, Ordering::Relaxed);
    }
}

/// The byte stream: writes to a client that reads too slowly fail.
///
/// Without that, a client that does not read its reply would keep the reply, and its descriptor,
/// for as long as it likes.
pub(crate) struct ClientStream {
    client: Arc<Client>,
    room: Arc<Room>,
    head: HeadWatch,
    /// Nothing has come yet.
    is_new: bool,
    /// The window in which a client must take `write_least` bytes.
    write_timeout: Duration,
    write_least: u64,
    slow: Option<Slow>,
}

/// A client that is waited for: its window, and what it has taken in it.
struct Slow {
    window: Pin<Box<Sleep>>,
    taken: u64,
}

/// The first byte of a TLS connection: a record of its handshake (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// The answer to it, which at least people who look at the bytes can read.
const PLAIN_HTTP: &str = "HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    connection: close\r\n\r\n\
    This port speaks plain HTTP, and this was TLS: write http:// instead of https://, or put a \
    proxy in front that speaks TLS.\n";

impl ClientStream {
    pub(crate) fn new(client: Arc<Client>, room: Arc<Room>, limits: &ServerLimits) -> Self {
        let write_timeout = limits.write_timeout;
        let least = write_timeout.as_millis() * u128::from(limits.write_rate) / 1000;
        Self {
            client,
            room,
            head: HeadWatch::new(),
            is_new: true,
            write_timeout,
            write_least: u64::try_from(least).unwrap_or(u64::MAX),
            slow: None,
        }
    }

    /// A short read has emptied the socket, so there is nothing to read until the kernel says so
    /// again. Without this, each request would cost one more system call.
    fn forget_readiness(&self) {
        let nothing_there = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = self.client.socket.try_io(Interest::READABLE, nothing_there);
    }

    fn look_at(&mut self, bytes: &[u8]) {
        if self.head.is_ambiguous_after(bytes) {
            self.client.is_ambiguous.store(true, Ordering::Relaxed);
        }
    }

    /// Turns "not now" into an error once too little was written in a window.
    fn bound(
        &mut self,
        cx: &mut Context<'_>,
        progress: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match (&progress, &mut self.slow) {
            (Poll::Ready(_), None) => progress,
            (Poll::Ready(written), Some(slow)) => {
                slow.taken += written.as_ref().map_or(0, |written| *written as u64);
                if slow.taken >= self.write_least {
                    self.slow = None;
                }
                progress
            }
            (Poll::Pending, slow) => {
                let window = self.write_timeout;
                let slow =
                    slow.get_or_insert_with(|| Slow { window: Box::pin(sleep(window)), taken: 0 });
                std::task::ready!(slow.window.as_mut().poll(cx));
                let why = "the client does not read fast enough";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
            }
        }
    }

    /// Says that this is not TLS. Whether that arrives is the client's business.
    fn refuse_tls(&self) {
        let _ = self.client.socket.try_write(PLAIN_HTTP.as_bytes());
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            std::task::ready!(self.client.socket.poll_read_ready(cx))?;
            let room = buffer.remaining();
            let before = buffer.filled().len();
            // Does not clear the buffer first, which costs as much as parsing a small request.
            match self.client.socket.try_read_buf(buffer) {
                Ok(read) => {
                    if self.is_new && buffer.filled().get(before) == Some(&TLS_HANDSHAKE) {
                        self.refuse_tls();
                        buffer.set_filled(before);
                        return Poll::Ready(Ok(()));
                    }
                    self.is_new = false;
                    self.look_at(&buffer.filled()[before..]);
                    if (1..room).contains(&read) {
                        self.forget_readiness();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket = &self.client.socket;
        let written = loop {
            match socket.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
            match socket.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => break Poll::Ready(written),
            }
        };
        self.bound(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Called whenever nothing is left to write: if the response is over, the client has it all.
    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.slow = None;
        if self.client.state.load(Ordering::Relaxed) == ANSWERED {
            self.head.start();
            self.client.rest(&self.room);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = &self.client.socket;
        Poll::Ready(rustix::net::shutdown(socket, rustix::net::Shutdown::Write).or_else(|error| {
            match error {
                rustix::io::Errno::NOTCONN => Ok(()),
                error => Err(error.into()),
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    /// A grace that no test waits for.
    const ENDLESS: Duration = Duration::from_secs(24 * 60 * 60);

    async fn client() -> (Arc<Client>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (socket, address) = far.expect("accept");
        (Arc::new(Client::new(socket, address, 0, false)), near.expect("connect"))
    }

    #[tokio::test]
    async fn whoever_waits_for_a_place_learns_that_a_client_became_idle() {
        let (client, _near) = client().await;
        let room = Room::new(1);
        let _place = room.enter(client.clone());
        let request = InProgress::begin(client.clone()).expect("it was idle");
        room.make_way();
        drop(request);
        assert_eq!(client.idle_since(), None, "the response is not written yet");
        client.rest(&room);
        timeout(Duration::from_secs(20), room.idle()).await.expect("told at once");
        room.make_way();
        assert!(client.has_given_way());
    }

    #[tokio::test]
    async fn a_client_that_gave_way_begins_nothing() {
        let (client, _near) = client().await;
        let since = client.idle_since().expect("it has not asked yet");
        assert!(!client.give_way(since + 1), "idle since another time");
        assert!(client.give_way(since));
        assert!(InProgress::begin(client.clone()).is_none());
        assert!(!client.give_way(since), "once is enough");
    }

    #[tokio::test]
    async fn a_command_that_is_killed_is_gone_at_once_and_one_that_reads_is_not() {
        let (near, far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        far.set_nonblocking(true).expect("set");
        let socket = TcpStream::from_std(std::os::fd::OwnedFd::from(far).into()).expect("a socket");
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let client = Client::new(socket, address, 0, false);
        near.shutdown(std::net::Shutdown::Write).expect("half-closed");
        timeout(LONG, client.closing()).await.expect("it shows").expect("an event");
        assert!(!client.has_hung_up(), "it may still read");
        drop(near);
        timeout(LONG, client.gone(ENDLESS)).await.expect("it is gone");
    }

    #[tokio::test]
    async fn a_reset_shows_at_once_whatever_came_before() {
        for (sent, is_half_closed) in [("", false), ("", true), ("next", false), ("next", true)] {
            let (client, mut near) = client().await;
            near.write_all(sent.as_bytes()).await.expect("send");
            if is_half_closed {
                near.shutdown().await.expect("half-closed");
                timeout(LONG, client.closing()).await.expect("it shows").expect("an event");
            }
            near.set_zero_linger().expect("a socket");
            drop(near);
            let gone = timeout(LONG, client.gone(ENDLESS)).await;
            gone.unwrap_or_else(|_| panic!("{sent:?}, half-closed: {is_half_closed}"));
            assert!(client.has_closed());
        }
    }

    #[tokio::test]
    async fn a_client_that_has_closed_its_sending_side_gets_the_grace() {
        for sent in ["", "next"] {
            let (client, mut near) = client().await;
            assert!(!client.has_closed());
            near.write_all(sent.as_bytes()).await.expect("send");
            near.shutdown().await.expect("half-closed");
            let short = Duration::from_millis(20);
            timeout(short, client.gone(ENDLESS)).await.expect_err("it may still read");
            timeout(LONG, client.gone(short)).await.expect("and not for ever");
            assert!(client.has_closed());
        }
    }
}
