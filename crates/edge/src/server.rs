//! Listening, and what a connection may cost.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming, SizeHint},
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, warn};

use crate::{
    client::{Client, ClientStream, InProgress},
    local::LocalListener,
    room::Room,
};

/// How many connections the kernel keeps for us, if it may: a client beyond it tries again after a
/// second.
const BACKLOG: u32 = 4096;

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections at once. When there are so many, the one that has been without a request for
    /// longest gives way to a new one; if all have one, more wait in the kernel's queue.
    pub connections: usize,
    /// How long a request's head may take, however it comes, and how long a connection may be
    /// idle.
    pub head_timeout: Duration,
    /// As long as there is something to be sent, a client must take
    /// [`ServerLimits::write_rate`] in each window of this length. Seen from here, it takes what
    /// the kernel takes, in pieces of up to a megabyte.
    pub write_timeout: Duration,
    /// The least speed of a client that reads, in bytes per second.
    pub write_rate: u32,
    /// How long calls may go on after the server was told to stop.
    pub drain_timeout: Duration,
}

/// The most connections at once through a socket of this machine.
const NEAR_CONNECTIONS: usize = 64;

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            head_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            write_rate: 1 << 10,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// The bodies of its answers.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>
        + Send
        + Unpin
        + 'static;

    /// Answers one request. The future is dropped when the connection breaks, or when the server's
    /// time to drain is over.
    fn answer(
        &self,
        request: Request<Incoming>,
        client: &Arc<Client>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// Answers a request that says in two ways where its body ends, of which nothing is believed.
    /// The connection is closed behind the answer (RFC 9112, 6.1).
    fn refuse_ambiguous(&self) -> Response<Self::Body>;
}

/// A server that listens and does not yet answer.
pub struct Server {
    listener: TcpListener,
    local: Option<LocalListener>,
    limits: ServerLimits,
}

impl Server {
    /// Binds the address; port 0 picks a free one.
    pub async fn bind(address: SocketAddr, limits: ServerLimits) -> io::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // A restart does not wait for connections of the one before.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { listener: socket.listen(BACKLOG)?, local: None, limits })
    }

    /// Listens on a socket of this machine, too.
    pub fn with_local(self, local: LocalListener) -> Self {
        Self { local: Some(local), ..self }
    }

    /// The address it listens on.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers requests until `stop` returns, then finishes the calls that are running, within the
    /// drain timeout. Until they are finished, new connections are accepted so that clients can be
    /// told: see [`Client::is_late`]. Dropping the future drops all connections.
    pub async fn run<H: Handler>(self, handler: Arc<H>, stop: impl Future<Output = ()>) {
        let Self { listener, local, limits } = self;
        let graceful = GracefulShutdown::new();
        let mut connections = Connections {
            handler,
            limits,
            room: Room::new(limits.connections.max(1)),
            near: Room::new(NEAR_CONNECTIONS),
            graceful: Some(graceful),
            tasks: JoinSet::new(),
        };
        connections.accept(&listener, local.as_ref(), stop).await;
        if let Some(graceful) = connections.graceful.take() {
            let finished = async {
                if timeout(limits.drain_timeout, graceful.shutdown()).await.is_err() {
                    warn!("calls were still running when the time to finish them was over");
                }
            };
            connections.accept(&listener, local.as_ref(), finished).await;
        }
        drop((listener, local));
        // Whatever still runs ends with its connection.
        connections.tasks.shutdown().await;
    }
}

/// The connections of a server that runs.
struct Connections<H> {
    handler: Arc<H>,
    limits: ServerLimits,
    room: Arc<Room>,
    /// For those of this machine: whoever fills all places of the port must not keep its operator
    /// out.
    near: Arc<Room>,
    /// Tells connections when to end. None once it has: those that come then are late.
    graceful: Option<GracefulShutdown>,
    tasks: JoinSet<()>,
}

