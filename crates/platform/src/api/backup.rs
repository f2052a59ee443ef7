use std::{
    io::{self, Write},
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::State,
    http::header::CONTENT_TYPE,
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

/// Streams a backup. If it fails on the way, so does the connection: a reply that ends is whole.
pub(super) async fn backup(State(shared): State<Shared>) -> Result<Response, Refusal> {
    let busy = || Refusal::busy("Another backup is being made.");
    let place = shared.platform.backups.clone().try_acquire_owned().map_err(|_| busy())?;
    let platform = shared.platform.clone();
    let (sender, receiver) = channel(WINDOW);
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
    Ok(([(CONTENT_TYPE, "application/zstd")], Body::from_stream(Stored(receiver))).into_response())
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

struct Stored(Receiver<Piece>);

impl Stream for Stored {
    type Item = Piece;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        self.0.poll_recv(cx)
    }
}
