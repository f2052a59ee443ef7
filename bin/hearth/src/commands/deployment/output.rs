use std::io::{self, Write};

use model::Plain;

use crate::exit::MARK;

/// A line that does not end is broken here.
const MAX_LINE: usize = 16 << 10;

/// What a build prints, which comes in pieces that are not whole lines. Each line is marked as the
/// build's, so that none can pass for a message of Hearth's. Empty ones are left out.
#[derive(Default)]
pub(super) struct BuildOutput {
    unfinished: String,
}

impl BuildOutput {
    /// The lines that are complete with this piece, for a terminal.
    pub(super) fn add(&mut self, piece: &str) -> String {
        self.unfinished.push_str(piece);
        if self.unfinished.len() > MAX_LINE {
            self.unfinished.push('\n');
        }
        // What draws a progress bar begins its line anew with a carriage return.
        let end = self.unfinished.rfind(['\n', '\r']).map_or(0, |end| end + 1);
        marked(&self.unfinished.drain(..end).collect::<String>())
    }

    /// The last line, which may have no end.
    pub(super) fn finish(&mut self) -> String {
        marked(&std::mem::take(&mut self.unfinished))
    }
}

fn marked(text: &str) -> String {
    let lines = text.split(['\n', '\r']).filter(|line| !line.is_empty());
    lines.map(|line| format!("{MARK}{}\n", Plain(line))).collect()
}

/// Prints to standard error. Nobody may be there to read it; the deployment goes on.
pub(super) fn print(lines: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(lines.as_bytes()).and_then(|()| stderr.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_marked_whatever_pieces_they_come_in() {
        let mut output = BuildOutput::default();
        assert_eq!(output.add("added 3 pack"), "");
        assert_eq!(
            output.add("ages\r\n\nhearth: all is well\n10%\r2"),
            concat!("  | added 3 packages\n", "  | hearth: all is well\n", "  | 10%\n",)
        );
        assert_eq!(output.add("0%\r\x1b[2J"), "  | 20%\n");
        assert_eq!(output.finish(), "  | \\x1b[2J\n");
        assert_eq!(output.finish(), "");
        assert_eq!(output.add(&"x".repeat(MAX_LINE + 1)).len(), MAX_LINE + 1 + "  | \n".len());
    }
}
