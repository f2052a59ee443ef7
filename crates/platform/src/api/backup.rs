use std::{
    io::{self, Write},
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_core::Stream;
use model::describe;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::{info, warn};

use super::{Shared, problem::Refusal};
use crate::backup;

/// Pieces that wait for the reader.
const WINDOW: usize = 4;
const PIECE: usize = 256 << 10;

/// Streams a backup. If it fails before there is anything to send, the reply says why; if it fails on
/// the way, so does the connection: a reply that ends is whole.
pub(super) async fn backup(State(shared): State<Shared>) -> Result<Response, Refusal> {
    let busy = || Refusal::busy("Another backup is being made.");
    let place = shared.platform.backups.clone().try_acquire_owned().map_err(|_| busy())?;
    let platform = shared.platform.clone();
    let (sender, mut receiver) = channel(WINDOW);
    shared.platform.tasks.spawn_blocking(move || {
        let _place = place;
        let mut pieces = Pieces { sender: sender.clone(), gathered: Vec::new() };
        match backup::write(&platform.store, &*platform.catalog, &mut pieces) {
            Ok(made) => info!(functions = made.functions, bytes = made.bytes, "made a backup"),
            Err(error) => {
                let why = describe(&error);
                warn!(why, "a backup was not finished");
                // Whoever wanted it may be gone.
                let _ = sender.blocking_send(Err(io::Error::other(why)));
            }
        }
    });
    let first = match receiver.recv().await {
        Some(Err(error)) => {
            let (status, why) = (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
            return Err(Refusal::new(status, "failed", why));
        }
        first => first,
    };
    let body = Body::from_stream(Stored { first, receiver });
    Ok(([(CONTENT_TYPE, "application/zstd")], body).into_response())
}

type Piece = io::Result<Bytes>;

/// Waits for the reader, who has his time for each piece (`edge`'s limit for writing).
struct Pieces {
    sender: Sender<Piece>,
    gathered: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.gathered);
        if piece.is_empty() {
            return Ok(());
        }
        let sent = self.sender.blocking_send(Ok(piece.into()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// What is sent: the first piece, which was waited for, and then the others.
struct Stored {
    first: Option<Piece>,
    receiver: Receiver<Piece>,
}

impl Stream for Stored {
    type Item = Piece;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self.receiver.poll_recv(cx),
        }
    }
}
