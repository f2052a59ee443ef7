//! `hearth completions`: what a shell needs to complete commands.
//!
//! The script asks the program itself, so that it knows the functions that there are, and stays right
//! when the program changes. See `docs/decisions/0022-completion.md`.

use std::{io::Write, time::Duration};

use clap::{CommandFactory, Parser};
use clap_complete::{CompleteEnv, CompletionCandidate, Shell, env::Shells};
use tokio::time::timeout;

use super::{DataDirectory, out::Out};
use crate::runtimes::Catalogue;

const EXAMPLES: &str = "\
Examples:
  hearth completions bash > ~/.local/share/bash-completion/completions/hearth
  hearth completions zsh > \"${fpath[1]}/_hearth\"
  hearth completions fish > ~/.config/fish/completions/hearth.fish

Names of functions come from the daemon that HEARTH_URL, HEARTH_TOKEN and HEARTH_DATA name, if it
answers within a second.";

/// With this variable the program is asked by a script.
const VARIABLE: &str = "HEARTH_COMPLETE";
/// Somebody has pressed a key.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let shells = Shells::builtins();
    let shell = shells.completer(&arguments.shell.to_string()).expect("both know the same shells");
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "hearth", "hearth", "hearth", &mut script)?;
    Out::new().write_all(&script)?;
    Ok(())
}

/// Answers a script and ends the program, if one asks.
pub(crate) fn answer() {
    CompleteEnv::with_factory(crate::Arguments::command).var(VARIABLE).complete();
}

/// Names of functions; none if no daemon tells.
pub(super) fn functions() -> Vec<CompletionCandidate> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let names = runtime.ok().and_then(|runtime| {
        runtime.block_on(async {
            // Nothing of the line that is being typed, but what the environment says.
            let program = crate::Arguments::try_parse_from(["hearth", "version"]).ok()?;
            let client = program.connection.client(&DataDirectory::of_environment()).ok()?;
            timeout(PATIENCE, client.functions()).await.ok()?.ok()
        })
    });
    let names = names.unwrap_or_default().into_iter();
    // What else a daemon may say does not get onto a command line.
    let names = names.filter(|function| function.name.parse::<model::FunctionName>().is_ok());
    names.map(|function| CompletionCandidate::new(function.name)).collect()
}

/// Names of runtimes.
pub(super) fn runtimes() -> Vec<CompletionCandidate> {
    let catalogue = Catalogue::load(None).ok();
    let runtimes = catalogue.into_iter().flat_map(|catalogue| catalogue.runtimes);
    runtimes.map(|runtime| CompletionCandidate::new(runtime.name.as_str())).collect()
}

/// What an instance can reach.
pub(super) fn networks() -> Vec<CompletionCandidate> {
    ["egress", "none", "host"].map(CompletionCandidate::new).into()
}
