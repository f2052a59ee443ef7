//! What operators see of the daemon: its log, its metrics, and a span for every call.
//!
//! | | |
//! | --- | --- |
//! | [`start_logging`] | the daemon's own log, on standard error, for people or for programs |
//! | [`Metrics`] | numbers for Prometheus; `docs/operations/metrics.md` explains each |
//! | [`Spans`] | calls and their phases for OpenTelemetry collectors, if one is configured |
//!
//! Counting a call takes a few atomic additions; a span is built only if spans are on, and queued
//! without waiting. Nothing here reads the environment. Not here: functions' own logs (`logs`), and
//! the HTTP route on which metrics are fetched.

mod logging;
mod metrics;
mod process;
mod spans;
mod writer;

pub use logging::{AlreadyLogging, Format, InvalidFormat, start_daemon_logging, start_logging};
pub use metrics::{ColdStart, FunctionMetrics, Levels, METRICS_CONTENT_TYPE, Metrics};
pub use spans::{CallSpan, Collector, CollectorError, Spans};
pub use writer::{finish_logging, say};
