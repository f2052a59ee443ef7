//! A worker's socket, without tokio's own type for it.
//!
//! The kernel announces that a Unix socket can be written to each time its peer has read. A type
//! that always listens for that wakes the host once more in every call. Here, only a writer that
//! has to wait listens.

use std::{
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::Arc,
};

use tokio::io::{Interest, unix::AsyncFd};

/// The end that is read.
pub(crate) struct Reading(AsyncFd<Arc<UnixStream>>);

/// The end that is written to. The other side sees the end of the stream once both are dropped.
pub(crate) struct Writing(Arc<UnixStream>);

/// Takes a socket over.
pub(crate) fn split(stream: tokio::net::UnixStream) -> io::Result<(Reading, Writing)> {
    let stream = Arc::new(stream.into_std()?);
    let reading = listen(stream.clone(), Interest::READABLE)?;
    Ok((Reading(reading), Writing(stream)))
}

#[expect(deprecated, reason = "for types whose descriptor may change, which these are not")]
fn listen<S: AsRawFd>(socket: S, interest: Interest) -> io::Result<AsyncFd<S>> {
    AsyncFd::with_interest(socket, interest)
}

impl Reading {
    /// Reads what there is, once there is something; 0 is the end. Dropping the future loses nothing.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let Ok(read) = ready.try_io(|socket| (&**socket.get_ref()).read(buffer)) else {
                continue;
            };
            if read.as_ref().is_ok_and(|read| *read < buffer.len()) {
                // That was all there is; asking again would cost a system call.
                ready.clear_ready();
            }
            return read;
        }
    }
}

impl Writing {
    /// Writes everything.
    pub(crate) async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&*self.0).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.room().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn room(&self) -> io::Result<()> {
        let socket = listen(self.0.try_clone()?, Interest::WRITABLE)?;
        let _ = socket.writable().await?;
        Ok(())
    }
}
