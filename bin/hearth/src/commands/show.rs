//! `hearth show`: everything about a function.

use std::io::Write;

use api::{Deployment, DeploymentState, Function};
use clap_complete::ArgValueCandidates;
use model::{FunctionName, Plain};

use super::{
    Connection, DataDirectory, completions,
    format::{age_since, micros, size, timestamp},
    ls,
    out::Out,
    table::{Column, Table},
};
use crate::color::Meaning;

const EXAMPLES: &str = "\
Examples:
  hearth show hello
  hearth show hello --json | jq -r .active.artifact

The command at `log` shows what was written since the deployment that serves was asked for.";

const COLUMNS: &[Column] = &[
    Column::text("DEPLOYMENT").goes(1),
    Column::state("STATE"),
    Column::text("RUNTIME").goes(3),
    Column::number("SIZE").goes(4),
    Column::text("CREATED").goes(2),
    Column::trouble("FAILURE"),
];

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The function.
    #[arg(add = ArgValueCandidates::new(completions::functions))]
    name: FunctionName,
    /// Print JSON: the function.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) async fn run(arguments: &Arguments, connection: &Connection) -> anyhow::Result<()> {
    let function = connection.client(&arguments.data)?.function(&arguments.name).await?;
    let mut out = Out::new();
    if arguments.json {
        return out.json(&function);
    }
    for (name, value) in facts(&function) {
        let value = Plain(&value).to_string();
        let meaning = match name {
            "state" => Meaning::of_state(&value),
            "trouble" => Some(Meaning::Bad),
            _ => None,
        };
        let value = match meaning.filter(|_| out.is_colored()) {
            Some(meaning) => meaning.paint(&value),
            None => value,
        };
        writeln!(out, "{name:<13}{value}")?;
    }
    let mut table = Table::new(COLUMNS);
    for deployment in &function.deployments {
        table.row(row(deployment));
    }
    write!(out, "\n{}", table.render(&out))?;
    Ok(())
}

fn facts(function: &Function) -> Vec<(&'static str, String)> {
    let Function { settings, load, .. } = function;
    let mut facts = vec![
        ("name", function.name.clone()),
        ("url", function.url.clone()),
        ("state", ls::state(function).into()),
    ];
    if let Some(trouble) = &load.trouble {
        facts.push(("trouble", trouble.clone()));
    }
    if let Some(active) = &function.active {
        let age = age_since(active.created_at);
        facts.push(("serves", format!("deployment {}, asked for {age} ago", active.id)));
        let since = timestamp(active.created_at);
        facts.push(("log", format!("hearth logs {} --since {since}", function.name)));
        facts.push(("runtime", active.runtime.clone()));
        facts.push(("entrypoint", active.entrypoint.clone()));
        facts.push(("artifact", format!("{} ({})", active.artifact, size(active.artifact_bytes))));
    }
    let variables = match settings.environment.as_slice() {
        [] => "none".into(),
        names => names.join(", "),
    };
    let mean = load.busy_micros.checked_div(load.calls).map_or("-".into(), micros);
    facts.extend([
        ("variables", variables),
        ("timeout", settings.timeout.clone()),
        ("memory", size(settings.memory_bytes)),
        ("cpus", settings.cpus.to_string()),
        ("network", settings.network.clone()),
        ("concurrency", format!("{} calls at once in an instance", settings.concurrency)),
        ("scale", format!("{} to {}, idle for {}", settings.min, settings.max, settings.idle)),
        ("instances", format!("{} serve, {} start", load.serving, load.starting)),
        ("calls", format!("{}, {} failed, {mean} on average", load.calls, load.errors)),
        ("now", format!("{} run, {} wait", load.in_flight, load.waiting)),
        ("cold starts", load.cold_starts.to_string()),
        ("created", timestamp(function.created_at)),
        ("deployed", format!("{} ago", age_since(function.updated_at))),
    ]);
    facts
}

fn row(deployment: &Deployment) -> [String; 6] {
    let state = match deployment.state {
        DeploymentState::Pending => "pending",
        DeploymentState::Active => "active",
        DeploymentState::Superseded => "superseded",
        DeploymentState::Failed => "failed",
    };
    let has_artifact = !deployment.artifact.is_empty();
    [
        deployment.id.clone(),
        state.into(),
        deployment.runtime.clone(),
        if has_artifact { size(deployment.artifact_bytes) } else { String::new() },
        timestamp(deployment.created_at),
        deployment.failure.clone().unwrap_or_default(),
    ]
}
