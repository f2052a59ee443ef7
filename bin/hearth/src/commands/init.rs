//! `hearth init`: a settings file for a folder, and a function if there is none.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap_complete::ArgValueCandidates;
use model::FunctionName;

use super::{completions, deploy::name, out::Out};
use crate::{
    exit::{Failure, Fatal},
    project,
    runtimes::{Catalogue, Runtime},
    source,
};

const EXAMPLES: &str = "\
Examples:
  hearth init
  hearth init ./hello --runtime python
  hearth init ./resize --name resize-images --force

Writes hearth.toml, which `hearth deploy` reads, and tells the runtime and the entrypoint from the
source. A folder that is empty, or is not there yet, gets a small function to start with. Nothing is
overwritten; --force writes hearth.toml anew, and no other file.";

/// What an empty folder gets if nobody says otherwise.
const USUAL: &str = "node";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The folder.
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// What the function is called [default: like the folder, as it is written here].
    #[arg(long)]
    name: Option<FunctionName>,
    /// The runtime, such as `node` or `python-3.11` [default: told from the source; for an empty
    /// folder node].
    #[arg(long, value_name = "NAME[-VERSION]", add = ArgValueCandidates::new(completions::runtimes))]
    runtime: Option<String>,
    /// The file that defines the function [default: the runtime's usual names].
    #[arg(long, value_name = "FILE")]
    entrypoint: Option<String>,
    /// Write hearth.toml anew if there is one.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let directory = &arguments.directory;
    let catalogue = Catalogue::load(None)?;
    let is_empty = is_empty(directory)?;
    let runtime = match (&arguments.runtime, is_empty) {
        (Some(named), _) => catalogue.named(named)?.0,
        (None, true) => catalogue.named(USUAL)?.0,
        (None, false) => catalogue.detect(directory)?,
    };
    let target = directory.join(project::FILE);
    if !arguments.force && target.symlink_metadata().is_ok() {
        let message = format!("{} exists; --force writes it anew", target.display());
        return Err(Fatal::new(Failure::Usage, message).into());
    }
    if is_empty {
        fs::create_dir_all(directory).map_err(|error| unwritable(directory, &error))?;
    }
    // Of a folder that is there by now: its name may be told from its path.
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => name::of_folder(directory)?,
    };
    let mut written = Vec::new();
    if is_empty && arguments.entrypoint.is_none() {
        written = start(directory, &catalogue, runtime)?;
    }
    let entrypoint = source::entrypoint(directory, runtime, arguments.entrypoint.as_deref())?;
    let named = arguments.runtime.as_deref().unwrap_or(runtime.name.as_str());
    let text = project::template(&name, named, &entrypoint);
    write(&target, text.as_bytes(), arguments.force)?;
    written.push(target);
    let mut out = Out::new();
    for path in written {
        writeln!(out, "{}", path.display())?;
    }
    eprintln!("deploy it with `hearth deploy {}`", directory.display());
    Ok(())
}

/// Whether there is nothing yet but hidden files, such as a history.
fn is_empty(directory: &Path) -> anyhow::Result<bool> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => {
            let message = format!("could not read {}: {error}", directory.display());
            let is_file = error.kind() == io::ErrorKind::NotADirectory;
            let failure = if is_file { Failure::Usage } else { Failure::NoInput };
            return Err(Fatal::new(failure, message).into());
        }
    };
    let is_seen = |name: &std::ffi::OsStr| {
        let name = name.as_encoded_bytes();
        !name.starts_with(b".") && name != project::FILE.as_bytes()
    };
    for entry in entries {
        if is_seen(&entry?.file_name()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes the function to start with.
fn start(
    directory: &Path,
    catalogue: &Catalogue,
    runtime: &Runtime,
) -> anyhow::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for (name, content) in catalogue.example(runtime) {
        let path = directory.join(name);
        write(&path, &content, false)?;
        written.push(path);
    }
    Ok(written)
}

fn write(path: &Path, content: &[u8], may_replace: bool) -> anyhow::Result<()> {
    let mut options = File::options();
    options.write(true);
    if may_replace {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let written = options.open(path).and_then(|mut file| file.write_all(content));
    written.map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> anyhow::Error {
    anyhow::anyhow!("could not write {}: {error}", path.display())
}
