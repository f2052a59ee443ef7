//! `hearth backup` and `hearth restore`: all that exists, in one file, and back.

use std::{
    fs::{self, File},
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use client::ClientError;
use platform::{BackupSummary, RestoreError};

use super::{Connection, DataDirectory, out::Out};
use crate::{
    exit::{Failure, Fatal},
    paths,
    up::DataLock,
};

const BACKUP_EXAMPLES: &str = "\
Examples:
  hearth backup hearth.tar.zst
  hearth backup - | ssh elsewhere 'cat > hearth.tar.zst'

It has functions with their settings, variables and artifacts, and the daemon's token; not their logs.
Keep it as you keep the data directory: who can read it can read all of these.";

const RESTORE_EXAMPLES: &str = "\
Examples:
  hearth restore hearth.tar.zst
  hearth restore hearth.tar.zst --data /srv/hearth --force

No daemon may use the directory meanwhile. What --force replaces stays in its `trash` for seven days.";

const STANDARD: &str = "-";

#[derive(clap::Args)]
#[command(after_help = BACKUP_EXAMPLES)]
pub(crate) struct BackupArguments {
    /// Where to write it, readable by you alone; `-` for standard output.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    data: DataDirectory,
}

#[derive(clap::Args)]
#[command(after_help = RESTORE_EXAMPLES)]
pub(crate) struct RestoreArguments {
    /// The backup; `-` for standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace the functions that are there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) async fn back_up(
    arguments: BackupArguments,
    connection: &Connection,
) -> anyhow::Result<()> {
    let directory = arguments.data.path();
    let client = match connection.client(&arguments.data) {
        Err(error) if connection.is_local() && is_unreachable(&error) => None,
        client => Some(client?),
    };
    if arguments.file == Path::new(STANDARD) {
        if io::stdout().is_terminal() {
            let message = "a backup is not for a terminal; name a file, or pipe it";
            return Err(Fatal::new(Failure::Usage, message).into());
        }
        let mut out = Out::new();
        return match client {
            Some(client) => download(&client, &mut out).await,
            None => directly(&directory, &mut out).map(drop),
        };
    }
    let path = whole_path(&arguments.file)?;
    let file = Unfinished::beside(&path)?;
    match client {
        Some(client) => download(&client, &file.file).await?,
        None => drop(directly(&directory, &file.file)?),
    }
    file.finish(&path)?;
    eprintln!("backed up to {}", arguments.file.display());
    Ok(())
}

/// Where a backup goes: an ordinary file, through links to it. A rename would put a file in the place
/// of anything else, such as a device that the whole machine uses.
fn whole_path(file: &Path) -> anyhow::Result<PathBuf> {
    let path = match fs::canonicalize(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(paths::to_absolute(file)?);
        }
        path => path.with_context(|| format!("could not look at {}", file.display()))?,
    };
    if path.is_file() {
        return Ok(path);
    }
    let message = format!(
        "{} is not an ordinary file; name one, or pipe the backup of `hearth backup -`",
        file.display()
    );
    Err(Fatal::new(Failure::Usage, message).into())
}

fn is_unreachable(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<ClientError>(), Some(ClientError::Unreachable { .. }))
}

async fn download(client: &client::Client, mut out: impl Write) -> anyhow::Result<()> {
    let mut backup = client.backup().await?;
    while let Some(piece) = backup.chunk().await? {
        out.write_all(&piece).context("could not write the backup")?;
    }
    Ok(out.flush()?)
}

/// Without a daemon.
fn directly(directory: &Path, out: impl Write) -> anyhow::Result<BackupSummary> {
    if !directory.join("catalog.db").exists() {
        let message = format!(
            "nothing to back up: {} is no data directory of Hearth; name it with --data, or a \
             daemon with --url",
            directory.display()
        );
        return Err(Fatal::new(Failure::NoInput, message).into());
    }
    let _lock = DataLock::take(directory)?;
    platform::prepare(directory)?;
    Ok(platform::back_up(directory, out)?)
}

pub(crate) fn restore(arguments: &RestoreArguments) -> anyhow::Result<()> {
    let directory = arguments.data.path();
    let source: Box<dyn io::Read> = if arguments.file == Path::new(STANDARD) {
        Box::new(io::stdin().lock())
    } else {
        Box::new(io::BufReader::new(File::open(&arguments.file).map_err(|error| {
            let message = format!("could not read {}: {error}", arguments.file.display());
            Fatal::new(Failure::NoInput, message)
        })?))
    };
    let _lock = DataLock::take(&directory)?;
    let restored = platform::restore(&directory, source, arguments.force);
    let BackupSummary { functions, .. } = restored.map_err(|error| match &error {
        RestoreError::NotEmpty { .. } => {
            let message = format!("{error}; --force moves that to its trash, and restores");
            anyhow::Error::from(Fatal::new(Failure::Usage, message))
        }
        RestoreError::Foreign | RestoreError::Damaged(_) | RestoreError::TooNew { .. } => {
            let message = format!("{}: {error}; nothing was changed", arguments.file.display());
            Fatal::new(Failure::Source, message).into()
        }
        RestoreError::Files { .. } => error.into(),
    })?;
    let (noun, them) = if functions == 1 { ("function", "it") } else { ("functions", "them") };
    eprintln!("restored {functions} {noun} to {}; `hearth up` serves {them}", directory.display());
    Ok(())
}

/// A file that is not there under its name before all of it is.
struct Unfinished {
    file: File,
    path: PathBuf,
}

impl Unfinished {
    fn beside(path: &Path) -> anyhow::Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = path.with_file_name(name);
        let context = || format!("could not make {}", path.display());
        // What an earlier attempt has left. Made anew, so that it has nobody else's mode.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(context);
            }
            _ => {}
        }
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        match file {
            Ok(file) => Ok(Self { file, path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = path.parent().unwrap_or(&path).display();
                Err(Fatal::new(Failure::NoInput, format!("there is no folder {folder}")).into())
            }
            Err(error) => Err(error).with_context(context),
        }
    }

    fn finish(self, path: &Path) -> anyhow::Result<()> {
        let done = self.file.sync_all().and_then(|()| fs::rename(&self.path, path));
        done.with_context(|| format!("could not write {}", path.display()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It fails after the rename.
        let _ = fs::remove_file(&self.path);
    }
}
