//! `hearth set`: other settings for what is deployed.

use api::{DeployRequest, SettingName, SettingsPatch};
use clap::ValueEnum;
use clap_complete::ArgValueCandidates;
use model::FunctionName;

use super::{
    Connection, DataDirectory, completions,
    deploy::verbose,
    deployment::{Interrupts, Report, Told, interrupted},
    progress::Progress,
    settings::SettingsArguments,
};
use crate::exit::{Failure, Fatal};

const EXAMPLES: &str = "\
Examples:
  hearth set hello --memory 256M --env GREETING=Hi
  hearth set hello --env-file .env.production --unset-env DEBUG
  hearth set hello --reset memory --reset timeout

Deploys the code that is deployed with other settings; the source is not sent. What is not given stays
as it is. What served before serves until an instance with the new settings has been started, and goes
on if that fails; `hearth show` lists the change with the deployments. `hearth deploy` of a folder
whose hearth.toml names a setting sets that anew. Prints the URL of the function.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The function.
    #[arg(add = ArgValueCandidates::new(completions::functions))]
    name: FunctionName,
    /// A setting that becomes its default: `environment` removes all variables. May be repeated.
    #[arg(long, value_name = "KEY", help_heading = "Settings")]
    reset: Vec<Key>,
    /// Print JSON: an event in each line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArguments,
    #[command(flatten)]
    data: DataDirectory,
}

/// A setting, as an argument.
#[derive(Clone)]
struct Key(SettingName);

impl ValueEnum for Key {
    fn value_variants<'a>() -> &'a [Self] {
        const KEYS: [Key; SettingName::ALL.len()] = {
            let mut keys = [const { Key(SettingName::Environment) }; SettingName::ALL.len()];
            let mut index = 0;
            while index < keys.len() {
                keys[index].0 = SettingName::ALL[index];
                index += 1;
            }
            keys
        };
        &KEYS
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(self.0.as_str().into())
    }
}

pub(crate) async fn run(
    arguments: Arguments,
    connection: &Connection,
    is_verbose: bool,
) -> anyhow::Result<()> {
    let name = arguments.name;
    let mut patch = arguments.settings.patch()?;
    patch.reset = arguments.reset.into_iter().map(|key| key.0).collect();
    if patch == SettingsPatch::default() {
        let message = "nothing to set; `hearth set --help` lists the settings";
        return Err(Fatal::new(Failure::Usage, message).into());
    }
    let client = connection.client(&arguments.data)?;
    let mut interrupts = Interrupts::listen()?;
    let progress = Progress::new();
    if is_verbose {
        let request = DeployRequest { settings: patch.clone(), ..DeployRequest::default() };
        eprint!("{}", verbose::told(&name, &request));
    }
    progress.step("asking");
    let deploying = tokio::select! {
        deploying = progress.wait(client.set(&name, &patch)) => deploying?,
        () = interrupts.next() => {
            return Err(interrupted(&format!(
                "the settings may change all the same; `hearth show {name}` says"
            )));
        }
    };
    let told = Told { is_json: arguments.json, is_verbose };
    let report = Report::new(&client, &name, told, progress, interrupts);
    report.follow(deploying).await
}
