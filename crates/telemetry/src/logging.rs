use std::{
    fmt,
    io::{self, IsTerminal},
    str::FromStr,
};

use model::Plain;
use tracing::{Level, Subscriber, field::Field};
use tracing_subscriber::{
    field::MakeExt,
    fmt::{
        MakeWriter,
        format::{Writer, debug_fn},
    },
    util::SubscriberInitExt,
};

use crate::writer::{Events, start_queue};

/// How the daemon's log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Lines for people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Text that is not a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not `text` or `json`")]
pub struct InvalidFormat(String);

impl FromStr for Format {
    type Err = InvalidFormat;

    fn from_str(text: &str) -> Result<Self, InvalidFormat> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(InvalidFormat(text.into())),
        }
    }
}

/// Something in this process logs already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process logs already")]
pub struct AlreadyLogging;

/// Sends this process's log to standard error from now on: warnings and errors, with a verbosity of
/// 1 also what is worth knowing, from 2 on everything. Nobody who logs waits or fails, whatever
/// becomes of standard error.
pub fn start_logging(format: Format, verbosity: u8) -> Result<(), AlreadyLogging> {
    let is_terminal = io::stderr().is_terminal();
    let outcome = match format {
        Format::Text => text(verbosity, is_terminal, || Events).try_init(),
        Format::Json => json(verbosity, || Events).try_init(),
    };
    outcome.map_err(|_| AlreadyLogging)
}

/// The same for a daemon: a thread of its own writes, so that a reader that has stopped reading
/// stops nothing else. [`finish_logging`](crate::finish_logging) belongs at its end.
pub fn start_daemon_logging(format: Format, verbosity: u8) -> Result<(), AlreadyLogging> {
    start_queue();
    start_logging(format, verbosity)
}

fn level(verbosity: u8) -> Level {
    match verbosity {
        0 => Level::WARN,
        1 => Level::INFO,
        _ => Level::DEBUG,
    }
}

fn text<W>(verbosity: u8, is_terminal: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_max_level(level(verbosity))
        .with_writer(writer)
        // It would complain on standard error, and panic if that is what failed.
        .log_internal_errors(false)
        .with_target(false)
        .with_ansi(is_terminal)
        .fmt_fields(debug_fn(plain_field).delimited(" "))
        .finish()
}

/// Writes a field. Much of what is logged comes from functions, their names and their errors: an
/// event is one line whatever they say, and nothing in it moves the cursor of who reads the log.
fn plain_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = format!("{value:?}");
    match field.name() {
        "message" => write!(writer, "{}", Plain(&text)),
        name => write!(writer, "{name}={}", Plain(&text)),
    }
}

fn json<W>(verbosity: u8, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_max_level(level(verbosity))
        .with_writer(writer)
        // It would complain on standard error, and panic if that is what failed.
        .log_internal_errors(false)
        .with_target(false)
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .finish()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(log: impl FnOnce(Written)) -> String {
        let written = Written::default();
        log(written.clone());
        let bytes = written.0.lock().expect("no panic").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn json_is_one_object_a_line() {
        let lines = written(|written| {
            let subscriber = json(0, move || written.clone());
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(function = "hello", "could not\nserve");
                tracing::error!(status = 500, "failed");
            });
        });
        let objects: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[0]["level"], "WARN");
        assert_eq!(objects[0]["message"], "could not\nserve");
        assert_eq!(objects[0]["function"], "hello");
        assert!(objects[0]["timestamp"].is_string());
        assert_eq!(objects[1]["status"], 500);
    }

    #[test]
    fn what_others_say_is_one_line_without_commands() {
        let hostile = "x\x1b]0;y\x07\n2026-01-01T00:00:00Z  INFO forged \u{202e}\u{9b}2J";
        for is_terminal in [false, true] {
            let lines = written(|written| {
                let subscriber = text(0, is_terminal, move || written.clone());
                tracing::subscriber::with_default(subscriber, || {
                    tracing::warn!("{hostile}");
                    tracing::warn!(text = hostile, "a text");
                    tracing::warn!(shown = %hostile, "a display");
                    tracing::warn!(debugged = ?hostile, "a debug");
                    tracing::warn!(error = %io::Error::other(hostile), status = 500, "an error");
                });
            });
            assert_eq!(lines.lines().count(), 5, "{lines:?}");
            assert!(!lines.contains(['\x07', '\u{202e}', '\u{9b}']), "{lines:?}");
            assert!(!lines.contains("\x1b]"), "{lines:?}");
            assert!(is_terminal || !lines.contains('\x1b'), "{lines:?}");
            assert!(lines.contains("a display") && lines.contains("shown=x\\x1b]0;y"), "{lines}");
            assert!(lines.contains("status=500"), "{lines}");
        }
    }

    #[test]
    fn more_is_said_when_asked_for() {
        for (verbosity, expected) in [(0, 1), (1, 2), (2, 3), (9, 3)] {
            let lines = written(|written| {
                let subscriber = text(verbosity, false, move || written.clone());
                tracing::subscriber::with_default(subscriber, || {
                    tracing::warn!("one");
                    tracing::info!("two");
                    tracing::debug!("three");
                    tracing::trace!("never");
                });
            });
            assert_eq!(lines.lines().count(), expected, "{lines}");
        }
    }

    #[test]
    fn formats_have_names() {
        assert_eq!("text".parse(), Ok(Format::Text));
        assert_eq!("json".parse(), Ok(Format::Json));
        let error = "xml".parse::<Format>().expect_err("not a format");
        assert_eq!(error.to_string(), "`xml` is not `text` or `json`");
    }
}
