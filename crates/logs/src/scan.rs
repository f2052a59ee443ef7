//! What is in a file of which the index does not tell the truth.

use std::{fs, io, os::unix::fs::FileExt, path::Path};

use catalog::Segment;
use model::FunctionName;
use serde::Deserialize;

#[derive(Deserialize)]
struct Stamp {
    at: u64,
}

/// Looks into a file, and cuts off a last line that was not written to its end. None, and no file
/// any more, if not a single line is left.
pub(crate) fn segment(
    path: &Path,
    function: &FunctionName,
    number: u64,
) -> io::Result<Option<Segment>> {
    let bytes = fs::read(path)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = &bytes[..whole];
    if whole < bytes.len() {
        let file = fs::OpenOptions::new().write(true).open(path)?;
        file.set_len(u64::try_from(whole).unwrap_or(u64::MAX))?;
    }
    let stamps = || lines.split(|byte| *byte == b'\n').filter_map(stamp);
    let (Some(first_at), Some(last_at)) = (stamps().next(), last_stamp(lines)) else {
        fs::remove_file(path)?;
        return Ok(None);
    };
    Ok(Some(Segment {
        function: function.clone(),
        number,
        first_at,
        last_at,
        bytes: u64::try_from(whole).unwrap_or(u64::MAX),
        lines: u64::try_from(lines.iter().filter(|byte| **byte == b'\n').count()).unwrap_or(0),
    }))
}

fn stamp(line: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Stamp>(line).ok().map(|stamp| stamp.at)
}

fn last_stamp(lines: &[u8]) -> Option<u64> {
    lines.rsplit(|byte| *byte == b'\n').find_map(stamp)
}

/// Whether a file has the size that the index says, and ends with a whole line.
pub(crate) fn is_as_indexed(path: &Path, segment: &Segment) -> io::Result<bool> {
    let file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    if length != segment.bytes || length == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.read_exact_at(&mut last, length - 1)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_cut_off() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x");
        let name: FunctionName = "hello".parse().expect("a name");
        let two = "{\"at\":5}\n{\"at\":7}\n";
        for (content, expected) in [
            (two.to_owned(), Some((5, 7, 2))),
            (format!("{two}{{\"at\":9"), Some((5, 7, 2))),
            (format!("\0\0\0\n{two}not JSON\n"), Some((5, 7, 4))), // as after a power cut
            ("{\"at\":9".to_owned(), None),
            (String::new(), None),
        ] {
            fs::write(&path, &content).expect("written");
            let found = segment(&path, &name, 3).expect("scanned");
            let told = found.as_ref().map(|found| (found.first_at, found.last_at, found.lines));
            assert_eq!(told, expected, "{content:?}");
            assert_eq!(path.exists(), found.is_some(), "{content:?}");
            if let Some(found) = found {
                assert!(is_as_indexed(&path, &found).expect("compared"), "{content:?}");
            }
        }
    }
}
