//! `hearth deploy`: a folder becomes a function.

mod settings;

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use api::{DeployEvent, DeployRequest, Deployment};
use archive::{Compression, PackError, PackOptions, Summary};
use client::{Lines, Source};
use model::FunctionName;

use super::{Connection, DataDirectory, format::size, out::Out, progress::Progress};
use crate::exit::{Failure, Fatal};

const EXAMPLES: &str = "\
Examples:
  hearth deploy ./hello
  hearth deploy . --name hello --env GREETING=Hi --memory 256MiB
  hearth deploy ./resize --runtime python-3.11 --min 1 --max 20 --timeout 1m

Prints the URL of the function. Settings that are not given stay as they are; --unset removes a
variable. Not sent: .git, .hg, .svn, __pycache__, .venv, node_modules beside a package.json, and what
.hearthignore names (without one, .gitignore). What served before serves until the new code is
ready, and goes on if that fails.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The folder with the function's source.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// What the function is called [default: like the folder].
    #[arg(long)]
    name: Option<FunctionName>,
    /// The runtime, such as `node` or `python-3.11` [default: told from the source].
    #[arg(long, value_name = "NAME[-VERSION]")]
    runtime: Option<String>,
    /// The file that defines the function [default: the runtime's usual names].
    #[arg(long, value_name = "FILE")]
    entrypoint: Option<String>,
    /// Print JSON: an event in each line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: settings::SettingsArguments,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) async fn run(arguments: Arguments, connection: &Connection) -> anyhow::Result<()> {
    let usage = |message: String| Fatal::new(Failure::Usage, message);
    if !arguments.directory.is_dir() {
        let folder = arguments.directory.display();
        return Err(usage(format!("{folder} is not a folder with a function's source")).into());
    }
    let name = match arguments.name {
        Some(name) => name,
        None => name_of(&arguments.directory)?,
    };
    let client = connection.client(&arguments.data)?;
    // Before anything is packed: is there a daemon, and does it know us?
    client.status().await?;
    let request = DeployRequest {
        runtime: arguments.runtime,
        entrypoint: arguments.entrypoint,
        settings: arguments.settings.patch(),
    };
    let progress = Progress::new();
    progress.step("packing");
    let folder = arguments.directory.clone();
    let packing = tokio::task::spawn_blocking(move || pack(&folder));
    let (archive, summary) = progress.wait(packing).await.expect("packing does not panic")?;
    if summary.files == 0 {
        let folder = arguments.directory.display();
        return Err(usage(format!("{folder} has no files that would be sent")).into());
    }
    let bytes = archive.metadata()?.len();
    let bar = progress.bytes("sending", bytes);
    let archive = bar.wrap_async_read(tokio::fs::File::from_std(archive));
    let lines = client.deploy(&name, &request, Source { archive, bytes });
    let lines = progress.wait(lines).await?;
    let report = Report { name: &name, is_json: arguments.json, progress };
    report.follow(lines).await
}

/// Tells what becomes of a deployment.
struct Report<'a> {
    name: &'a FunctionName,
    is_json: bool,
    progress: Progress,
}

impl Report<'_> {
    async fn follow(self, mut lines: Lines<DeployEvent>) -> anyhow::Result<()> {
        let mut out = Out::new();
        while let Some(event) = self.progress.wait(lines.next()).await? {
            if self.is_json {
                out.json_line(&event)?;
            }
            match event {
                DeployEvent::Step { step } => self.progress.step(&step),
                DeployEvent::Output { .. } if self.is_json => {}
                DeployEvent::Output { text } => self.progress.aside(|| print_output(&text)),
                DeployEvent::Active { deployment, url } => {
                    return self.active(&deployment, &url, out);
                }
                DeployEvent::Failed { step, message } => return Err(failed(&step, &message)),
            }
        }
        anyhow::bail!(
            "the daemon stopped telling before the deployment was over; \
             `hearth show {}` says what became of it",
            self.name
        )
    }

    fn active(self, deployment: &Deployment, url: &str, mut out: Out) -> anyhow::Result<()> {
        // The bar must be gone before the last words.
        drop(self.progress);
        if self.is_json {
            return Ok(());
        }
        let (name, runtime) = (self.name, &deployment.runtime);
        let artifact = size(deployment.artifact_bytes);
        eprintln!("{name} is active ({runtime}, {artifact}); call it with `hearth invoke {name}`");
        writeln!(out, "{url}")?;
        Ok(())
    }
}

/// Pieces of the build's output, which are not whole lines.
fn print_output(text: &str) {
    let mut stderr = io::stderr().lock();
    // Nobody may be there to read it; the deployment goes on.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// What the source is to blame for has a code of its own.
fn failed(step: &str, message: &str) -> anyhow::Error {
    let message = format!("the deployment failed in step `{step}`: {message}");
    match step {
        "unpack" | "build" | "start" => Fatal::new(Failure::Source, message).into(),
        _ => anyhow::Error::msg(message),
    }
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

fn name_of(directory: &Path) -> anyhow::Result<FunctionName> {
    let path = directory.canonicalize().context("could not find out what the folder is called")?;
    let folder = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    valid_name(&folder).ok_or_else(|| {
        let message =
            format!("`{folder}` cannot be made a function's name; choose one with --name");
        Fatal::new(Failure::Usage, message).into()
    })
}

/// `My_Function.v2` becomes `my-function-v2`.
fn valid_name(text: &str) -> Option<FunctionName> {
    let mut name = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            name.push(c.to_ascii_lowercase());
        } else if !name.ends_with('-') && !name.is_empty() {
            name.push('-');
        }
    }
    name.truncate(63);
    name.trim_end_matches('-').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folders_name_becomes_a_functions() {
        let long = "x".repeat(70);
        let longest = "x".repeat(63);
        for (folder, expected) in [
            ("hello", Some("hello")),
            ("My_Function.v2", Some("my-function-v2")),
            ("-- a  b --", Some("a-b")),
            ("größe", Some("gr-e")),
            (long.as_str(), Some(longest.as_str())),
            ("...", None),
            ("", None),
        ] {
            let name = valid_name(folder);
            assert_eq!(name.as_ref().map(FunctionName::as_str), expected, "{folder:?}");
        }
    }
}
