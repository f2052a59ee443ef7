//! The commands that speak with a daemon: what users type all day.
//!
//! Each has its arguments, asks one or two questions of the [`client::Client`], and prints the
//! answers: tables for people, JSON with the types of the crate `api` for scripts. Results go to
//! standard output and everything else to standard error.

mod backup;
mod completions;
mod connection;
mod deploy;
mod deployment;
mod env_file;
mod format;
mod init;
mod invoke;
mod logs;
mod ls;
mod man;
mod out;
mod progress;
mod ps;
mod rm;
mod set;
mod settings;
mod show;
mod table;
mod top;

use std::io::Write;

use clap::{error::ErrorKind, parser::ValueSource};
use client::ClientError;
pub(crate) use completions::answer as answer_shell;
pub(crate) use connection::Connection;
use connection::DataDirectory;
pub(crate) use out::{Out, is_closed_pipe};

use crate::exit::{Failure, Fatal};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Deploy a folder: build it, start it, then let it serve all new calls.
    Deploy(Box<deploy::Arguments>),
    /// Write a settings file for a folder, and a function if it is empty.
    Init(init::Arguments),
    /// Change settings of a function without sending its source.
    Set(Box<set::Arguments>),
    /// Call a function and print its reply as it comes.
    Invoke(Box<invoke::Arguments>),
    /// Show what a function wrote, and how its calls went.
    Logs(logs::Arguments),
    /// List functions.
    #[command(visible_alias = "list")]
    Ls(ls::Arguments),
    /// Show everything about a function.
    #[command(visible_alias = "status")]
    Show(show::Arguments),
    /// List instances.
    Ps(ps::Arguments),
    /// Watch what functions do: calls, errors, instances.
    Top(top::Arguments),
    /// Remove functions, with their deployments and logs.
    #[command(visible_alias = "delete")]
    Rm(rm::Arguments),
    /// Copy all functions to a file, also while the daemon runs.
    Backup(backup::BackupArguments),
    /// Put a backup in the place of a data directory's functions; no daemon may run.
    Restore(backup::RestoreArguments),
    /// Print completions for a shell.
    Completions(completions::Arguments),
    /// Write the help as manual pages.
    Man(man::Arguments),
}

impl Command {
    /// Runs the command on one thread; a verbose one says more of what it does.
    pub(crate) fn run(self, connection: &Connection, is_verbose: bool) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = runtime.block_on(self.answer(connection, is_verbose));
        // What is still being packed after an interrupt is of no use to anybody.
        runtime.shutdown_background();
        outcome.map_err(with_code)
    }

    async fn answer(self, connection: &Connection, is_verbose: bool) -> anyhow::Result<()> {
        match self {
            Self::Deploy(arguments) => deploy::run(*arguments, connection, is_verbose).await,
            Self::Init(arguments) => init::run(&arguments),
            Self::Set(arguments) => set::run(*arguments, connection, is_verbose).await,
            Self::Invoke(arguments) => invoke::run(*arguments, connection).await,
            Self::Logs(arguments) => logs::run(arguments, connection).await,
            Self::Ls(arguments) => ls::run(&arguments, connection).await,
            Self::Show(arguments) => show::run(&arguments, connection).await,
            Self::Ps(arguments) => ps::run(&arguments, connection).await,
            Self::Top(arguments) => top::run(&arguments, connection).await,
            Self::Rm(arguments) => rm::run(&arguments, connection).await,
            Self::Backup(arguments) => backup::back_up(arguments, connection).await,
            Self::Restore(arguments) => backup::restore(&arguments),
            Self::Completions(arguments) => completions::run(&arguments),
            Self::Man(arguments) => man::run(&arguments),
        }
    }
}

/// Refuses what says how to reach a daemon, for a command that reaches none.
pub(crate) fn refuse_connection(
    program: &clap::Command,
    matches: &clap::ArgMatches,
) -> Result<(), clap::Error> {
    let Some((name, of_command)) = matches.subcommand() else { return Ok(()) };
    let is_typed = |id| of_command.value_source(id) == Some(ValueSource::CommandLine);
    let Some(given) = ["url", "token"].into_iter().find(|id| is_typed(id)) else { return Ok(()) };
    let instead = match name {
        "up" => "; how clients reach the daemon is said with --public-url",
        _ => "",
    };
    let message =
        format!("`hearth {name}` talks to no daemon, so --{given} means nothing{instead}");
    Err(program.clone().error(ErrorKind::ArgumentConflict, message))
}

/// `hearth version`: what `--version` says.
pub(crate) fn version() -> anyhow::Result<()> {
    let printed = writeln!(out::Out::new(), "hearth {}", env!("CARGO_PKG_VERSION"));
    match printed.map_err(anyhow::Error::from) {
        Err(error) if !out::is_closed_pipe(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The one table from what a daemon says to how the program ends.
fn with_code(error: anyhow::Error) -> anyhow::Error {
    let Some(cause) = error.downcast_ref::<ClientError>() else { return error };
    let failure = match cause {
        ClientError::Url { .. }
        | ClientError::NoTls { .. }
        | ClientError::NoToken
        | ClientError::Path { .. } => Failure::Usage,
        ClientError::Refused { status: 400 | 422, .. } => Failure::Usage,
        // It lacks what was asked for, or is about to end.
        ClientError::Refused { status: 503, .. } => Failure::Unavailable,
        ClientError::UnknownFunction { .. } | ClientError::Refused { status: 404, .. } => {
            Failure::NoInput
        }
        ClientError::Unreachable { .. } | ClientError::Silent { .. } => Failure::Unavailable,
        ClientError::Token { .. }
        | ClientError::Stranger { .. }
        | ClientError::OpenDirectory { .. }
        | ClientError::OthersDirectory { .. } => Failure::NoPermission,
        ClientError::Refused { .. }
        | ClientError::NotHearth { .. }
        | ClientError::Malformed(_)
        | ClientError::TooLarge { .. }
        | ClientError::Broken { .. }
        | ClientError::Setup { .. } => return error,
    };
    Fatal::new(failure, format!("{error:#}")).into()
}
