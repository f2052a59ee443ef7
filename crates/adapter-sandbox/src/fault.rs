//! A failed step, in a form that travels between processes.

use std::io;

use adapter::AdapterError;
use serde::{Deserialize, Serialize};

/// Which step failed, and what the kernel said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("could not {step}: {}", io::Error::from_raw_os_error(*errno))]
pub(crate) struct Fault {
    pub(crate) step: String,
    pub(crate) errno: i32,
}

impl Fault {
    pub(crate) fn new(step: impl Into<String>, errno: i32) -> Self {
        Self { step: step.into(), errno }
    }
}

impl From<Fault> for AdapterError {
    fn from(fault: Fault) -> Self {
        Self::step(fault.step, io::Error::from_raw_os_error(fault.errno))
    }
}

/// Names the step that an error belongs to.
pub(crate) trait Step<T> {
    fn step(self, step: impl Into<String>) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, Fault> {
        self.map_err(|error| Fault::new(step, error.into().raw_os_error().unwrap_or(libc::EINVAL)))
    }
}
