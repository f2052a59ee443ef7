//! Waiting for conditions.

use std::{thread, time::Duration};

use crate::client::PATIENCE;

const PAUSE: Duration = Duration::from_millis(10);

/// Returns once `holds` does.
///
/// # Panics
///
/// If that takes longer than [`PATIENCE`].
pub fn until(what: &str, holds: impl FnMut() -> bool) {
    assert!(comes(holds), "waited in vain until {what}");
}

/// Returns whether `holds` does within [`PATIENCE`], as soon as it does.
pub fn comes(mut holds: impl FnMut() -> bool) -> bool {
    let attempts = PATIENCE.as_millis() / PAUSE.as_millis();
    (0..attempts).any(|_| {
        let does_hold = holds();
        if !does_hold {
            thread::sleep(PAUSE);
        }
        does_hold
    })
}
