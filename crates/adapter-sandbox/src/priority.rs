//! Who goes first where the host is short of something: the daemon, never an instance.

use std::{fs, io};

use rustix::process::{Resource, setpriority_process};

use crate::worker::lower;

/// How much more of the host's memory a process seems to use when the kernel looks for one to end,
/// in thousandths of all memory. Enough to find the largest instance before anything else.
const OOM_SCORE: i32 = 900;
const OOM_SCORE_FILE: &str = "/proc/self/oom_score_adj";

/// How much an instance steps back where no group weighs it. A tenth of the usual weight.
const NICE: i32 = 10;

/// Puts this process, and all that it will start, behind the rest of the host. `has_weight` says
/// whether a group decides about processor time. Must be called while the launcher's `/proc` is in
/// sight; what a function sees of it is read-only.
pub(crate) fn step_back(has_weight: bool) -> io::Result<()> {
    let score: i32 = fs::read_to_string(OOM_SCORE_FILE)?.trim().parse().unwrap_or(0);
    if score < OOM_SCORE {
        fs::write(OOM_SCORE_FILE, OOM_SCORE.to_string())?;
    }
    if !has_weight {
        let nice = rustix::process::getpriority_process(None)?;
        setpriority_process(None, nice.max(NICE))?;
    }
    // Nobody takes it back.
    lower(Resource::Nice, 0)
}
