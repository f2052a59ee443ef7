use std::marker::PhantomData;

use bytes::{Buf, BytesMut};
use reqwest::Response;
use serde::de::DeserializeOwned;

use crate::ClientError;

/// The longest line: the largest log entry, with room for escapes.
const MOST: usize = 4 << 20;

/// An answer that comes as lines of JSON, each read when it is there. Dropping it ends the request.
#[derive(Debug)]
pub struct Lines<T> {
    response: Response,
    buffer: BytesMut,
    /// Up to here there is no line end.
    searched: usize,
    lines: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(crate) fn new(response: Response) -> Self {
        Self { response, buffer: BytesMut::new(), searched: 0, lines: PhantomData }
    }

    /// The next line; none when the daemon has said everything. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(line) = self.take_line() {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.buffer.len() > MOST {
                return Err(ClientError::TooLarge { limit: MOST });
            }
            match self.response.chunk().await.map_err(|error| ClientError::of_body(&error))? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                // The last line may lack its end; one that was cut off is not JSON.
                None => self.buffer.extend_from_slice(b"\n"),
            }
        }
    }

    fn take_line(&mut self) -> Option<BytesMut> {
        let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(end) = end.map(|end| self.searched + end) else {
            self.searched = self.buffer.len();
            return None;
        };
        self.searched = 0;
        let line = self.buffer.split_to(end);
        self.buffer.advance(1);
        Some(line)
    }
}
