//! Keeps what functions write, and how their calls ended, in files of limited size.
//!
//! ```text
//! call ─► CallRecord ┐                          ┌─► <function>/<number>.ndjson ─► read
//! call ─► CallRecord ┼─► queue ─► writer thread ┤
//! instance ──────────┘  (per function)          └─► followers
//! ```
//!
//! Who logs never waits: a line goes into its function's queue, and one thread writes what has
//! gathered, one `write` per function at a time. Every queue has its limit; beyond it lines are left
//! out, counted, and the log says how many. The lines that tell how calls ended have room of their
//! own, and a function that floods its own queue takes nothing from others.
//!
//! Files hold one [`model::LogLine`] a line, as JSON. Which times and sizes they have is indexed in
//! the catalog, a little late; what the index says wrongly after a kill is noticed by the file's size
//! and read from the file again. A full disk costs lines, not calls.
//!
//! Not here: the daemon's own log (`telemetry`), and who may read a function's log. Lines survive a
//! kill of the daemon once they are written; nothing is synced, so a power cut may take the last ones.

mod call;
mod files;
mod follow;
mod function;
mod index;
mod instance;
mod journal;
mod read;
mod scan;
mod split;
mod store;
mod trouble;
mod writer;

use std::{sync::Arc, time::Duration};

pub use call::CallRecord;
pub use follow::Follower;
pub use function::FunctionLog;
pub use read::{CallPart, InvalidCallPart, Query};
pub use store::LogStore;

/// Tells the time, in milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How much is kept, and how much may be on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes of a function's files together. The oldest file goes first.
    pub per_function_bytes: u64,
    /// How long lines are kept: at least so long while there is room, at most an eighth longer.
    pub age: Duration,
    /// Bytes that what one call writes may take in a file, about.
    pub per_call_bytes: usize,
    /// Bytes that what an instance writes outside of calls within a second may take, about.
    pub per_instance_second_bytes: usize,
    /// Bytes of one file.
    pub segment_bytes: u64,
    /// Bytes of memory for lines of one function that are not written yet. A quarter of it is for
    /// how calls ended.
    pub waiting_per_function_bytes: usize,
    /// Bytes of memory for all lines that are not written yet. An eighth of it is for how calls
    /// ended, and for functions that have next to nothing waiting.
    pub waiting_bytes: usize,
    /// Files that are open at once.
    pub open_files: usize,
    /// How often the catalog's index is brought up to date while there are new lines.
    pub index_every: Duration,
    /// How often files are looked for that have become too old.
    pub sweep_every: Duration,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            per_function_bytes: 16 << 20,
            age: Duration::from_secs(7 * 24 * 60 * 60),
            per_call_bytes: 1 << 20,
            per_instance_second_bytes: 256 << 10,
            segment_bytes: 1 << 20,
            waiting_per_function_bytes: 1 << 20,
            waiting_bytes: 32 << 20,
            open_files: 128,
            index_every: Duration::from_secs(2),
            sweep_every: Duration::from_secs(10 * 60),
        }
    }
}

/// Why a log could not be opened, read or removed. Writing never fails for who writes.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directory or a file in it.
    #[error("could not {step} a log")]
    Files {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The index.
    #[error("could not use the index of a log")]
    Index(#[from] catalog::CatalogError),
    /// The thread that writes is held up, or has ended.
    #[error("logs are not being written at the moment")]
    Stalled,
}
