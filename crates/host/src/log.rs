//! Where the log of a call goes (specification, 3).

use std::{
    fs,
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use model::{LogId, PlainLines};
use protocol::{CallLog, LogStream};
use rustix::fs::{FileType, Mode, OFlags};
use tracing::warn;

/// The most bytes of one log file of one call. Who reads them stops there, too (executor).
pub const MAX_LOG_FILE: u64 = 5 << 20;

const NOTICE: &str =
    "Native logs detected. Use context.log() or context.error() for better experience.\n";
const CUT: &str = "... Log cut: a call may write 5 MiB.\n";

/// Where logs of calls go.
#[derive(Clone, Debug)]
pub enum Logs {
    /// Two files a call.
    Directory(LogDirectory),
    /// Standard error, for people.
    Terminal,
    /// Nowhere.
    Discarded,
}

impl Logs {
    /// Opens the log of a call.
    pub(crate) fn open(&self, id: &LogId) -> Arc<dyn CallLog> {
        match self {
            Self::Directory(directory) => Arc::new(FileLog::create(directory.clone(), id)),
            Self::Terminal => Arc::new(TerminalLog),
            Self::Discarded => Arc::new(Discarded),
        }
    }
}

/// A directory with `<id>_logs.log` and `<id>_errors.log`.
#[derive(Clone, Debug)]
pub struct LogDirectory(Arc<OwnedFd>);

impl LogDirectory {
    /// Opens the directory; makes it if it is missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self(Arc::new(rustix::fs::open(path, flags, Mode::empty())?)))
    }

    /// Makes an empty file unless there is one. Cheaper than opening: most calls log nothing.
    fn create(&self, name: &str) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o644);
        match rustix::fs::mknodat(&*self.0, name, FileType::RegularFile, mode, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn append(&self, name: &str) -> io::Result<fs::File> {
        // A link in the place of a log file could lead anywhere.
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
        let flags = flags | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&*self.0, name, flags, Mode::from_raw_mode(0o644))?;
        Ok(file.into())
    }
}

/// A call's two files. They exist from the start, and are opened when something is written.
struct FileLog {
    directory: LogDirectory,
    id: LogId,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    logs: LogFile,
    errors: LogFile,
    noticed: bool,
}

#[derive(Default)]
struct LogFile {
    file: Option<fs::File>,
    written: u64,
    is_over: bool,
}

impl FileLog {
    fn create(directory: LogDirectory, id: &LogId) -> Self {
        for kind in ["logs", "errors"] {
            if let Err(error) = directory.create(&file_name(id, kind)) {
                warn!(log = %id, %error, "could not make a log file");
            }
        }
        Self { directory, id: id.clone(), files: Mutex::default() }
    }
}

fn file_name(id: &LogId, kind: &str) -> String {
    format!("{id}_{kind}.log")
}

impl CallLog for FileLog {
    /// Log trouble is not the call's trouble: it is reported and the call goes on.
    fn write(&self, stream: LogStream, text: &str) {
        let mut files = self.files.lock().expect("no panic while the lock is held");
        let Files { logs, errors, noticed } = &mut *files;
        let outcome = match stream {
            LogStream::Log => logs.append(&self.directory, &self.id, "logs", &[text, "\n"]),
            LogStream::Error => errors.append(&self.directory, &self.id, "errors", &[text, "\n"]),
            LogStream::NativeOut | LogStream::NativeErr => {
                let notice = if std::mem::replace(noticed, true) { "" } else { NOTICE };
                logs.append(&self.directory, &self.id, "logs", &[notice, text])
            }
        };
        if let Err(error) = outcome {
            warn!(log = %self.id, %error, "could not write to a log file");
        }
    }
}

impl LogFile {
    fn append(
        &mut self,
        directory: &LogDirectory,
        id: &LogId,
        kind: &str,
        texts: &[&str],
    ) -> io::Result<()> {
        if self.is_over {
            return Ok(());
        }
        let mut bytes = texts.concat();
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.written.saturating_add(length) > MAX_LOG_FILE {
            self.is_over = true;
            CUT.clone_into(&mut bytes);
        }
        self.written = self.written.saturating_add(length);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(directory.append(&file_name(id, kind))?),
        };
        // One write an entry: a reader, or another call with the same id, sees whole entries.
        file.write_all(bytes.as_bytes())
    }
}

/// For people who run a function in a terminal: control characters are shown, and no line that a
/// function writes can pass for one of ours.
struct TerminalLog;

/// Stands before further lines of an entry.
const FURTHER: &str = "  | ";

impl CallLog for TerminalLog {
    fn write(&self, stream: LogStream, text: &str) {
        let shown = on_terminal(stream, text);
        // A closed terminal is no reason to stop serving.
        let _ = io::stderr().lock().write_all(shown.as_bytes());
    }
}

/// Whole lines. Native output comes in pieces of one or more; what does not end yet is ended.
fn on_terminal(stream: LogStream, text: &str) -> String {
    let name = match stream {
        LogStream::Log => "log",
        LogStream::Error => "error",
        LogStream::NativeOut => "stdout",
        LogStream::NativeErr => "stderr",
    };
    format!("{name}: {}\n", PlainLines { text, mark: FURTHER })
}

struct Discarded;

impl CallLog for Discarded {
    fn write(&self, _: LogStream, _: &str) {}
}

/// Makes log ids of 20 characters: 8 hexadecimal digits of seconds, 5 of the part of the second,
/// 7 that are different for each call (specification, 3.2).
#[derive(Debug)]
pub(crate) struct LogIds {
    seed: u64,
    issued: AtomicU64,
}

impl LogIds {
    pub(crate) fn new() -> Self {
        let mut seed = [0; 8];
        // Without randomness ids are still unique within this process.
        let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::NONBLOCK);
        Self { seed: u64::from_ne_bytes(seed), issued: AtomicU64::new(0) }
    }

    pub(crate) fn next(&self) -> LogId {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // An odd factor permutes the 2^28 values, so that no two calls in a row share one.
        let issued = self.issued.fetch_add(1, Ordering::Relaxed);
        let distinct = self.seed.wrapping_add(issued.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let id = format!(
            "{:08x}{:05x}{:07x}",
            now.as_secs() & 0xffff_ffff,
            now.subsec_micros(),
            distinct & 0x0fff_ffff
        );
        id.parse().expect("hexadecimal digits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_on_a_terminal_passes_for_another() {
        for (stream, text, expected) in [
            (LogStream::Log, "one", "log: one\n"),
            (LogStream::Log, "one\nerror: two", "log: one\n  | error: two\n"),
            (LogStream::Error, "\x1b[2J\x07", "error: \\x1b[2J\\x07\n"),
            (LogStream::NativeOut, "a\nlog: b\n", "stdout: a\n  | log: b\n"),
            (LogStream::NativeErr, "warning\n", "stderr: warning\n"),
        ] {
            assert_eq!(on_terminal(stream, text), expected, "{text:?}");
        }
    }
}
