//! One function behind an Open Runtimes v5 server.
//!
//! All that languages share is here, once: the secret, header rules, limits, log files. A request
//! takes one path, in the order of the specification (1.5):
//!
//! ```text
//! /__opr/*? ─► timeout header ─► secret ─► log id ─► body ─► call ─► log files complete ─► reply
//! ```
//!
//! Not here: HTTP itself ([`edge`]), how the function is reached ([`Backend`]), processes, and which
//! address to listen on. Nothing reads the environment.

mod control;
mod log;
mod reply;
mod request;
mod server;
mod service;

pub use control::{EnforcedHeaders, Secret};
pub use edge::ServerLimits;
pub use log::{LogDirectory, Logs, MAX_LOG_FILE};
pub use server::Server;
pub use service::{Backend, HostConfig, MAX_BODY};
