//! How the program ends: documented codes, errors that say what to do.

use std::{fmt, process::ExitCode};

use clap::{
    Command,
    error::{ContextKind, ContextValue},
};
use model::PlainLines;

use crate::{
    color::{self, Meaning},
    commands::is_closed_pipe,
};

/// What `--help` says about exit codes.
pub(crate) const HELP: &str = "\
Exit codes: 0 done · 1 failed, or a reply with a status of 400 or more · 64 wrong arguments or \
settings · 65 the function's source does not build or load · 66 no such function, file or folder · \
69 no daemon answers, or its machine lacks something (see `hearth doctor` and `hearth runtimes`) · \
77 a wrong token, or one that others can read · 130 interrupted";

/// Kinds of failure that scripts can tell apart (sysexits.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Arguments or settings are wrong.
    Usage = 64,
    /// The function's source does not build or load.
    Source = 65,
    /// There is no such function, file or folder.
    NoInput = 66,
    /// No daemon answers, or the machine lacks something.
    Unavailable = 69,
    /// The daemon does not accept the token.
    NoPermission = 77,
    /// A signal ended what was under way (as shells count: 128 and SIGINT).
    Interrupted = 130,
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
pub(crate) fn usage(mut error: clap::Error, mut program: Command) -> ExitCode {
    // Clap counts what the environment says among the arguments that were used, and names those in
    // the usage: it would look as if `--url` had to be given.
    if error.get(ContextKind::Usage).is_some() {
        let usage = command_of_line(&mut program).render_usage();
        error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    }
    // A closed pipe behind `--help` is no reason to fail.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(Failure::Usage as u8) } else { ExitCode::SUCCESS }
}

/// The command that the command line names, or the whole program.
fn command_of_line(program: &mut Command) -> &mut Command {
    program.build();
    let words = std::env::args().skip(1);
    let name = words.into_iter().find(|word| program.find_subcommand(word).is_some());
    match name {
        Some(name) => program.find_subcommand_mut(&name).expect("it was just found"),
        None => program,
    }
}

/// Says on standard error what went wrong. Much of it comes from functions, builds and daemons, so
/// it moves no cursor, and no line of it can pass for another message.
pub(crate) fn complain(text: &str) {
    let (name, text) = ("hearth:", PlainLines { text, mark: MARK });
    let name =
        if color::is_on(&std::io::stderr()) { Meaning::Bad.paint(name) } else { name.into() };
    // Nobody may be there to read it.
    eprintln!("{name} {text}");
}

/// Stands before lines that somebody else wrote.
pub(crate) const MARK: &str = "  | ";

/// Prints an error with its causes and picks the code. A closed pipe behind a command is no failure.
pub(crate) fn report(outcome: anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    if is_closed_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    complain(&format!("{error:#}"));
    match error.downcast_ref::<Fatal>() {
        Some(fatal) => ExitCode::from(fatal.failure as u8),
        None => ExitCode::FAILURE,
    }
}
