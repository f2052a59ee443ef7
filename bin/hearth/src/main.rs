//! Hearth runs functions. This is the program: it reads what the user asked for, builds the parts,
//! runs them and shuts them down. The only place where adapters and protocols are chosen by name.

// Before all others, which use its macros.
#[macro_use]
mod say;

mod color;
mod commands;
mod doctor;
mod exit;
mod first;
mod output;
mod parts;
mod paths;
mod project;
mod runtimes;
mod serve;
mod source;
mod state;
mod supervisor;
mod trial;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use telemetry::Format;

/// Runs functions written for Node.js and Python: isolated, fast.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = exit::HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Say more on standard error; twice for everything.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// When output has colours; `auto` is on terminals, unless NO_COLOR is set.
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value = "auto")]
    color: color::When,
    #[command(flatten)]
    connection: commands::Connection,
}

#[derive(Subcommand)]
enum Command {
    /// Run the platform: deploy functions to it, call them, follow what they do.
    Up(Box<up::Arguments>),
    /// Serve one function over HTTP, as an Open Runtimes v5 server.
    Serve(Box<serve::Arguments>),
    /// Say what this machine supports, which guarantees that gives, and what to do about the rest.
    Doctor(doctor::Arguments),
    /// List languages and versions: offered, found, missing and how to get them.
    Runtimes(runtimes::Arguments),
    /// Print the version of this program.
    Version,
    #[command(flatten)]
    Client(commands::Command),
}

const FIRST: &str = "nothing has logged yet";

fn main() -> ExitCode {
    // Before anything else: the launcher must stay single-threaded and small.
    match std::env::args_os().nth(1) {
        Some(word) if word == parts::LAUNCHER => return adapter_sandbox::launcher_main(),
        Some(word) if word == supervisor::ARGUMENT => return supervisor::main(),
        _ => {}
    }
    // A shell that completes a line gets its answer, and the program ends.
    commands::answer_shell();
    let program = Arguments::command().color(color::When::of_line());
    let arguments = program.clone().try_get_matches();
    let arguments = arguments.and_then(|matches| {
        let arguments = Arguments::from_arg_matches(&matches)?;
        if !matches!(arguments.command, Command::Client(_)) {
            commands::refuse_connection(&program, &matches)?;
        }
        Ok(arguments)
    });
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => return exit::usage(error, program),
    };
    if first::is_first() && matches!(arguments.command, Command::Up(_) | Command::Serve(_)) {
        return first::main();
    }
    arguments.color.choose();
    let verbosity = arguments.verbose;
    match arguments.command {
        // Its settings say how it logs.
        Command::Up(_) => {}
        Command::Serve(_) => {
            telemetry::start_daemon_logging(Format::Text, verbosity).expect(FIRST);
        }
        _ => telemetry::start_logging(Format::Text, verbosity).expect(FIRST),
    }
    let outcome = match arguments.command {
        Command::Up(arguments) => up::run(&arguments, verbosity),
        Command::Serve(arguments) => serve::run(*arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Runtimes(arguments) => runtimes::run(&arguments),
        Command::Version => commands::version(),
        Command::Client(command) => command.run(&arguments.connection, verbosity > 0),
    };
    let code = exit::report(outcome);
    telemetry::finish_logging();
    code
}
