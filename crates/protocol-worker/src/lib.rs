//! Hearth's own protocol: small binary frames over a Unix socket.
//!
//! `docs/protocols/worker.md` is the reference: bytes, states, limits, versions. This crate is its
//! Rust side in two halves: [`frame`] turns bytes into frames and back, for both directions and
//! without any I/O; [`WorkerProtocol`] is the host's end, one [`protocol::Connection`] an instance.
//!
//! Not here: deciding what a reply means to an HTTP client (the host), starting processes (an
//! adapter), the instance's side (a worker under `runtimes/`, in its own language).

mod connection;
pub mod frame;
mod listen;
mod payload;
mod socket;

pub use listen::{InstanceLogs, WorkerConfig, WorkerProtocol};