impl<H: Handler> Connections<H> {
    async fn accept(
        &mut self,
        listener: &TcpListener,
        local: Option<&LocalListener>,
        stop: impl Future<Output = ()>,
    ) {
        // A timer that is set before all others wakes the event loop with a system call; with this
        // one always nearer, none of those that come and go with each request does.
        let mut nearest = tokio::time::interval(Duration::from_millis(500));
        // Accepted, and without a place: only then is it known that somebody must give way.
        let (mut waiting, mut waiting_near) = (None, None);
        let (room, near) = (self.room.clone(), self.near.clone());
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = nearest.tick() => {}
                Some(_) = self.tasks.join_next() => {}
                () = room.idle(), if waiting.is_some() => {}
                () = near.idle(), if waiting_near.is_some() => {}
                accepted = listener.accept(), if waiting.is_none() => {
                    waiting = self.accepted(accepted).await;
                }
                accepted = next_near(local), if waiting_near.is_none() => {
                    waiting_near = self.accepted(accepted).await;
                }
            }
            self.seat(&mut waiting, &room);
            self.seat(&mut waiting_near, &near);
        }
    }

    async fn accepted(&self, accepted: io::Result<Accepted>) -> Option<Accepted> {
        match accepted {
            Ok(accepted) => Some(accepted),
            Err(error) => {
                // Out of descriptors, most likely: some must be freed first.
                warn!(%error, "could not accept a connection");
                self.room.make_way();
                tokio::time::sleep(Duration::from_millis(20)).await;
                None
            }
        }
    }

    /// Serves a connection that waits, if there is a place for it.
    fn seat(&mut self, waiting: &mut Option<Accepted>, room: &Arc<Room>) {
        if waiting.is_some() && !room.has_place() {
            room.make_way();
        } else if let Some((socket, address)) = waiting.take() {
            self.serve(socket, address, room);
        }
    }

    fn serve(&mut self, socket: TcpStream, address: SocketAddr, room: &Arc<Room>) {
        // Replies are written as a whole; waiting for more to send would only delay them.
        let _ = socket.set_nodelay(true);
        let is_late = self.graceful.is_none();
        let client = Arc::new(Client::new(socket, address, room.now(), is_late));
        let place = room.enter(client.clone());
        let stream = ClientStream::new(client.clone(), room.clone(), &self.limits);
        let handler = self.handler.clone();
        let service = service_fn(move |request| answer(handler.clone(), client.clone(), request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_timeout)
            .half_close(true)
            .keep_alive(!is_late)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service);
        let ended = move |outcome: hyper::Result<()>| {
            if let Err(error) = outcome {
                debug!(%error, "a connection ended early");
            }
            drop(place);
        };
        match &self.graceful {
            Some(graceful) => {
                let connection = graceful.watch(connection);
                self.tasks.spawn(async move { ended(connection.await) });
            }
            None => _ = self.tasks.spawn(async move { ended(connection.await) }),
        }
    }
}

/// A connection that nobody serves yet.
type Accepted = (TcpStream, SocketAddr);

/// The next connection of this machine.
async fn next_near(local: Option<&LocalListener>) -> io::Result<Accepted> {
    match local {
        Some(local) => local.accept().await,
        None => std::future::pending().await,
    }
}

/// The connection is being closed to make room for another one.
#[derive(Debug, thiserror::Error)]
#[error("the connection gave way to another one")]
struct GaveWay;

async fn answer<H: Handler>(
    handler: Arc<H>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<Answer<H::Body>>, GaveWay> {
    let progress = InProgress::begin(client).ok_or(GaveWay)?;
    if progress.client().is_ambiguous() {
        let mut response = handler.refuse_ambiguous();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Ok(response.map(|body| Answer { body, _progress: progress }));
    }
    let response = handler.answer(request, progress.client()).await;
    Ok(response.map(|body| Answer { body, _progress: progress }))
}

/// A response's body, during which its request is in progress.
struct Answer<B> {
    body: B,
    _progress: InProgress,
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
