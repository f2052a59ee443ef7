//! Bodies: what is there already, and what is still coming.

use std::{fmt, pin::Pin};

use bytes::Bytes;
use futures_core::Stream;

/// The part of a body that is still coming. Ends after an error.
pub type BodyStream = Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>;

/// A body of a call or a reply.
#[derive(Default)]
pub struct Body {
    /// What is there already, perhaps nothing.
    pub first: Bytes,
    /// What is still coming; without it, `first` is the whole body.
    pub rest: Option<BodyStream>,
}

/// Why the rest of a body does not come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The call's deadline passed.
    #[error("Execution timed out.")]
    TimedOut,
    /// Whoever sends it failed.
    #[error("{message}")]
    Failed {
        /// The text for the function's error log: message and stack trace.
        message: String,
    },
    /// Whoever sends it was lost.
    #[error("{why}")]
    Lost {
        /// What happened, as a sentence.
        why: String,
    },
}

impl Body {
    /// A body that is there as a whole.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self { first: bytes.into(), rest: None }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.rest.is_some() { ", more follows" } else { "" };
        write!(f, "Body({} bytes{more})", self.first.len())
    }
}
