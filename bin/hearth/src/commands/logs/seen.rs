use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
};

use model::LogLine;

/// Lines may come so much later than lines that were written after them: several instances write.
const SLACK_MILLIS: u64 = 2_000;
/// The most lines of that time that are remembered. A function that writes more may have some of them
/// repeated.
const MOST: usize = 16 << 10;

/// The last lines of a log that were seen, so that one that is read anew goes on where it was left.
/// Lines have no number; equal ones are counted.
#[derive(Default)]
pub(super) struct Seen {
    newest: Option<u64>,
    /// When each was written, and its digest.
    recent: VecDeque<(u64, u64)>,
    /// Those of them that have not come again.
    expected: VecDeque<(u64, u64)>,
}

impl Seen {
    /// Whether a line has not been seen on an earlier connection.
    pub(super) fn is_new(&mut self, line: &LogLine) -> bool {
        let key = (line.at, digest(line));
        // They come in the same order, so the first is nearly always the one.
        if let Some(index) = self.expected.iter().position(|expected| *expected == key) {
            self.expected.remove(index);
            return false;
        }
        let newest = self.newest.map_or(line.at, |newest| newest.max(line.at));
        self.newest = Some(newest);
        self.recent.push_back(key);
        while self.recent.front().is_some_and(|(at, _)| at.saturating_add(SLACK_MILLIS) < newest)
            || self.recent.len() > MOST
        {
            self.recent.pop_front();
        }
        true
    }

    /// From when on the log must be read to miss nothing; none if nothing was seen.
    pub(super) fn since(&self) -> Option<u64> {
        let floor = self.newest?.saturating_sub(SLACK_MILLIS);
        // What was forgotten must not be asked for.
        Some(if self.recent.len() < MOST { floor } else { self.recent.front()?.0 })
    }

    /// What was seen comes again, on another connection.
    pub(super) fn begin_again(&mut self) {
        let since = self.since().unwrap_or(0);
        self.expected = self.recent.iter().filter(|(at, _)| *at >= since).copied().collect();
    }
}

fn digest(line: &LogLine) -> u64 {
    let mut hasher = DefaultHasher::new();
    serde_json::to_vec(line).expect("plain data is JSON").hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use model::{LogEvent, LogSource};

    use super::*;

    fn line(at: u64, text: &str) -> LogLine {
        let event = LogEvent::Entry { stream: LogSource::Log, text: text.into() };
        LogLine { at, call: None, event }
    }

    #[test]
    fn what_comes_again_is_not_new_and_equal_lines_are_counted() {
        let mut seen = Seen::default();
        assert_eq!(seen.since(), None);
        for (at, text) in [(1_000, "old"), (5_000, "a"), (5_000, "a"), (4_000, "late")] {
            assert!(seen.is_new(&line(at, text)), "{text}");
        }
        assert_eq!(seen.since(), Some(3_000));
        for _ in 0..2 {
            seen.begin_again();
            for (at, text) in [(4_000, "late"), (5_000, "a"), (5_000, "a")] {
                assert!(!seen.is_new(&line(at, text)), "{text}");
            }
        }
        assert!(seen.is_new(&line(5_000, "a")), "the third of its kind is new");
        seen.begin_again();
        assert!(seen.is_new(&line(5_001, "written while nobody was connected")));
    }

    #[test]
    fn a_flood_is_bounded() {
        let mut seen = Seen::default();
        for number in 0..2 * MOST {
            assert!(seen.is_new(&line(7, &number.to_string())));
        }
        assert_eq!((seen.recent.len(), seen.since()), (MOST, Some(7)));
    }
}
