//! Waiting for conditions.

use std::{thread, time::Duration};

use crate::client::PATIENCE;

const PAUSE: Duration = Duration::from_millis(10);

/// Returns once `holds` does.
///
/// # Panics
///
/// If that takes longer than [`PATIENCE`].
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let attempts = PATIENCE.as_millis() / PAUSE.as_millis();
    for _ in 0..attempts {
        if holds() {
            return;
        }
        thread::sleep(PAUSE);
    }
    panic!("waited in vain until {what}");
}
