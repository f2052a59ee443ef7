//! `hearth doctor`: what this machine supports, and what to do about the rest.

use std::io::Write;

use adapter_sandbox::{Config, Finding, SandboxAdapter};
use model::Network;

use crate::{
    commands::Out,
    exit::{Failure, Fatal},
    parts,
    state::{self, OwnedDirectory},
    trial,
};

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
    let mut probe = adapter_sandbox::probe();
    let tried = probe.is_enough().then(try_one);
    probe.findings.extend(tried.as_ref().map(|tried| Finding {
        what: "an instance",
        is_found: tried.is_ok(),
        detail: tried.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default(),
        gives: "what is said above is enough: one was launched, given code, and ended",
        remedy: "tell us what it says here; until then `--adapter process` runs functions without \
                 isolation",
    }));
    let works = matches!(tried, Some(Ok(())));
    let mut out = Out::new();
    if arguments.json {
        out.json(&probe)?;
    } else {
        for finding in &probe.findings {
            let mark = if finding.is_found { "ok     " } else { "missing" };
            let detail = match finding.detail.as_str() {
                "" => String::new(),
                detail => format!(" ({detail})"),
            };
            writeln!(out, "{mark}  {}{detail}\n         {}", finding.what, finding.gives)?;
            if !finding.is_found {
                writeln!(out, "         to get it: {}", finding.remedy)?;
            }
        }
    }
    if works {
        return Ok(());
    }
    let message =
        "the adapter `sandbox` cannot run here; `--adapter process` can, without isolation";
    Err(Fatal::new(Failure::Unavailable, message).into())
}

/// Does what a daemon does at its start, but for the host's network, which stays as it is.
fn try_one() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let own = OwnedDirectory::create(&state::runtime_parent())?;
        let config =
            Config { is_trial: true, ..parts::sandbox_config(parts::Surroundings::default()) };
        let adapter = SandboxAdapter::start(config).await?;
        let tried = trial::run(&adapter, &own.subdirectory("trial")?, Network::None).await;
        adapter.shutdown().await;
        Ok(tried?)
    })
}
