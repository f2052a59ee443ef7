use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::color;

/// Standard output. What `println!` does when nobody reads it any more is panic; this says so in an
/// error that ends the program in peace.
pub(crate) struct Out(io::Stdout);

/// Whoever read our output has seen enough.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
struct ClosedPipe;

impl Out {
    pub(crate) fn new() -> Self {
        Self(io::stdout())
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.0.is_terminal()
    }

    /// Whether what is printed has colours.
    pub(crate) fn is_colored(&self) -> bool {
        color::is_on(&self.0)
    }

    /// Columns of the terminal; none if it is not one.
    pub(crate) fn width(&self) -> Option<u16> {
        self.size().map(|(columns, _)| columns)
    }

    /// Columns and rows of the terminal.
    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        if !self.is_terminal() {
            return None;
        }
        let size = rustix::termios::tcgetwinsize(&self.0).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    }

    /// One line of JSON.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        writeln!(self, "{}", serde_json::to_string(value)?)?;
        Ok(())
    }

    /// JSON that people read, too.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        writeln!(self, "{}", serde_json::to_string_pretty(value)?)?;
        Ok(())
    }
}

impl Write for Out {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.write(buffer).map_err(closed)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(closed)
    }
}

fn closed(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, ClosedPipe),
        _ => error,
    }
}

/// Whether an error means nothing but that. A connection to a daemon that broke is another thing.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
        .is_some_and(|inner| inner.is::<ClosedPipe>())
}
