use std::time::Duration;

use tokio::time::Instant;

/// After this long, an event counts for 1/e of what it did.
const MEMORY: Duration = Duration::from_secs(10);

/// How often something happens, lately: an exponentially weighted moving average.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    per_second: f64,
    at: Instant,
    last: Option<Instant>,
}

impl Rate {
    /// Nothing has happened yet.
    pub fn new(now: Instant) -> Self {
        Self { per_second: 0.0, at: now, last: None }
    }

    /// It happens.
    pub fn note(&mut self, now: Instant) {
        self.per_second = self.per_second(now) + 1.0 / MEMORY.as_secs_f64();
        (self.at, self.last) = (now, Some(now));
    }

    /// How often in a second.
    pub fn per_second(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at);
        self.per_second * (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp()
    }

    /// Since when it has not happened; none if it never has.
    pub fn last(&self) -> Option<Instant> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_found_and_forgotten() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert_eq!(rate.last(), None);
        for event in 0..1000 {
            rate.note(start + event * Duration::from_millis(100));
        }
        let end = start + Duration::from_secs(100);
        let seen = rate.per_second(end);
        assert!((9.5..10.6).contains(&seen), "ten a second: {seen}");
        let later = rate.per_second(end + Duration::from_secs(60));
        assert!(later < 0.05, "a minute later it is all but forgotten: {later}");
        assert_eq!(rate.last(), Some(start + Duration::from_millis(99_900)));
    }

    #[test]
    fn time_that_goes_backwards_changes_nothing() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut rate = Rate::new(start);
        rate.note(start);
        assert!(rate.per_second(start - Duration::from_secs(5)) <= 0.1);
    }
}
