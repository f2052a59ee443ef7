//! Cuts what is written into lines.

/// The most bytes of a line; longer ones become several.
pub(crate) const MAX_LINE: usize = 16 << 10;

/// About how many bytes a line takes in a file beside its text.
const BESIDE_TEXT: usize = 100;

/// About how many bytes a text takes in a file.
pub(crate) fn stored_bytes(text: &str) -> usize {
    let ends = text.bytes().filter(|byte| *byte == b'\n').count();
    text.len() + ends.max(1) * BESIDE_TEXT
}

/// The longest start of a text that takes so many bytes in a file, about: the first line may have
/// all of them for its text.
pub(crate) fn fitting(text: &str, bytes: usize) -> &str {
    let (mut room, mut end) = (bytes.saturating_add(BESIDE_TEXT), 0);
    for line in text.split_inclusive('\n') {
        room = room.saturating_sub(BESIDE_TEXT);
        if line.len() > room {
            return &text[..text.floor_char_boundary(end + room)];
        }
        room -= line.len();
        end += line.len();
    }
    text
}

/// Output that comes in pieces, whose last line has not ended yet.
#[derive(Default)]
pub(crate) struct Unfinished(String);

impl Unfinished {
    /// Adds a piece, and passes on the lines that are complete by it, without their ends.
    pub(crate) fn add(&mut self, piece: &str, mut line: impl FnMut(&str)) {
        let mut rest = piece;
        while let Some((head, tail)) = rest.split_once('\n') {
            if self.0.is_empty() {
                pieces(without_return(head), &mut line);
            } else {
                self.0.push_str(head);
                pieces(without_return(&self.0), &mut line);
                self.0.clear();
            }
            rest = tail;
        }
        self.0.push_str(rest);
        while self.0.len() > MAX_LINE {
            let end = self.0.floor_char_boundary(MAX_LINE);
            line(&self.0[..end]);
            self.0.drain(..end);
        }
    }

    /// Passes on a last line that has no end, and forgets it.
    pub(crate) fn finish(&mut self, mut line: impl FnMut(&str)) {
        if !self.0.is_empty() {
            line(without_return(&std::mem::take(&mut self.0)));
        }
    }
}

/// Passes on a text in pieces that are no longer than a line may be; an empty one, too.
pub(crate) fn pieces(mut text: &str, mut piece: impl FnMut(&str)) {
    while text.len() > MAX_LINE {
        let (head, tail) = text.split_at(text.floor_char_boundary(MAX_LINE));
        piece(head);
        text = tail;
    }
    piece(text);
}

fn without_return(line: &str) -> &str {
    line.strip_suffix('\r').unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_counted_as_it_is_stored() {
        for (text, bytes, expected) in [
            ("one", 3, "one"),
            ("one", 2, "on"),
            ("one", 0, ""),
            ("", 0, ""),
            ("one\ntwo", 107, "one\ntwo"),
            ("one\ntwo", 106, "one\ntw"),
            ("one\ntwo", 50, "one\n"),
            ("\n\n\n\n", 102, "\n\n"),
            ("xä", 2, "x"), // never half a character
        ] {
            let fits = fitting(text, bytes);
            assert_eq!(fits, expected, "{text:?} in {bytes}");
        }
    }

    #[test]
    fn pieces_become_lines_wherever_they_were_cut() {
        for (written, expected) in [
            (&["one\n"][..], &["one"][..]),
            (&["o", "n", "e\ntwo", "\n"], &["one", "two"]),
            (&["one\r\ntwo\r", "\n"], &["one", "two"]),
            (&["\n\n"], &["", ""]),
            (&["no end"], &["no end"]),
            (&["no end\r"], &["no end"]),
            (&[], &[]),
        ] {
            let (mut unfinished, mut lines) = (Unfinished::default(), Vec::new());
            for piece in written {
                unfinished.add(piece, |line| lines.push(line.to_owned()));
            }
            unfinished.finish(|line| lines.push(line.to_owned()));
            assert_eq!(lines, expected, "{written:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_cut_between_characters() {
        let text = "ä".repeat(MAX_LINE);
        for whole in [text.clone(), format!("x{text}"), format!("x{text}\n")] {
            let (mut unfinished, mut lines) = (Unfinished::default(), Vec::new());
            unfinished.add(&whole, |line| lines.push(line.to_owned()));
            assert!(unfinished.0.len() <= MAX_LINE);
            unfinished.finish(|line| lines.push(line.to_owned()));
            assert!(lines.iter().all(|line| line.len() <= MAX_LINE));
            assert_eq!(lines.concat(), whole.trim_end());
        }
    }
}
