//! Instances of a function, from launch to end.
//!
//! ```text
//!            launch, ready          attach, bind
//! (nothing) ───────────────► spare ──────────────► bound ──► calls … ──► gone
//!                              └────────────────────────────────────────►┘
//! ```
//!
//! Every instance takes this path, whether it was waiting or not: that is what makes a waiting one
//! fast. [`Stock`] keeps spares waiting; [`Function`] turns calls into replies, with one instance
//! that is replaced when it ends or with a fresh one for each call.
//!
//! Not here: processes (an [`adapter::Adapter`]), bytes on the wire (a [`protocol::Protocol`]).
//! Nothing reads the environment.

mod function;
mod instance;
mod outcome;
mod pool;
mod stock;

pub use function::{Function, FunctionConfig, Mode};
pub use instance::{Engine, LaunchError, Outputs, Template};
pub use outcome::{CallError, Progress};
pub use stock::Stock;
