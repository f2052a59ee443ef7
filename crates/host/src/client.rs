//! The connection of a client, with limits in time that HTTP libraries leave to others.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

/// The byte stream: a write that makes no progress for `stalled_after` fails.
///
/// Without that, a client that does not read its reply would keep the reply, and its descriptor,
/// for as long as it likes.
pub(crate) struct ClientStream {
    socket: Arc<TcpStream>,
    stalled_after: Duration,
    stall: Option<Pin<Box<Sleep>>>,
}

impl ClientStream {
    pub(crate) fn new(socket: Arc<TcpStream>, stalled_after: Duration) -> Self {
        Self { socket, stalled_after, stall: None }
    }

    /// A short read has emptied the socket, so there is nothing to read until the kernel says so
    /// again. Without this, [`gone`] would have to look each time.
    fn forget_readiness(&self) {
        let nothing_there = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = self.socket.try_io(Interest::READABLE, nothing_there);
    }

    /// Turns "not now" into an error once it has been that for too long.
    fn bound<T>(
        &mut self,
        cx: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stall = None;
            return progress;
        }
        let stalled_after = self.stalled_after;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(stalled_after)));
        std::task::ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            std::task::ready!(self.socket.poll_read_ready(cx))?;
            let room = buffer.remaining();
            match self.socket.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
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
        let written = loop {
            match self.socket.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
            match self.socket.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => break Poll::Ready(written),
            }
        };
        self.bound(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Write).or_else(
            |error| match error {
                rustix::io::Errno::NOTCONN => Ok(()),
                error => Err(error.into()),
            },
        ))
    }
}

/// Returns when the client will not wait for its reply: its connection broke, or it closed its
/// sending side `grace` ago.
///
/// A client that has closed its sending side may still read (`nc`, some proxies); one that has gone
/// altogether looks the same until something is sent. So both get the grace, and no more.
pub(crate) async fn gone(socket: &TcpStream, grace: Duration) {
    loop {
        match socket.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_error() => return,
            Ok(ready) if ready.is_read_closed() => break,
            Ok(_) => {}
            Err(_) => return,
        }
        let mut byte = [0_u8];
        match socket.try_io(Interest::READABLE, || {
            let (read, _) = rustix::net::recv(socket, &mut byte, rustix::net::RecvFlags::PEEK)?;
            Ok(read)
        }) {
            Ok(0) => break,
            // The next request is there already, so the client is, too.
            Ok(_) => return std::future::pending().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
    sleep(grace).await;
}
