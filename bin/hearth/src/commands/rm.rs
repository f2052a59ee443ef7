//! `hearth rm`: removes functions.

use std::io::Write;

use model::FunctionName;

use super::{Connection, DataDirectory, out::Out, with_code};

const EXAMPLES: &str = "\
Examples:
  hearth rm hello
  hearth ls --json | jq -r '.[].name' | xargs hearth rm

All of them are tried; the exit code is that of the first that could not be removed.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The functions.
    #[arg(required = true, value_name = "NAME")]
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
    for name in &arguments.names {
        match client.remove(name).await {
            Ok(()) if arguments.json => removed.push(name),
            Ok(()) => writeln!(out, "{name}")?,
            Err(error) if first_failure.is_none() => {
                first_failure = Some(with_code(error.into()));
            }
            Err(error) => eprintln!("hearth: {error}"),
        }
    }
    if arguments.json {
        out.json(&removed)?;
    }
    first_failure.map_or(Ok(()), Err)
}
