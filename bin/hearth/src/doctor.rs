//! `hearth doctor`: what this machine supports, and what to do about the rest.

use crate::exit::{Failure, Fatal};

const EXAMPLES: &str = "\
Examples:
  hearth doctor
  sudo hearth doctor
  hearth doctor --json | jq -r '.findings[] | select(.is_found | not) | .remedy'

What is found is what this user has: root may have more.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs before there is any thread: some things are found out by forking.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let probe = adapter_sandbox::probe();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&probe)?);
    } else {
        for finding in &probe.findings {
            let mark = if finding.is_found { "ok     " } else { "missing" };
            let detail = match finding.detail.as_str() {
                "" => String::new(),
                detail => format!(" ({detail})"),
            };
            println!("{mark}  {}{detail}\n         {}", finding.what, finding.gives);
            if !finding.is_found {
                println!("         to get it: {}", finding.remedy);
            }
        }
    }
    if probe.is_enough() {
        return Ok(());
    }
    let message =
        "the adapter `sandbox` cannot run here; `--adapter process` can, without isolation";
    Err(Fatal::new(Failure::Unavailable, message).into())
}
