//! What black-box tests of Hearth share: the program as a child process, a client that can send
//! broken HTTP, the fixture functions, and cases that are data.
//!
//! ```text
//! cases/**.toml ──► case ──► client ──► server (a child process) ──► functions/<folder>
//! tests/*.rs ────────────────┘
//! ```
//!
//! Nothing here links against Hearth: what holds for this package holds for every client.
//! README.md describes cases and fixtures.

pub mod case;
pub mod client;
pub mod clock;
pub mod flavour;
pub mod load;
pub mod platform;
pub mod process;
pub mod server;
mod text;
pub mod wait;

use std::path::PathBuf;

/// This package's folder.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
