//! `hearth ps`: instances.

use std::io::Write;

use api::InstanceState;
use clap_complete::ArgValueCandidates;
use model::FunctionName;

use super::{
    Connection, DataDirectory, completions,
    format::{age_seconds, size},
    out::Out,
    table::{Column, Table},
};

const EXAMPLES: &str = "\
Examples:
  hearth ps
  hearth ps hello resize
  hearth ps --json | jq '.[] | select(.function == \"hello\") | .memory_bytes'";

const COLUMNS: &[Column] = &[
    Column::text("INSTANCE"),
    Column::text("FUNCTION").goes(1),
    Column::text("RUNTIME").goes(5),
    Column::state("STATE"),
    Column::number("IN-FLIGHT").goes(4),
    Column::number("CALLS").goes(3),
    Column::number("AGE").goes(7),
    Column::number("IDLE").goes(6),
    Column::number("MEMORY").goes(2),
];

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Only instances of these functions.
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(completions::functions))]
    names: Vec<FunctionName>,
    /// Print JSON: an array of instances.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) async fn run(arguments: &Arguments, connection: &Connection) -> anyhow::Result<()> {
    let client = connection.client(&arguments.data)?;
    let mut instances = client.instances().await?;
    if !arguments.names.is_empty() {
        instances.retain(|instance| {
            let function = instance.function.as_deref();
            arguments.names.iter().any(|name| function == Some(name.as_str()))
        });
    }
    for name in &arguments.names {
        let is_there =
            |instance: &api::Instance| instance.function.as_deref() == Some(name.as_str());
        // A function without instances is one thing, a name that nothing has is a mistake.
        if !instances.iter().any(is_there) {
            client.function(name).await?;
        }
    }
    let mut out = Out::new();
    if arguments.json {
        return out.json(&instances);
    }
    if instances.is_empty() && out.is_terminal() {
        eprintln!("no instances: none is needed as long as nobody calls");
        return Ok(());
    }
    let mut table = Table::new(COLUMNS);
    for instance in instances {
        table.row([
            instance.id,
            instance.function.unwrap_or_default(),
            instance.runtime,
            name(instance.state).into(),
            instance.in_flight.to_string(),
            instance.calls.to_string(),
            age_seconds(instance.age_seconds),
            age_seconds(instance.idle_seconds),
            instance.memory_bytes.map(size).unwrap_or_default(),
        ]);
    }
    out.write_all(table.render(&out).as_bytes())?;
    Ok(())
}

fn name(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Spare => "spare",
        InstanceState::Starting => "starting",
        InstanceState::Idle => "idle",
        InstanceState::Busy => "busy",
        InstanceState::Draining => "draining",
    }
}
