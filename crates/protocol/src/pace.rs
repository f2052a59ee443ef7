//! How fast what an instance writes is read: not faster than its share of the host's time.
//!
//! One thread reads from all instances. What an instance writes because somebody called it is
//! bounded by the calls, and large parts of a body by whoever reads them. Nothing bounds log
//! entries, native output, small parts of bodies and grants of credit: thousands of those fit into
//! one write, which costs the instance next to nothing. Each is charged to its instance's
//! [`Pace`]. One that writes faster than it may is not read for a while, so what it writes waits in
//! its own socket or pipe, in order, and then the instance waits: nothing is lost, nobody else
//! waits.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// What is charged in a second, in bytes: some 20 000 short entries. That is eight times what is
/// kept of an instance's output outside of calls.
const BYTES_PER_SECOND: u64 = 2 << 20;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// So long an instance may have been silent to its advantage: it can then write at once what it
/// did not write in that time, which is more than a call may log.
const SAVED: Duration = Duration::from_secs(2);

/// For how long there is something to read after a pause, so that pauses are few.
const AHEAD: Duration = Duration::from_millis(20);

/// The share of one instance.
#[derive(Debug)]
pub struct Pace {
    /// When all that was written is paid for.
    paid_at: Instant,
}

impl Pace {
    /// What an entry costs beside its text, in bytes.
    pub const ENTRY: usize = 100;

    /// One that has saved as much as possible.
    pub fn new(now: Instant) -> Self {
        Self { paid_at: now.checked_sub(SAVED).unwrap_or(now) }
    }

    /// Charges so many bytes. Returns how long nothing more should be read, if that was too much.
    pub fn charge(&mut self, bytes: usize, now: Instant) -> Option<Duration> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        // Not a rounded price for each byte: that would give away some of every second.
        let nanos = u128::from(bytes) * NANOS_PER_SECOND / u128::from(BYTES_PER_SECOND);
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let saved = now.checked_sub(SAVED).unwrap_or(now);
        self.paid_at = self.paid_at.max(saved) + time;
        let owed = self.paid_at.saturating_duration_since(now);
        (!owed.is_zero()).then(|| owed + AHEAD)
    }

    /// The same, and waits. Dropping the future charges all the same.
    pub async fn keep(&mut self, bytes: usize) {
        if let Some(pause) = self.charge(bytes, Instant::now()) {
            sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_what_is_faster_than_its_share_has_to_wait() {
        let start = Instant::now() + 10 * SECOND;
        let second = usize::try_from(BYTES_PER_SECOND).expect("small");
        let mut pace = Pace::new(start);
        for (bytes, after, waits) in [
            (second, 0, false),
            (second - 1000, 0, false), // all that it had saved
            (2000, 0, true),
            (second - 2000, 1, false), // a second later a second's worth is free
            (second, 2, false),
            (second, 3, false),
            (2 * second, 4, true),
            (2 * second, 100, false), // what was saved has a limit
            (2000, 100, true),
        ] {
            let pause = pace.charge(bytes, start + after * SECOND);
            assert_eq!(pause.is_some(), waits, "{bytes} bytes after {after} s: {pause:?}");
        }
    }

    #[test]
    fn a_pause_lasts_until_everything_is_paid_for() {
        let start = Instant::now() + 10 * SECOND;
        let second = usize::try_from(BYTES_PER_SECOND).expect("small");
        let mut pace = Pace::new(start);
        assert_eq!(pace.charge(2 * second, start), None);
        let pause = pace.charge(second, start).expect("too much");
        assert!((SECOND..SECOND + 2 * AHEAD).contains(&pause), "{pause:?}");
        assert_eq!(pace.charge(1, start + pause), None);
    }
}
