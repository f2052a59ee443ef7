//! `hearth ls`: functions.

use std::io::Write;

use api::{DeploymentState, Function};

use super::{
    Connection, DataDirectory,
    format::age_since,
    out::Out,
    table::{Column, Table},
};

const EXAMPLES: &str = "\
Examples:
  hearth ls
  hearth ls --json | jq -r '.[].url'

Columns that a terminal has no room for are left out; a pipe gets all of them.";

const COLUMNS: &[Column] = &[
    Column::text("NAME"),
    Column::state("STATE"),
    Column::text("RUNTIME").goes(4),
    Column::number("INSTANCES").goes(6),
    Column::number("CALLS").goes(2),
    Column::number("ERRORS").goes(3),
    Column::number("DEPLOYED").goes(5),
    Column::text("URL").goes(1),
];

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Print JSON: an array of functions.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) async fn run(arguments: &Arguments, connection: &Connection) -> anyhow::Result<()> {
    let functions = connection.client(&arguments.data)?.functions().await?;
    let mut out = Out::new();
    if arguments.json {
        return out.json(&functions);
    }
    if functions.is_empty() && out.is_terminal() {
        eprintln!("no functions yet; `hearth deploy DIR` makes one");
        return Ok(());
    }
    let mut table = Table::new(COLUMNS);
    for function in &functions {
        let runtime = function.active.as_ref().map(|active| active.runtime.clone());
        table.row([
            function.name.clone(),
            state(function).into(),
            runtime.unwrap_or_default(),
            function.load.serving.to_string(),
            function.load.calls.to_string(),
            function.load.errors.to_string(),
            age_since(function.updated_at),
            function.url.clone(),
        ]);
    }
    out.write_all(table.render(&out).as_bytes())?;
    Ok(())
}

/// In one word, the thing to know first.
pub(crate) fn state(function: &Function) -> &'static str {
    let last = function.deployments.first().map(|deployment| deployment.state);
    match (&function.active, last) {
        (Some(_), _) if function.load.trouble.is_some() => "failing",
        (_, Some(DeploymentState::Pending)) => "deploying",
        (Some(_), _) => "active",
        (None, _) => "failed",
    }
}
