//! Hearth's own front door: HTTP in, calls of functions out, for many functions at one address.
//!
//! ```text
//! NAME.localhost/path ─┐
//!                      ├─► Functions::find ─► Journal::open ─► body ─► Callee::call ─► response
//! /fn/NAME/path ───────┘                         └────────── Record::end ◄────────────────┘
//! anything else ─────────► the router for administration
//! ```
//!
//! A host name below the domain always means a function, whatever the path, so the router is never
//! reached through one. Names count as they are sent: nothing is decoded or normalised, and what is
//! not a function's name is not found.
//!
//! # What a function sees
//!
//! Its own address: behind `/fn/NAME` the path begins with what follows, and the URL has no mount.
//! Headers as sent, joined by name, with these differences:
//!
//! | | |
//! | --- | --- |
//! | `x-hearth-*`, `x-open-runtimes-*` | removed; replies cannot have them either |
//! | `connection`, `keep-alive`, `proxy-connection`, `te`, `trailer`, `transfer-encoding`, `upgrade` | removed: they are about the connection. Names listed in `connection` stay, or a client could remove what a proxy in between has added |
//! | `host` | the authority of the request's target if it has one (RFC 9112, 3.2.2) |
//! | `x-forwarded-for` | the client's address is appended to what was sent |
//! | `x-forwarded-proto`, `x-forwarded-host` | what was sent, else `http` and the `host` |
//! | `x-forwarded-prefix` | `/fn/NAME` if it was called so, else what was sent |
//!
//! Forwarded headers are believed as nginx and most frameworks do, so they are worth as much as
//! whoever can reach the door: the last address in `x-forwarded-for` is the only one that Hearth
//! itself has seen. `x-forwarded-proto` decides about the scheme of the call's URL; the other ones
//! decide nothing here.
//!
//! # What a client sees
//!
//! The function's reply, by the rules of [`edge::response`], and the call's id in `x-hearth-call`,
//! which every answer has, the door's own and those of the router, too.
//! With the request header `x-hearth-timing: 1` there is also `server-timing`: milliseconds for a
//! place (`wait`), an instance (`spare`, `attach`, `bind`) and the function's head (`call`).
//! Without a reply it is an [`api::Problem`] as JSON with the call's id and its code in
//! `x-hearth-error`; the whole error is in the function's log only.
//!
//! The time that a function may take begins when the request is complete, body included: a slow
//! client does not use up what the function is given. What the client may take is limited by
//! [`edge::ServerLimits`] and [`DoorConfig::body`]; of what the router reads, the size is the
//! router's business, and [`DoorConfig::upload`] limits the time.
//!
//! # Web pages
//!
//! Functions are called from web pages on purpose: any `Host` may name a mount, and what pages of
//! other sites may read is the function's decision, by the usual headers. Administration is asked
//! for by the names of the daemon only ([`OwnNames`]), and not by pages of other sites.
//!
//! # The end
//!
//! While running calls are finished, new connections get answers to `/healthz`, `/readyz` and
//! `/metrics`; anything else is a 503 with `retry-after`.
//!
//! Not here: which functions exist, how they run, who may administer them, TLS.

mod authority;
mod door;
mod functions;
mod head;
mod own;
mod problem;
mod recording;
mod route;

pub use door::{Door, DoorConfig, Peer};
pub use functions::{Callee, Functions, Journal, Record, Target};
pub use own::{OwnNames, is_loopback_authority};
pub use recording::{DoorBody, DoorBodyError};
pub use route::{Called, Route, route};

/// Names that begin with one of these are between clients and Hearth; functions never see them.
const RESERVED: [&str; 2] = ["x-hearth-", "x-open-runtimes-"];
