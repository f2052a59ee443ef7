use std::fmt::{self, Write};

/// Text that somebody else wrote, made safe for a terminal and for a log that is read line by line.
///
/// What moves a cursor, changes colours, answers in the user's name or reverses the order of letters
/// is shown as an escape such as `\x1b`, `\n` or `\u{202e}`; all other text stays as it is. Tabs
/// stay, too. So there is one line of output for one text, whatever the text says.
///
/// Every text that crosses from a function, a build or a daemon to a person goes through here or
/// through [`PlainLines`]. It cannot be turned back: a text may contain the four letters `\x1b`
/// itself. Who needs the exact text asks for JSON or for the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a>(pub &'a str);

/// Text of several lines, each as [`Plain`] shows it, and each but the first behind a mark: no line
/// of the text can pass for one of ours.
#[derive(Clone, Copy, Debug)]
pub struct PlainLines<'a> {
    /// The text. A line end at its end makes no further line.
    pub text: &'a str,
    /// What stands before each line but the first.
    pub mark: &'a str,
}

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(is_harmful) {
            f.write_str(&rest[..at])?;
            let harmful = rest[at..].chars().next().expect("it was just found");
            escape(harmful, f)?;
            rest = &rest[at + harmful.len_utf8()..];
        }
        f.write_str(rest)
    }
}

impl fmt::Display for PlainLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `lines` takes `\r\n` for a line end, too.
        for (number, line) in self.text.lines().enumerate() {
            if number > 0 {
                f.write_char('\n')?;
                f.write_str(self.mark)?;
            }
            Plain(line).fmt(f)?;
        }
        Ok(())
    }
}

impl<'a> Plain<'a> {
    /// The bytes as text; those that are no UTF-8 as escapes such as `\xff`.
    pub fn bytes(bytes: &'a [u8]) -> String {
        let mut text = String::new();
        for chunk in bytes.utf8_chunks() {
            for line in chunk.valid().split_inclusive('\n') {
                let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
                let _ = write!(text, "{}{end}", Plain(line));
            }
            for byte in chunk.invalid() {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
        text
    }
}

/// Control characters (Unicode category Cc) but tabs; characters that change the direction of text
/// (Unicode standard annex 9, section 2); and separators that some programs take for line ends.
fn is_harmful(c: char) -> bool {
    let is_direction = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    (c.is_control() && c != '\t') || is_direction || matches!(c, '\u{2028}' | '\u{2029}')
}

fn escape(c: char, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match c {
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        c if u32::from(c) < 0x100 => write!(f, "\\x{:02x}", u32::from(c)),
        c => write!(f, "\\u{{{:x}}}", u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_terminal_is_shown_and_not_done() {
        for (text, expected) in [
            ("plain: größe 日本 👩‍💻 \\x1b\tend", "plain: größe 日本 👩‍💻 \\x1b\tend"),
            ("\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),
            ("\u{9b}2J", "\\x9b2J"), // the one-character form of ESC [
            ("a\nb\r\0\x7f", "a\\nb\\r\\x00\\x7f"),
            ("admin\u{202e}nimda\u{2066}x", "admin\\u{202e}nimda\\u{2066}x"),
            ("a\u{2028}b\u{85}", "a\\u{2028}b\\x85"),
            ("", ""),
        ] {
            assert_eq!(Plain(text).to_string(), expected, "{text:?}");
        }
    }

    #[test]
    fn further_lines_are_marked() {
        let lines = |text| PlainLines { text, mark: "| " }.to_string();
        assert_eq!(lines("one"), "one");
        assert_eq!(lines("one\ntwo\r\n\nfour\n"), "one\n| two\n| \n| four");
        assert_eq!(lines("\nhearth: all is well"), "\n| hearth: all is well");
        assert_eq!(lines("a\rb"), "a\\rb", "a lone return overwrites the line");
    }

    #[test]
    fn bytes_keep_their_lines() {
        assert_eq!(Plain::bytes(b"a\n\x1b[m\xff\xfe\xc3\xa4\n"), "a\n\\x1b[m\\xff\\xfeä\n");
    }
}
