use model::Plain;

/// A body that comes in pieces, for a terminal: text with its control characters shown.
#[derive(Default)]
pub(super) struct Shown {
    /// The beginning of a character whose other bytes have not come yet.
    unfinished: Vec<u8>,
    /// Whether something was shown, and its line has not ended.
    is_within_line: bool,
}

impl Shown {
    /// What can be shown with this piece.
    pub(super) fn add(&mut self, piece: &[u8]) -> String {
        self.unfinished.extend_from_slice(piece);
        let rest = self.unfinished.split_off(whole_characters(&self.unfinished));
        let whole = std::mem::replace(&mut self.unfinished, rest);
        self.show(&whole)
    }

    /// What is left, and a line end where the body has none: the prompt begins in a line of its own.
    pub(super) fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.unfinished);
        let mut text = self.show(&rest);
        if std::mem::take(&mut self.is_within_line) {
            text.push('\n');
        }
        text
    }

    fn show(&mut self, bytes: &[u8]) -> String {
        let text = Plain::bytes(bytes);
        if !text.is_empty() {
            self.is_within_line = !text.ends_with('\n');
        }
        text
    }
}

/// How many bytes there are before a character that has only begun.
fn whole_characters(bytes: &[u8]) -> usize {
    // The longest one takes four bytes, so the last three may be the beginning of one.
    let start = bytes.len().saturating_sub(3);
    (start..bytes.len())
        .find(|at| match std::str::from_utf8(&bytes[*at..]) {
            Ok(_) => false,
            Err(error) => error.valid_up_to() == 0 && error.error_len().is_none(),
        })
        .unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_may_end_within_a_character() {
        let body = "ä\u{1b}[1m👩 end".as_bytes();
        for size in 1..=body.len() {
            let mut shown = Shown::default();
            let mut text: String = body.chunks(size).map(|piece| shown.add(piece)).collect();
            text += &shown.finish();
            assert_eq!(text, "ä\\x1b[1m👩 end\n", "in pieces of {size}");
        }
    }

    #[test]
    fn a_line_end_follows_only_where_there_is_none() {
        for (body, expected) in [
            (&b""[..], ""),
            (b"a", "a\n"),
            (b"a\n", "a\n"),
            (b"a\xf0\x9f", "a\\xf0\\x9f\n"),
            (b"\xff\xe4", "\\xff\\xe4\n"),
        ] {
            let mut shown = Shown::default();
            assert_eq!(shown.add(body) + &shown.finish(), expected, "{body:?}");
        }
    }
}
