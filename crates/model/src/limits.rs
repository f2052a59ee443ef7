use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What one instance may use. An adapter enforces what its engine can, and says what it cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of all its processes together, page cache and `/tmp` included.
    pub memory_bytes: u64,
    /// Processor time, in thousandths of one processor.
    pub cpus_milli: u32,
    /// Processes and threads.
    pub pids: u32,
    /// Size of what it may write: `/tmp`, `/dev/shm` and its changes to the function directory.
    pub scratch_bytes: u64,
    /// Files and directories it may create there.
    pub scratch_inodes: u64,
    /// Descriptors that one of its processes may have open.
    pub open_files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self::with_memory(512 << 20)
    }
}

impl Limits {
    /// The default limits of an instance with this much memory: half of it may be scratch files.
    pub fn with_memory(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            cpus_milli: 1000,
            pids: 256,
            scratch_bytes: memory_bytes / 2,
            scratch_inodes: 65_536,
            open_files: 8_192,
        }
    }
}

/// What a machine has: no instance can have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Its memory.
    pub memory_bytes: u64,
    /// Its processors, in thousandths of one.
    pub cpus_milli: u32,
}

/// What an instance can reach over the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Its own loopback interface only.
    None,
    /// Public addresses through NAT. Not the host, private ranges, link-local ranges, other instances.
    #[default]
    Egress,
    /// The host's network, without any separation.
    Host,
}

impl FromStr for Network {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        match text {
            "none" => Ok(Self::None),
            "egress" => Ok(Self::Egress),
            "host" => Ok(Self::Host),
            _ => Err(InvalidQuantity::new(text, "`egress`, `none` or `host`")),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Egress => "egress",
            Self::Host => "host",
        })
    }
}

/// Text that is not the quantity it was offered as.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct InvalidQuantity {
    text: String,
    expected: &'static str,
}

impl InvalidQuantity {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.into(), expected }
    }
}

/// Reads a size in bytes: a whole number with `KiB`, `MiB` or `GiB` behind it, or none for bytes.
/// `K`, `M` and `G` in either case mean the same powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, InvalidQuantity> {
    let invalid =
        || InvalidQuantity::new(text, "a size such as `512MiB`, `512M`, `2GiB` or `1048576`");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "KiB" | "K" | "k" => 10,
        "MiB" | "M" | "m" => 20,
        "GiB" | "G" | "g" => 30,
        _ => return Err(invalid()),
    };
    let number: u64 = digits.parse().map_err(|_| invalid())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(invalid)
}

/// `39.1MiB`, or `812B`: one decimal, rounded down.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    // Tenths in whole numbers, so that no number is rounded into one that does not exist.
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match tenths % 10 {
        0 => format!("{}{}", tenths / 10, UNITS[unit]),
        rest => format!("{}.{rest}{}", tenths / 10, UNITS[unit]),
    }
}

/// `2`, `0.5` or `0.125`: processors, from thousandths of one.
pub fn format_cpus(milli: u32) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Reads a share of processors, such as `0.5` or `2`, as thousandths of one. At least 0.01.
pub fn parse_cpus_milli(text: &str) -> Result<u32, InvalidQuantity> {
    let invalid =
        || InvalidQuantity::new(text, "a number of processors from 0.01 to 1024, such as `0.5`");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_plain = |part: &str| {
        !part.is_empty() && part.len() <= 4 && part.bytes().all(|c| c.is_ascii_digit())
    };
    if !is_plain(whole) || !is_plain(fraction) || fraction.len() > 3 {
        return Err(invalid());
    }
    let whole: u32 = whole.parse().map_err(|_| invalid())?;
    let fraction: u32 = format!("{fraction:0<3}").parse().map_err(|_| invalid())?;
    let milli = whole * 1000 + fraction;
    if (10..=1_024_000).contains(&milli) { Ok(milli) } else { Err(invalid()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_carry_their_unit() {
        for (text, expected) in [
            ("512MiB", Some(512 << 20)),
            ("1GiB", Some(1 << 30)),
            ("64KiB", Some(65_536)),
            ("7", Some(7)),
            ("256M", Some(256 << 20)),
            ("512m", Some(512 << 20)),
            ("1G", Some(1 << 30)),
            ("64k", Some(65_536)),
            ("1mib", None),
            ("0", None),     // a limit of nothing is a mistake
            ("512MB", None), // ambiguous: a million or 2^20?
            ("1.5GiB", None),
            ("", None),
            ("99999999999GiB", None), // does not fit
        ] {
            assert_eq!(parse_size(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn sizes_have_one_decimal() {
        for (bytes, expected) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KiB"),
            (1536, "1.5KiB"),
            (40_999_999, "39.1MiB"),
            ((1 << 20) - 1, "1023.9KiB"),
            (512 << 20, "512MiB"),
            (u64::MAX, "16777215.9TiB"),
        ] {
            assert_eq!(format_size(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn processors_are_written_as_they_are_read() {
        for text in ["1", "0.5", "2.25", "0.01", "100"] {
            assert_eq!(format_cpus(parse_cpus_milli(text).expect("right")), text);
        }
    }

    #[test]
    fn processors_may_be_fractions() {
        for (text, expected) in [
            ("1", Some(1000)),
            ("0.5", Some(500)),
            ("2.25", Some(2250)),
            ("0.01", Some(10)),
            ("0.001", None), // too little to make progress
            ("0", None),
            ("-1", None),
            ("1.2345", None),
            ("1e3", None),
            (".5", None),
        ] {
            assert_eq!(parse_cpus_milli(text).ok(), expected, "{text:?}");
        }
    }
}
