use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use executor::{CallError, Progress};
use model::{CallEnd, CallId, FunctionName};
use protocol::{Call, CallHead, CallLog, Reply};

/// Knows which functions can be called.
pub trait Functions: Send + Sync + 'static {
    /// The function with this name. Any text may be asked for. Must not block.
    fn find(&self, name: &str) -> Option<Target>;
}

/// A function that can be called.
pub struct Target {
    /// Its name.
    pub name: FunctionName,
    /// What calls it.
    pub function: Arc<dyn Callee>,
    /// Where its calls are recorded.
    pub journal: Arc<dyn Journal>,
    /// How long a call may take, from the complete request to the end of the reply.
    pub timeout: Duration,
}

/// Calls a function.
#[async_trait]
pub trait Callee: Send + Sync + 'static {
    /// Delivers one call, and says in `progress` how far it has come.
    ///
    /// Returns [`protocol::CallError::TimedOut`] once the call's deadline has passed. Dropping the
    /// future, or the reply's body before its end, cancels the call.
    async fn call(&self, call: Call, progress: &Progress) -> Result<Reply, CallError>;
}

/// Records the calls of a function.
pub trait Journal: Send + Sync + 'static {
    /// A call begins: its head is complete. Must not block.
    fn open(&self, call: CallId, head: &CallHead) -> Arc<dyn Record>;
}

/// The record of one call, and where its log goes.
pub trait Record: CallLog {
    /// The call is over: its reply has been passed on, or it was given up. Called exactly once.
    fn end(&self, end: CallEnd);

    /// The same record, as what calls write to.
    fn as_log(self: Arc<Self>) -> Arc<dyn CallLog>;
}
