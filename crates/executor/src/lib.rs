//! Turns a call for a function into a reply from one of its instances.
//!
//! The executor owns every instance on its host. A call takes one path, [`Service::call`]:
//!
//! ```text
//!              room?                      spare, or launch; attach; bind
//! call ──► admission ──┬── an instance has room ───────────────► protocol ──► reply
//!                      └── wait, while an instance is started ──┘
//! ```
//!
//! An instance has one life:
//!
//! ```text
//!            launch, ready          attach, bind
//! (nothing) ───────────────► spare ──────────────► bound ──► calls … ──► gone
//!                              └────────────────────────────────────────►┘
//! ```
//!
//! Every instance takes this path, whether it was waiting or not: that is what makes a waiting one
//! fast. `pool` decides who runs where and knows neither time nor tasks; `executor` carries its
//! orders out; [`Stock`] keeps spares waiting.
//!
//! Not here: processes (an [`adapter::Adapter`]), bytes on the wire (a [`protocol::Protocol`]), how
//! many instances there should be (the autoscaler), which functions exist. Nothing reads the
//! environment or binds a port, so tests run the real executor in memory.

mod executor;
mod hosting;
mod instance;
mod outcome;
mod pool;
mod readahead;
mod report;
mod revision;
mod service;
mod stock;

pub use autoscaler::SparePolicy;
pub use executor::{Executor, ExecutorConfig, OnColdStart};
pub use instance::{Engine, LaunchError, Outputs, Template};
pub use outcome::{CallError, Progress};
pub use pool::PoolLimits;
pub use report::{Activity, InstanceReport, Load};
pub use revision::{OnBind, Revision};
pub use service::Service;
pub use stock::{Stock, StockReport};
