//! `hearth deploy`: a folder becomes a function.

mod name;
mod output;
mod settings;

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use api::{DeployEvent, DeployRequest, Deployment};
use archive::{Compression, PackError, PackOptions, Summary};
use client::{Client, Lines, Source};
use model::{FunctionName, Plain};
use output::BuildOutput;
use tokio::signal::unix::{Signal, SignalKind, signal};

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
ready, and goes on if that fails. Ctrl-C cancels the deployment and says what became of it.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The folder with the function's source.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// What the function is called [default: like the folder, as it is written here].
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
    refuse_no_folder(&arguments.directory)?;
    let name = match arguments.name {
        Some(name) => name,
        None => name::of_folder(&arguments.directory)?,
    };
    let client = connection.client(&arguments.data)?;
    // Before anything is packed: is there a daemon, and does it know us?
    client.status().await?;
    let request = DeployRequest {
        runtime: arguments.runtime,
        entrypoint: arguments.entrypoint,
        settings: arguments.settings.patch(),
    };
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
    let bytes = archive.metadata()?.len();
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
    let report = Report {
        client: &client,
        name: &name,
        id: deploying.id,
        is_json: arguments.json,
        progress,
        interrupts,
        is_cancelled: false,
    };
    report.follow(deploying.events).await
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

fn interrupted(what_now: &str) -> anyhow::Error {
    Fatal::new(Failure::Interrupted, format!("interrupted: {what_now}")).into()
}

/// Ctrl-C, or what a supervisor sends instead.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// From here on these signals do not end the program.
    fn listen() -> io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Tells what becomes of a deployment.
struct Report<'a> {
    client: &'a Client,
    name: &'a FunctionName,
    /// None if the daemon does not say what to cancel.
    id: Option<String>,
    is_json: bool,
    progress: Progress,
    interrupts: Interrupts,
    is_cancelled: bool,
}

impl Report<'_> {
    async fn follow(mut self, mut events: Lines<DeployEvent>) -> anyhow::Result<()> {
        let mut out = Out::new();
        let mut build = BuildOutput::default();
        loop {
            let event = tokio::select! {
                event = self.progress.wait(events.next()) => event?,
                () = self.interrupts.next() => {
                    self.cancel().await?;
                    continue;
                }
            };
            let Some(event) = event else { break };
            if self.is_json {
                out.json_line(&event)?;
            }
            match event {
                DeployEvent::Step { step } => self.progress.step(&Plain(&step).to_string()),
                DeployEvent::Output { .. } if self.is_json => {}
                DeployEvent::Output { text } => {
                    let lines = build.add(&text);
                    self.progress.aside(|| output::print(&lines));
                }
                DeployEvent::Active { deployment, url } => {
                    let rest = build.finish();
                    self.progress.aside(|| output::print(&rest));
                    return self.active(&deployment, &url, out);
                }
                DeployEvent::Failed { step, message } => {
                    let rest = build.finish();
                    self.progress.aside(|| output::print(&rest));
                    return Err(self.failed(&step, &message));
                }
            }
        }
        anyhow::bail!(
            "the daemon stopped telling before the deployment was over; \
             `hearth show {}` says what became of it",
            self.name
        )
    }

    /// The first interrupt cancels the deployment, of which the events tell the end; the second one
    /// leaves it to the daemon.
    async fn cancel(&mut self) -> anyhow::Result<()> {
        let show = format!("`hearth show {}` says what becomes of it", self.name);
        if self.is_cancelled {
            return Err(interrupted(&format!("the deployment was told to end; {show}")));
        }
        let Some(id) = &self.id else {
            return Err(interrupted(&format!("the deployment goes on; {show}")));
        };
        self.is_cancelled = true;
        self.progress.aside(|| output::print("cancelling the deployment\n"));
        tokio::select! {
            // Where it is over already, its last event is on the way.
            answer = self.client.cancel_deployment(self.name, id) => match answer {
                Ok(_) => Ok(()),
                Err(error) => Err(interrupted(&format!(
                    "the deployment could not be cancelled ({error}) and may go on; {show}"
                ))),
            },
            () = self.interrupts.next() => {
                Err(interrupted(&format!("the deployment may go on; {show}")))
            }
        }
    }

    fn active(self, deployment: &Deployment, url: &str, mut out: Out) -> anyhow::Result<()> {
        // The bar must be gone before the last words.
        drop(self.progress);
        let name = self.name;
        if !self.is_json {
            let (runtime, artifact) = (Plain(&deployment.runtime), size(deployment.artifact_bytes));
            let text = format!(
                "{name} is active ({runtime}, {artifact}); call it with `hearth invoke {name}`\n"
            );
            output::print(&text);
            writeln!(out, "{}", Plain(url))?;
        }
        if self.is_cancelled {
            return Err(interrupted("it was too late to cancel the deployment, which is active"));
        }
        Ok(())
    }

    /// What the source is to blame for has a code of its own.
    fn failed(&self, step: &str, message: &str) -> anyhow::Error {
        if self.is_cancelled {
            return interrupted(&format!(
                "the deployment ended in step `{step}` ({message}); what served before still does"
            ));
        }
        let message = format!("the deployment failed in step `{step}`: {message}");
        match step {
            "unpack" | "build" | "start" => Fatal::new(Failure::Source, message).into(),
            _ => anyhow::Error::msg(message),
        }
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
