//! The seam to instances: how they are spoken to.
//!
//! ```text
//! prepare ──► (the adapter launches) ──► ready ──► bind, once ──► call, call, … ──► drain
//! ```
//!
//! A protocol has no idea where its instances run, and shares only `model` with adapters, so any
//! adapter carries any protocol. What every protocol promises is written as tests in
//! [`conformance`].

pub mod body;
pub mod conformance;
mod pace;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use model::LaunchSpec;
use tokio::time::Instant;

pub use body::{Body, BodyError, BodyStream};
pub use pace::Pace;

/// One way of talking to instances.
pub trait Protocol: Send + Sync + 'static {
    /// Gets ready for an instance that is about to be launched: adds to the specification what the
    /// instance must find, and returns our end of the conversation.
    ///
    /// Dropping the connection takes back what was prepared, and ends the conversation.
    fn prepare(&self, spec: &mut LaunchSpec) -> Result<Arc<dyn Connection>, ConnectError>;
}

/// Our end of the conversation with one instance.
///
/// Most protocols push: they send the call. Lambda's pulls: its call is parked until the instance
/// asks for work. Callers see no difference.
#[async_trait]
pub trait Connection: Send + Sync + 'static {
    /// Returns when the instance can be bound. May be asked again at any time.
    async fn ready(&self) -> Result<(), ConnectError>;

    /// Makes the instance one function's, for good. At most once.
    ///
    /// Dropping the future leaves an instance in an unknown state: it must be stopped.
    async fn bind(&self, binding: &Binding) -> Result<(), BindError>;

    /// Delivers one call and returns its reply; the reply's body may still be coming then.
    ///
    /// Returns [`CallError::TimedOut`] once the call's deadline has passed, whatever the instance
    /// does. Dropping the future, or the reply's body before its end, cancels the call. A call is
    /// delivered at most once; [`CallError::is_safe_to_retry`] says whether it was not.
    async fn call(&self, call: Call) -> Result<Reply, CallError>;

    /// Asks the instance to finish what it runs and to end. Returns when the conversation is over.
    async fn drain(&self);

    /// Returns when no further call can succeed, with the reason. May be awaited by several.
    async fn closed(&self) -> String;
}

/// What makes an instance one function's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The code directory, as seen from inside the instance.
    pub code_directory: PathBuf,
    /// The file that defines the function, relative to the code directory.
    pub entrypoint: String,
    /// The function's own environment.
    pub environment: Vec<(String, String)>,
}

/// One request to a function.
pub struct Call {
    /// What the function sees of the request.
    pub head: Arc<CallHead>,
    /// The request's body.
    pub body: Body,
    /// When the caller stops waiting. It covers everything up to the reply's end.
    pub deadline: Option<Instant>,
    /// Where the call's log goes; without one, the function is told that logging is off.
    pub log: Option<Arc<dyn CallLog>>,
}

/// The head of a call: after all rules about headers were applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallHead {
    /// Upper-case verb.
    pub method: String,
    /// The whole URL; the port is left out if it is the scheme's own.
    pub url: String,
    /// `http` or `https`.
    pub scheme: String,
    /// Without the port.
    pub host: String,
    /// Explicit, or the scheme's own.
    pub port: u16,
    /// As sent: not percent-decoded.
    pub path: String,
    /// Behind the first `?`, without it.
    pub query_string: String,
    /// The query's parts in order, names unique, not percent-decoded.
    pub query: Vec<(String, String)>,
    /// Names in lower case and unique.
    pub headers: Vec<(String, String)>,
}

/// A function's answer.
#[derive(Debug)]
pub struct Reply {
    /// 100 to 999.
    pub status: u16,
    /// As the function gave them; names may repeat.
    pub headers: Vec<(String, String)>,
    /// The body, whose rest may still be coming.
    pub body: Body,
}

/// Where a call's log entries go.
///
/// Called in the order in which the function wrote, and for everything written before the reply's
/// head before [`Connection::call`] returns. Must not block for longer than a local file write.
pub trait CallLog: Send + Sync + 'static {
    /// Takes one entry, or a piece of native output.
    fn write(&self, stream: LogStream, text: &str);
}

/// Which way a log entry was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// `context.log`
    Log,
    /// `context.error`
    Error,
    /// The language's own standard output.
    NativeOut,
    /// The language's own standard error.
    NativeErr,
}

/// Why there is no conversation with an instance.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no connection with the instance: {why}")]
pub struct ConnectError {
    /// What happened, as a sentence without a full stop.
    pub why: String,
}

/// Why an instance was not bound.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BindError {
    /// The function's code does not load. The text is complete, for the function's error log.
    #[error("{message}")]
    Load {
        /// What the language said.
        message: String,
    },
    /// The conversation ended.
    #[error("the instance was lost while it loaded the function: {why}")]
    Lost {
        /// What happened.
        why: String,
    },
}

/// Why a call got no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The function's code does not load.
    #[error("{message}")]
    NotLoaded {
        /// The text for the function's error log.
        message: String,
    },
    /// The function failed or returned nothing usable.
    #[error("{message}")]
    Failed {
        /// The text for the function's error log: message and stack trace.
        message: String,
    },
    /// The deadline passed.
    #[error("Execution timed out.")]
    TimedOut,
    /// The instance was lost while the call ran in it.
    #[error("{why}")]
    Lost {
        /// What happened, as a sentence.
        why: String,
    },
    /// The call was not delivered: the instance takes no more.
    #[error("{why}")]
    Unavailable {
        /// What happened, as a sentence.
        why: String,
    },
}

impl CallError {
    /// Whether the call cannot have reached the function, so that another instance may be tried.
    pub fn is_safe_to_retry(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::NotLoaded { .. } | Self::Failed { .. } | Self::TimedOut | Self::Lost { .. } => {
                false
            }
        }
    }
}
