//! Keeping the calling thread, and what it starts, on one processor.

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The calling thread stays on one processor until this is dropped. Processes and threads that are
/// started meanwhile inherit the restriction and keep it.
#[derive(Debug)]
pub(crate) struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// Moves the calling thread to processor `core`.
    pub(crate) fn to(core: usize) -> anyhow::Result<Self> {
        let before = sched_getaffinity(None).context("read the processor affinity")?;
        let mut only = CpuSet::new();
        anyhow::ensure!(core < CpuSet::MAX_CPU, "there is no processor {core}");
        only.set(core);
        sched_setaffinity(None, &only).with_context(|| format!("pin to processor {core}"))?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The set was valid before, so the only failure is a processor taken away since.
        let _ = sched_setaffinity(None, &self.before);
    }
}
