//! `hearth man`: the help as manual pages.

use std::{fs, io::Write, path::PathBuf};

use anyhow::Context;
use clap::CommandFactory;

use super::out::Out;

const EXAMPLES: &str = "\
Examples:
  hearth man /usr/local/share/man/man1
  hearth man ./man && man ./man/hearth-deploy.1

Writes hearth.1 and a page for each command, and prints their paths. Pages that are there are written
anew.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The folder; it is made if it is not there.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let directory = &arguments.directory;
    fs::create_dir_all(directory)
        .with_context(|| format!("could not make {}", directory.display()))?;
    let mut program = crate::Arguments::command().disable_help_subcommand(true);
    program.build();
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set());
    let mut out = Out::new();
    for page in commands.chain([&program]) {
        let path = clap_mangen::Man::new(page.clone()).generate_to(directory);
        let path = path.with_context(|| format!("could not write to {}", directory.display()))?;
        writeln!(out, "{}", path.display())?;
    }
    Ok(())
}
