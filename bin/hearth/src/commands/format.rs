//! Numbers as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) use model::format_size as size;

/// `12s`, `3m`, `5h` or `9d`: whole units, rounded down.
pub(crate) fn age(age: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match age.as_secs() {
        seconds if seconds < 2 * MINUTE => format!("{seconds}s"),
        seconds if seconds < 2 * HOUR => format!("{}m", seconds / MINUTE),
        seconds if seconds < 2 * DAY => format!("{}h", seconds / HOUR),
        seconds => format!("{}d", seconds / DAY),
    }
}

/// An age in seconds, as a daemon tells it.
pub(crate) fn age_seconds(seconds: f64) -> String {
    age(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// How long ago a time is, in milliseconds since 1970. The clocks may differ: never negative.
pub(crate) fn age_since(at_millis: u64) -> String {
    age(SystemTime::now().duration_since(time(at_millis)).unwrap_or_default())
}

/// `812µs`, `1.23ms` or `4.50s`.
pub(crate) fn micros(micros: u64) -> String {
    let hundredths = |of: u64| (micros / of, micros % of * 100 / of);
    match micros {
        0..1_000 => format!("{micros}µs"),
        1_000..1_000_000 => {
            let (whole, rest) = hundredths(1_000);
            format!("{whole}.{rest:02}ms")
        }
        _ => {
            let (whole, rest) = hundredths(1_000_000);
            format!("{whole}.{rest:02}s")
        }
    }
}

/// RFC 3339, in UTC, with milliseconds.
pub(crate) fn timestamp(at_millis: u64) -> String {
    humantime::format_rfc3339_millis(time(at_millis)).to_string()
}

/// A time that can be written with four digits of year; later ones are a mistake of the sender.
fn time(at_millis: u64) -> SystemTime {
    const LAST: u64 = 253_402_300_799_999;
    UNIX_EPOCH + Duration::from_millis(at_millis.min(LAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        for (seconds, expected) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(age_seconds(-1.0), "0s");
        assert_eq!(age_seconds(f64::NAN), "0s");
        assert_eq!(age_since(u64::MAX), "0s");
    }

    #[test]
    fn durations_keep_three_digits_or_so() {
        for (given, expected) in
            [(0, "0µs"), (999, "999µs"), (1_234, "1.23ms"), (4_500_000, "4.50s")]
        {
            assert_eq!(micros(given), expected);
        }
    }

    #[test]
    fn times_are_utc_and_never_a_panic() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(1_732_108_800_123), "2024-11-20T13:20:00.123Z");
        assert_eq!(timestamp(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
