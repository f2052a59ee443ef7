//! The HTTP side of every front door.
//!
//! All that doors share is here, once: how long a client may take and what it may cost, what a
//! function sees of a request, what a client sees of a reply.
//!
//! ```text
//! connection ─► head ─► Handler::answer ──► body, call_head ─► (a call) ─► response ─► idle ─┐
//!     ▲                                                                                      │
//!     └──────────────────────────────── keep-alive ◄─────────────────────────────────────────┘
//! ```
//!
//! A connection without a request gives way to a new one when all places are taken. Not here: which
//! function is called, who may call it, and what an error looks like. Nothing reads the environment.

mod body;
mod client;
mod framing;
mod local;
mod pace;
mod pool;
mod reply;
mod request;
mod room;
mod server;

pub use body::{Bodies, BodyLimits, Paced, Sender, Unread};
pub use client::Client;
pub use local::LocalListener;
pub use pace::PaceLimits;
pub use pool::PoolLimits;
pub use reply::{BodyEnd, Gone, InvalidStatus, ReplyBody, response};
pub use request::{Address, MAX_HEAD, call_head, function_headers, head_size, split_authority};
pub use server::{Handler, Server, ServerLimits};
