//! `hearth deploy`: a folder becomes a function.

pub(super) mod name;
pub(super) mod verbose;

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::Context;
use api::DeployRequest;
use archive::{Compression, PackError, PackOptions, Summary};
use clap_complete::ArgValueCandidates;
use client::Source;
use model::FunctionName;

use super::{
    Connection, DataDirectory, completions,
    deployment::{Interrupts, Report, Told, interrupted},
    format::size,
    progress::Progress,
    settings::SettingsArguments,
};
use crate::{
    exit::{Failure, Fatal},
    project::Project,
};

const ENVIRONMENT_FILES: &str = "note: files such as .env are not sent; --env-file .env sets the \
                                 variables that one names";

const EXAMPLES: &str = "\
Examples:
  hearth deploy ./hello
  hearth deploy . --name hello --env GREETING=Hi --memory 256MiB
  hearth deploy ./resize --runtime python-3.11 --min 1 --max 20 --timeout 1m

Prints the URL of the function. What hearth.toml in the folder says is used, where no flag says
otherwise; `hearth init` writes one. Settings that neither gives stay as they are; `hearth set` changes
them without sending the source. Not sent: hearth.toml, .env, .env.*, .git, .hg, .svn, __pycache__,
.venv, node_modules beside a package.json, and what .hearthignore names (without one, .gitignore).
What served before serves until the new code is ready, and goes on if that fails. Ctrl-C cancels the
deployment and says what became of it.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The folder with the function's source.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// What the function is called [default: what hearth.toml says, or like the folder, as it is
    /// written here].
    #[arg(long, add = ArgValueCandidates::new(completions::functions))]
    name: Option<FunctionName>,
    /// The runtime, such as `node` or `python-3.11` [default: told from the source].
    #[arg(long, value_name = "NAME[-VERSION]", add = ArgValueCandidates::new(completions::runtimes))]
    runtime: Option<String>,
    /// The file that defines the function [default: the runtime's usual names].
    #[arg(long, value_name = "FILE")]
    entrypoint: Option<String>,
    /// Print JSON: an event in each line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArguments,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) async fn run(
    arguments: Arguments,
    connection: &Connection,
    is_verbose: bool,
) -> anyhow::Result<()> {
    refuse_no_folder(&arguments.directory)?;
    let project = Project::of(&arguments.directory)?;
    let name = match arguments.name.or(project.name) {
        Some(name) => name,
        None => name::of_folder(&arguments.directory)?,
    };
    let has_files = arguments.settings.has_files();
    let request = DeployRequest {
        runtime: arguments.runtime.or(project.runtime),
        entrypoint: arguments.entrypoint.or(project.entrypoint),
        settings: arguments.settings.patch()?.over(project.settings),
    };
    let client = connection.client(&arguments.data)?;
    // Before anything is packed: is there a daemon, and does it know us?
    client.status().await?;
    let mut interrupts = Interrupts::listen()?;
    let progress = Progress::new();
    progress.step("packing");
    let folder = arguments.directory.clone();
    let packing = tokio::task::spawn_blocking(move || pack(&folder));
    let packed = tokio::select! {
        packed = progress.wait(packing) => packed,
        () = interrupts.next() => return Err(interrupted("nothing was sent")),
    };
    let (archive, summary) = packed.expect("packing does not panic")?;
    if summary.files == 0 {
        let folder = arguments.directory.display();
        return Err(usage(format!("{folder} has no files that would be sent")).into());
    }
    if summary.environment_files > 0 && !has_files {
        progress.aside(|| eprintln!("{ENVIRONMENT_FILES}"));
    }
    let bytes = archive.metadata()?.len();
    if is_verbose {
        let Summary { files, bytes: plain, left_out, .. } = summary;
        let (plain, packed) = (size(plain), size(bytes));
        let lines = format!("{files} files of {plain} packed to {packed}, {left_out} left out\n");
        let lines = lines + &verbose::told(&name, &request);
        progress.aside(|| eprint!("{lines}"));
    }
    let bar = progress.bytes("sending", bytes);
    let archive = bar.wrap_async_read(tokio::fs::File::from_std(archive));
    let sending = client.deploy(&name, &request, Source { archive, bytes });
    let deploying = tokio::select! {
        deploying = progress.wait(sending) => deploying?,
        () = interrupts.next() => {
            return Err(if bar.position() < bytes {
                interrupted("only a part of the source was sent, so nothing changes")
            } else {
                interrupted(&format!(
                    "the source was sent already, so it may be deployed all the same; \
                     `hearth show {name}` says"
                ))
            });
        }
    };
    let told = Told { is_json: arguments.json, is_verbose };
    let report = Report::new(&client, &name, told, progress, interrupts);
    report.follow(deploying).await
}

fn refuse_no_folder(directory: &Path) -> Result<(), Fatal> {
    let folder = directory.display();
    if directory.is_dir() {
        return Ok(());
    }
    Err(if directory.exists() {
        usage(format!("{folder} is not a folder with a function's source"))
    } else {
        Fatal::new(Failure::NoInput, format!("there is no folder {folder}"))
    })
}

fn usage(message: String) -> Fatal {
    Fatal::new(Failure::Usage, message)
}

/// Packs into a file without a name, which is gone with the program.
fn pack(directory: &Path) -> anyhow::Result<(File, Summary)> {
    let mut archive = unnamed_file().context("could not make a temporary file")?;
    let options = PackOptions { compression: Compression::Zstd, everything: false };
    let summary = archive::pack(directory, &archive, &options).map_err(|error| match error {
        PackError::Link { .. } | PackError::Ignore(_) => {
            Fatal::new(Failure::Usage, format!("{:#}", anyhow::Error::from(error))).into()
        }
        error => anyhow::Error::from(error),
    })?;
    archive.seek(SeekFrom::Start(0))?;
    Ok((archive, summary))
}

fn unnamed_file() -> io::Result<File> {
    let directory = std::env::temp_dir();
    for attempt in 0_u32.. {
        let path = directory.join(format!("hearth-deploy-{}-{attempt}", std::process::id()));
        match File::options().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return std::fs::remove_file(path).map(|()| file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    unreachable!("one of four billion names is free")
}
