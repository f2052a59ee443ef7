//! When requests are meant to leave.
//!
//! A closed loop asks again as soon as it got a reply, so a slow server is asked less often. An
//! open loop has a timetable that does not care how the server is doing: a request that leaves late
//! because every connection is busy is measured from the time it was due, which keeps the waiting
//! of those behind a slow reply in the figures ("coordinated omission" is leaving it out).

use std::time::Duration;

use tokio::time::Instant;

/// What decides when the next request leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// The reply to the one before it.
    Closed,
    /// A timetable with this many requests a second.
    Open {
        /// Requests a second, over all connections.
        per_second: f64,
    },
    /// Nothing, until so many have left.
    AtOnce {
        /// Requests in all.
        requests: u32,
    },
}

/// The timetable of one run.
#[derive(Debug)]
pub(crate) struct Schedule {
    start: Instant,
    /// No request is due from here on.
    pub(crate) end: Instant,
    pace: Pace,
    issued: u32,
}

impl Schedule {
    /// A timetable from `start` on.
    pub(crate) fn new(start: Instant, duration: Duration, pace: Pace) -> Self {
        Self { start, end: start + duration, pace, issued: 0 }
    }

    /// When the next request is due, which may be in the past; `None` once there are no more.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let due = match self.pace {
            Pace::AtOnce { requests } if self.issued >= requests => return None,
            Pace::Closed | Pace::AtOnce { .. } => now,
            Pace::Open { per_second } => {
                self.start + Duration::from_secs_f64(f64::from(self.issued) / per_second)
            }
        };
        (due < self.end).then_some(due)
    }

    /// Takes the next request if it is due, and says since when.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next(now).filter(|due| *due <= now)?;
        self.issued = self.issued.saturating_add(1);
        Some(due)
    }

    /// How many requests of the timetable were due before its end and have not been taken.
    pub(crate) fn overdue(&self) -> u32 {
        match self.pace {
            Pace::Closed => 0,
            Pace::AtOnce { requests } => requests.saturating_sub(self.issued),
            Pace::Open { per_second } => {
                let all = ((self.end - self.start).as_secs_f64() * per_second).ceil();
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "the product of two positive numbers, and the cast saturates"
                )]
                (all as u32).saturating_sub(self.issued)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_open_loop_keeps_its_timetable_whatever_the_server_does() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, SECOND, Pace::Open { per_second: 100.0 });
        assert_eq!(schedule.take(start), Some(start));
        assert_eq!(schedule.take(start + millis(9)), None, "the second is due after 10 ms");

        // A stall until 35 ms: three were due meanwhile, each counts from its own time.
        let late = start + millis(35);
        let due: Vec<_> = std::iter::from_fn(|| schedule.take(late)).map(|at| late - at).collect();
        assert_eq!(due, [millis(25), millis(15), millis(5)]);
        assert_eq!(schedule.next(late), Some(start + millis(40)));
    }

    #[test]
    fn an_open_loop_ends_with_its_last_due_request() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, SECOND, Pace::Open { per_second: 10.0 });
        assert_eq!(schedule.overdue(), 10);
        let after = start + 2 * SECOND;
        let taken = std::iter::from_fn(|| schedule.take(after)).count();
        assert_eq!(taken, 10, "what was due before the end still leaves after it");
        assert_eq!(schedule.overdue(), 0);
    }

    #[test]
    fn a_number_of_requests_leaves_at_once_and_no_more() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, SECOND, Pace::AtOnce { requests: 3 });
        assert_eq!(schedule.overdue(), 3);
        assert_eq!(std::iter::from_fn(|| schedule.take(start)).count(), 3);
        assert_eq!((schedule.next(start), schedule.overdue()), (None, 0));
    }

    #[test]
    fn a_closed_loop_is_always_due_until_its_end() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, SECOND, Pace::Closed);
        let last = start + millis(999);
        assert_eq!(schedule.take(last), Some(last));
        assert_eq!(schedule.take(start + SECOND), None);
        assert_eq!(schedule.overdue(), 0);
    }
}
