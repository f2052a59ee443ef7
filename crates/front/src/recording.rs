//! A call from its head to the end of its response, and the one line that says how it went.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use edge::{BodyEnd, ReplyBody};
use executor::Progress;
use hyper::body::{Body, Frame, SizeHint};
use model::{CallEnd, CallId, Outcome, excerpt};
use protocol::{BodyError, CallHead};
use tokio::time::Instant;

use crate::functions::{Journal, Record};

/// The most bytes of what clients and functions choose that a call's last line repeats. A target
/// may have 64 KiB: without a limit, a thousand and a half of them are all that a log of usual size
/// holds.
const MOST_OF_METHOD: usize = 32;
const MOST_OF_PATH: usize = 512;
const MOST_OF_ERROR: usize = 16 << 10;

/// A call and its open record. Dropping it ends the record: what nobody has said otherwise was
/// cancelled.
pub(crate) struct Recording {
    pub(crate) id: CallId,
    pub(crate) head: Arc<CallHead>,
    pub(crate) progress: Progress,
    /// When the head of a reply came whose body is still coming.
    replied: Option<Instant>,
    /// Whether the client wants to know where the time went.
    pub(crate) is_timed: bool,
    record: Arc<dyn Record>,
    outcome: Outcome,
    status: Option<u16>,
    error: Option<String>,
}

impl Recording {
    pub(crate) fn open(id: CallId, journal: &dyn Journal, head: CallHead) -> Box<Self> {
        let record = journal.open(id, &head);
        Box::new(Self {
            id,
            head: Arc::new(head),
            progress: Progress::default(),
            replied: None,
            is_timed: false,
            record,
            outcome: Outcome::Cancelled,
            status: None,
            error: None,
        })
    }

    pub(crate) fn record(&self) -> &Arc<dyn Record> {
        &self.record
    }

    /// There is no reply.
    pub(crate) fn failed(&mut self, outcome: Outcome, status: u16, error: String) {
        self.outcome = outcome;
        self.status = Some(status);
        self.error = Some(error);
    }

    /// The head of the reply is there, and its body is still coming.
    fn replies(&mut self, status: u16) {
        self.replied = Some(Instant::now());
        self.status = Some(status);
    }

    /// All of the reply has been passed on.
    fn served(&mut self, status: u16) {
        self.outcome = Outcome::Served;
        self.status = Some(status);
    }

    /// The rest of the reply does not come.
    fn broke_off(&mut self, status: u16, error: &BodyEnd) {
        let BodyEnd::Failed(error) = error else { return };
        self.outcome = match error {
            BodyError::TimedOut => Outcome::TimedOut,
            BodyError::Failed { .. } => Outcome::Failed,
            BodyError::Lost { .. } => Outcome::Lost,
        };
        self.status = Some(status);
        self.error = Some(error.to_string());
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut phases = self.progress.phases();
        phases.reply = self.replied.map_or(Duration::ZERO, |replied| replied.elapsed());
        let micros =
            phases.durations().map(|phase| u64::try_from(phase.as_micros()).unwrap_or(u64::MAX));
        self.record.end(CallEnd {
            method: excerpt(&self.head.method, MOST_OF_METHOD),
            path: excerpt(&self.head.path, MOST_OF_PATH),
            outcome: self.outcome,
            status: self.status,
            instance: self.progress.instance().map(|id| id.as_str().to_owned()),
            error: self.error.take().map(|error| excerpt(&error, MOST_OF_ERROR)),
            phases: micros,
        });
    }
}

/// The body of the door's responses.
pub struct DoorBody(Kind);

enum Kind {
    /// The door's own.
    Own(ReplyBody),
    /// A function's.
    Reply { body: ReplyBody, status: u16, recording: Option<Box<Recording>> },
    /// The administration's.
    Admin(axum::body::Body),
}

/// Why a response's body ended before it was complete.
#[derive(Debug, thiserror::Error)]
pub enum DoorBodyError {
    /// A function's reply.
    #[error(transparent)]
    Reply(#[from] BodyEnd),
    /// An answer of the administration.
    #[error("the answer broke off")]
    Admin(#[source] Box<dyn Error + Send + Sync>),
}

impl DoorBody {
    pub(crate) fn own(body: ReplyBody) -> Self {
        Self(Kind::Own(body))
    }

    pub(crate) fn admin(body: axum::body::Body) -> Self {
        Self(Kind::Admin(body))
    }

    /// A reply that is recorded when it has been passed on.
    pub(crate) fn reply(body: ReplyBody, status: u16, mut recording: Box<Recording>) -> Self {
        // Of a reply to HEAD, nobody asks for the body.
        let is_over = recording.head.method == "HEAD" || body.is_end_stream();
        if !is_over && body.is_coming() {
            recording.replies(status);
        }
        let mut kind = Kind::Reply { body, status, recording: Some(recording) };
        if is_over {
            kind.served();
        }
        Self(kind)
    }
}

impl Kind {
    fn served(&mut self) {
        if let Self::Reply { status, recording, .. } = self
            && let Some(mut recording) = recording.take()
        {
            recording.served(*status);
        }
    }

    fn broke_off(&mut self, error: &BodyEnd) {
        if let Self::Reply { status, recording, .. } = self
            && let Some(mut recording) = recording.take()
        {
            recording.broke_off(*status, error);
        }
    }
}

impl fmt::Debug for DoorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Own(_) => "DoorBody(own)",
            Kind::Reply { .. } => "DoorBody(reply)",
            Kind::Admin(_) => "DoorBody(admin)",
        })
    }
}

impl Body for DoorBody {
    type Data = Bytes;
    type Error = DoorBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DoorBodyError>>> {
        let kind = &mut self.0;
        let body = match kind {
            Kind::Own(body) | Kind::Reply { body, .. } => body,
            Kind::Admin(body) => {
                let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
                let error = |error: axum::Error| DoorBodyError::Admin(error.into_inner());
                return Poll::Ready(frame.map(|frame| frame.map_err(error)));
            }
        };
        let frame = std::task::ready!(Pin::new(&mut *body).poll_frame(cx));
        let is_over = body.is_end_stream();
        match &frame {
            Some(Err(error)) => kind.broke_off(error),
            Some(Ok(_)) | None if is_over => kind.served(),
            Some(Ok(_)) | None => {}
        }
        Poll::Ready(frame.map(|frame| frame.map_err(DoorBodyError::Reply)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Own(body) | Kind::Reply { body, .. } => body.is_end_stream(),
            Kind::Admin(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Own(body) | Kind::Reply { body, .. } => body.size_hint(),
            Kind::Admin(body) => body.size_hint(),
        }
    }
}
