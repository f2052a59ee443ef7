//! Every role in one process: deploys functions, serves them, and answers for them.
//!
//! ```text
//!            api ──► deploy ──► workshop (build) ──► store ──► executor (started once) ──┐
//! client ─┬──► /v1                                                                       │ then
//!         └──► front ──► Active ──► executor ◄──── switches to the new deployment ◄──────┘
//!                           │
//!                           └──► logs, metrics, spans
//! ```
//!
//! The catalog says what exists. Everything else here can be made from it again: at the start, what
//! an earlier daemon left half-done is failed or removed, and every function is served as it was.
//!
//! Not here: languages (a [`Workshop`]), adapters and protocols, listening. Nothing reads the
//! environment.

mod api;
mod backup;
mod builds;
mod deploy;
mod function;
mod platform;
mod report;
mod reserve;
mod room;
mod store;
mod switchboard;
mod token;
mod trash;
mod under_way;
mod workshop;

pub use api::{Administration, openapi};
pub use backup::{BackupError, BackupSummary, RestoreError, back_up, prepare, restore};
pub use platform::{OpenError, Parts, Platform, PlatformConfig};
pub use switchboard::Switchboard;
pub use token::{Token, TokenError};
pub use workshop::{NotOffered, Plan, Workshop, WorkshopError};
