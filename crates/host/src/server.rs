//! Listening, and what a connection may cost.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, warn};

use crate::{
    client::ClientStream,
    service::{Backend, HostConfig, Service},
};

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// How long a request's head may take, and how long a connection may be idle.
    pub head_timeout: Duration,
    /// How long a client may read nothing of what it is sent.
    pub write_timeout: Duration,
    /// How long calls may go on after the server was told to stop.
    pub drain_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            head_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// A server that listens and does not yet answer.
pub struct Server {
    listener: TcpListener,
    limits: ServerLimits,
}

impl Server {
    /// Binds the address; port 0 picks a free one.
    pub async fn bind(address: SocketAddr, limits: ServerLimits) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, limits })
    }

    /// The address it listens on.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers requests until `stop` returns, then finishes the calls that are running, within the
    /// drain timeout. Dropping the future drops all connections.
    pub async fn run(
        self,
        config: HostConfig,
        backend: Arc<dyn Backend>,
        stop: impl Future<Output = ()>,
    ) {
        let service = Arc::new(Service::new(config, backend));
        let room = Arc::new(Semaphore::new(self.limits.connections));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        // A timer that is set before all others wakes the event loop with a system call; with this
        // one always nearer, none of those that come and go with each request does.
        let mut nearest = tokio::time::interval(Duration::from_millis(500));
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                _ = nearest.tick() => continue,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&self.listener, &room) => accepted,
            };
            match accepted {
                Ok((socket, place)) => {
                    connections.spawn(self.serve(socket, place, &service, &graceful));
                }
                Err(error) => {
                    // Out of descriptors, most likely: some must be freed first.
                    warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        drop(self.listener);
        if timeout(self.limits.drain_timeout, graceful.shutdown()).await.is_err() {
            warn!("calls were still running when the time to finish them was over");
        }
        // Whatever still runs ends with its connection.
        connections.shutdown().await;
    }

    fn serve(
        &self,
        socket: TcpStream,
        place: OwnedSemaphorePermit,
        service: &Arc<Service>,
        graceful: &GracefulShutdown,
    ) -> impl Future<Output = ()> + Send + use<> {
        // Replies are written as a whole; waiting for more to send would only delay them.
        let _ = socket.set_nodelay(true);
        let socket = Arc::new(socket);
        let stream = ClientStream::new(socket.clone(), self.limits.write_timeout);
        let service = service.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let (service, socket) = (service.clone(), socket.clone());
            async move { Ok::<_, Infallible>(service.answer(request, &socket).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_timeout)
            .half_close(true)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), answer);
        let connection = graceful.watch(connection);
        async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection ended early");
            }
            drop(place);
        }
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = room.clone().acquire_owned().await.expect("the semaphore is never closed");
    let (socket, _) = listener.accept().await?;
    Ok((socket, place))
}
