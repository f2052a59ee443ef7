//! `hearth rm`: removes functions.

use std::io::Write;

use clap_complete::ArgValueCandidates;
use model::FunctionName;

use super::{Connection, DataDirectory, completions, out::Out, progress::Progress, with_code};
use crate::exit::complain;

const EXAMPLES: &str = "\
Examples:
  hearth rm hello
  hearth ls --json | jq -r '.[].name' | xargs hearth rm

Waits until a function's running calls are over, for half a minute at the most. After an interrupt
the daemon finishes the removal that it has begun. All of them are tried; the exit code is that of the first that could not be removed.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The functions.
    #[arg(required = true, value_name = "NAME", add = ArgValueCandidates::new(completions::functions))]
    names: Vec<FunctionName>,
    /// Print JSON: an array of the names that were removed.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) async fn run(arguments: &Arguments, connection: &Connection) -> anyhow::Result<()> {
    let client = connection.client(&arguments.data)?;
    let mut out = Out::new();
    let mut removed = Vec::new();
    let mut first_failure = None;
    let progress = Progress::new();
    for name in &arguments.names {
        progress.step(&format!("removing {name}, once its calls are over"));
        let removed_or_not = tokio::select! {
            outcome = progress.wait(client.remove(name)) => outcome,
            interrupt = tokio::signal::ctrl_c() => {
                interrupt?;
                drop(progress);
                anyhow::bail!(
                    "interrupted: the daemon goes on to remove {name}, no others; `hearth ls` lists \
                     what is left"
                );
            }
        };
        match removed_or_not {
            Ok(()) if arguments.json => removed.push(name),
            Ok(()) => progress.aside(|| writeln!(out, "{name}"))?,
            Err(error) if first_failure.is_none() => {
                first_failure = Some(with_code(error.into()));
            }
            Err(error) => progress.aside(|| complain(&error.to_string())),
        }
    }
    drop(progress);
    if arguments.json {
        out.json(&removed)?;
    }
    first_failure.map_or(Ok(()), Err)
}
