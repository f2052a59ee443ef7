use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_core::Stream;
use serde::Serialize;
use tokio::sync::mpsc::Receiver;

/// Newline-delimited JSON: a line for each value, as it comes.
pub(super) fn lines<T: Serialize + Send + 'static>(values: Receiver<T>) -> Response {
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(Lines(values))).into_response()
}

struct Lines<T>(Receiver<T>);

impl<T: Serialize> Stream for Lines<T> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let value = ready!(self.0.poll_recv(cx));
        Poll::Ready(value.map(|value| {
            let mut line = serde_json::to_vec(&value).expect("plain data with text keys is JSON");
            line.push(b'\n');
            Ok(line.into())
        }))
    }
}
