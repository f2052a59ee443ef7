//! Heads that say in two ways where the body ends.
//!
//! A request with both `content-length` and `transfer-encoding` is how one request is smuggled
//! behind another: two programs in a row believe different headers (RFC 9112, 6.1). The HTTP
//! library believes `transfer-encoding`, hides the other one and closes the connection afterwards,
//! which is safe; refusing it before anything runs is better. So the bytes of a head are looked at
//! before the library takes them.
//!
//! Only the first of several requests that arrive together is looked at: where the second begins
//! is the library's decision, and its way out holds for that one.

use memchr::memchr;

const LENGTH: &[u8] = b"content-length:";
const ENCODING: &[u8] = b"transfer-encoding:";
/// Enough of a line to recognise either.
const ENOUGH: usize = ENCODING.len();

/// Follows the lines of a head, in whatever pieces they come.
pub(crate) struct HeadWatch {
    is_watching: bool,
    has_begun: bool,
    has_length: bool,
    has_encoding: bool,
    line: [u8; ENOUGH],
    length: usize,
}

impl HeadWatch {
    pub(crate) fn new() -> Self {
        Self {
            is_watching: true,
            has_begun: false,
            has_length: false,
            has_encoding: false,
            line: [0; ENOUGH],
            length: 0,
        }
    }

    /// What comes next is a head.
    pub(crate) fn start(&mut self) {
        *self = Self::new();
    }

    /// Takes the next bytes; whether the head is known to be ambiguous now.
    pub(crate) fn is_ambiguous_after(&mut self, mut bytes: &[u8]) -> bool {
        while self.is_watching {
            let end = memchr(b'\n', bytes);
            self.extend(&bytes[..end.unwrap_or(bytes.len())]);
            let Some(end) = end else { return false };
            self.end_line();
            bytes = &bytes[end + 1..];
        }
        self.has_length && self.has_encoding
    }

    fn extend(&mut self, part: &[u8]) {
        let room = &mut self.line[self.length..];
        let kept = part.len().min(room.len());
        room[..kept].copy_from_slice(&part[..kept]);
        self.length += kept;
    }

    fn end_line(&mut self) {
        let line = &self.line[..self.length];
        let is = |name: &[u8]| line.get(..name.len()).is_some_and(|l| l.eq_ignore_ascii_case(name));
        if matches!(line, b"" | b"\r") {
            // Empty lines before a request are not its end (RFC 9112, 2.2).
            self.is_watching = !self.has_begun;
        } else {
            self.has_length |= is(LENGTH);
            self.has_encoding |= is(ENCODING);
            self.has_begun = true;
        }
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [(&str, bool); 9] = [
        ("POST / HTTP/1.1\r\nhost: a\r\n\r\n", false),
        ("POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc", false),
        ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nContent-Length: 3\r\nTRANSFER-encoding: chunked\r\n\r\n", true),
        ("\r\n\nPOST / HTTP/1.1\ntransfer-encoding:x\ncontent-length:\n\n", true),
        // A body may look like headers.
        ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\ncontent-length: 4\r\n", false),
        // Longer names are other names.
        ("POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encodings: chunked\r\n\r\n", false),
        ("POST / HTTP/1.1\r\ncontent-length: 3\r\nx: transfer-encoding: chunked\r\n\r\n", false),
        ("POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n", false),
    ];

    #[test]
    fn a_head_with_both_is_ambiguous() {
        for (bytes, expected) in TABLE {
            let mut watch = HeadWatch::new();
            assert_eq!(watch.is_ambiguous_after(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn it_does_not_matter_in_which_pieces_a_head_comes() {
        for (bytes, expected) in TABLE {
            for size in 1..bytes.len() {
                let mut watch = HeadWatch::new();
                let pieces = bytes.as_bytes().chunks(size);
                let outcomes = pieces.map(|piece| watch.is_ambiguous_after(piece));
                assert_eq!(outcomes.last(), Some(expected), "{bytes:?} by {size}");
            }
        }
    }

    #[test]
    fn each_head_is_looked_at_anew() {
        let mut watch = HeadWatch::new();
        assert!(!watch.is_ambiguous_after(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"));
        watch.start();
        assert!(!watch.is_ambiguous_after(b"GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"));
    }
}
