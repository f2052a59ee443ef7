//! How the program ends: documented codes, errors that say what to do.

use std::{fmt, process::ExitCode};

/// What `--help` says about exit codes.
pub(crate) const HELP: &str = "\
Exit codes: 0 done · 1 failed, or a reply with a status of 400 or more · 64 wrong arguments or \
settings · 65 the function's source does not build or load · 66 no such function or file · 69 no \
daemon answers, or this machine lacks something (see `hearth doctor` and `hearth runtimes`) · 77 a \
wrong token";

/// Kinds of failure that scripts can tell apart (sysexits.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Arguments or settings are wrong.
    Usage = 64,
    /// The function's source does not build or load.
    Source = 65,
    /// There is no such function, or file.
    NoInput = 66,
    /// No daemon answers, or the machine lacks something.
    Unavailable = 69,
    /// The daemon does not accept the token.
    NoPermission = 77,
}

/// An error that ends the program with a code of its own.
#[derive(Debug)]
pub(crate) struct Fatal {
    failure: Failure,
    message: String,
}

impl Fatal {
    pub(crate) fn new(failure: Failure, message: impl Into<String>) -> Self {
        Self { failure, message: message.into() }
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fatal {}

/// Prints what clap has to say; help is not a mistake.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe behind `--help` is no reason to fail.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(Failure::Usage as u8) } else { ExitCode::SUCCESS }
}

/// Prints an error with its causes and picks the code.
pub(crate) fn report(outcome: anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    eprintln!("hearth: {error:#}");
    match error.downcast_ref::<Fatal>() {
        Some(fatal) => ExitCode::from(fatal.failure as u8),
        None => ExitCode::FAILURE,
    }
}
