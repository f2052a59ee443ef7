//! What everybody talks about: ids, limits and launch specifications.
//!
//! Data whose constructors check it. Nothing here does I/O, so every other crate may use it.

mod call;
mod describe;
mod id;
mod launch;
mod limits;
mod plain;
mod settings;
mod variable;

pub use call::{CallEnd, CallId, LogEvent, LogLine, LogSource, Outcome, Phases};
pub use describe::{describe, excerpt};
pub use id::{FunctionName, InstanceId, InvalidId, LogId, RuntimeName};
pub use launch::{Exit, ExitStatus, Instance, InstanceSocket, LaunchSpec, Usage, paths};
pub use limits::{
    Capacity, InvalidQuantity, Limits, Network, format_cpus, format_size, parse_cpus_milli,
    parse_size,
};
pub use plain::{Plain, PlainLines};
pub use settings::{InvalidSetting, MOST_CONCURRENCY, MOST_INSTANCES, Scale, Settings};
pub use variable::{InvalidVariable, check_variable};
