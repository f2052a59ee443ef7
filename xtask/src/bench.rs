//! The benchmarks: what Hearth costs, beside its peers and beside the floor, in interleaved rounds.
//!
//! Each question is a table and a part of one JSON document. Nothing here judges a figure; what a
//! figure should be is said, and checked by eye, elsewhere. Everything that is measured runs with
//! nothing but a search path in its environment.

mod churn;
mod first_byte;
mod floor;
mod language;
mod machine;
mod memory;
mod report;
mod rounds;
mod sandboxes;
mod servers;
mod stage;
mod up;
mod warm;

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    language::{LANGUAGES, Language},
    report::Question,
    servers::Site,
    stage::Stage,
};

/// What every measured server answers.
const EXPECTED_BODY: &str = "Hello, World!";
/// The exit code of a program that a Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Measures Hearth beside its peers.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Two short rounds, to see whether everything works
    #[arg(long)]
    quick: bool,
    /// How many rounds there are
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    rounds: Option<u8>,
    /// How long a round is
    #[arg(long, value_name = "S", value_parser = crate::positive)]
    seconds: Option<f64>,
    /// Only sections whose name starts like this, e.g. `warm` or `warm-node`
    #[arg(long, num_args = 1.., value_name = "NAME")]
    only: Vec<String>,
    /// Where the figures go as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The program to measure [default: target/release/hearth]
    #[arg(long, value_name = "PATH")]
    hearth: Option<PathBuf>,
    /// Where Hearth's instances run [default: what `hearth serve` chooses]
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
}

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Effort {
    rounds: usize,
    round: Duration,
    warm_up: Duration,
    /// How often a fresh instance is called.
    samples: usize,
    /// How often many call at once.
    bursts: usize,
    /// How many instances there is room for where there are more functions.
    room: usize,
    /// How many functions exist where most are not called.
    registered: usize,
}

const FULL: Effort = Effort {
    rounds: 5,
    round: Duration::from_secs(3),
    warm_up: Duration::from_secs(1),
    samples: 100,
    bursts: 12,
    room: 100,
    registered: 10_000,
};
const QUICK: Effort = Effort {
    rounds: 2,
    round: Duration::from_millis(300),
    warm_up: Duration::from_millis(100),
    samples: 10,
    bursts: 2,
    room: 4,
    registered: 100,
};

type Measure = fn(&Site, &Language, &Effort, &mut dyn FnMut(Question)) -> anyhow::Result<()>;

/// What can be asked, for each language.
const SECTIONS: [(&str, Measure); 11] = [
    ("warm", warm::measure),
    ("first-byte", first_byte::measure),
    ("churn", churn::measure),
    ("memory", memory::measure),
    ("up-warm", up::warm::measure),
    ("up-cold", up::cold::measure),
    ("up-burst", up::burst::measure),
    ("up-many", up::many::measure),
    ("up-registered", up::registered::measure),
    ("up-churn", up::churn::measure),
    ("up-neighbours", up::neighbours::measure),
];

/// Runs what was asked for, prints tables as they come and writes JSON at the end.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let sections = select(&arguments.only)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has a parent")?;
    let hearth = arguments.hearth.unwrap_or_else(|| root.join("target/release/hearth"));
    let mut effort = if arguments.quick { QUICK } else { FULL };
    effort.rounds = arguments.rounds.map_or(effort.rounds, usize::from);
    if let Some(seconds) = arguments.seconds {
        effort.round = Duration::try_from_secs_f64(seconds).context("--seconds")?;
    }
    let stage = Stage::new(root.join(format!("target/bench-{}", process::id())))?;
    clear_on_signal(&stage)?;
    let site = Site { root: root.to_owned(), hearth, adapter: arguments.adapter, stage };

    let outcome = answer(&site, sections, &effort, arguments.json.as_deref());
    // Also waits for an interruption that is clearing already.
    site.stage.clear();
    outcome
}

fn answer(
    site: &Site,
    sections: Vec<(Measure, &Language)>,
    effort: &Effort,
    json: Option<&Path>,
) -> anyhow::Result<()> {
    let machine = machine::describe(&site.root, &site.hearth);
    println!("{machine:#}");
    println!("median (least–most) of {} rounds of {:?}", effort.rounds, effort.round);
    let mut questions = Vec::new();
    for (measure, language) in sections {
        measure(site, language, effort, &mut |question| {
            print!("{}", question.table());
            questions.push(question.json());
        })?;
    }
    if let Some(file) = json {
        let rounds = json!({ "count": effort.rounds, "seconds": effort.round.as_secs_f64() });
        let all = json!({
            "machine": machine,
            "adapter": site.adapter,
            "rounds": rounds,
            "questions": questions,
        });
        fs::write(file, format!("{all:#}\n"))
            .with_context(|| format!("write `{}`", file.display()))?;
    }
    Ok(())
}

/// The sections that `only` names, all of them if it names none.
fn select(only: &[String]) -> anyhow::Result<Vec<(Measure, &'static Language)>> {
    let all = SECTIONS.iter().flat_map(|(section, measure)| {
        LANGUAGES
            .iter()
            .map(move |language| (format!("{section}-{}", language.name), *measure, language))
    });
    let all: Vec<_> = all.collect();
    if let Some(unknown) =
        only.iter().find(|one| !all.iter().any(|(name, ..)| name.starts_with(*one)))
    {
        let names: Vec<_> = all.iter().map(|(name, ..)| name.as_str()).collect();
        bail!("there is no section `{unknown}`, only {}", names.join(", "));
    }
    let is_wanted = |name: &str| only.is_empty() || only.iter().any(|one| name.starts_with(one));
    let wanted = all.into_iter().filter(|(name, ..)| is_wanted(name));
    Ok(wanted.map(|(_, measure, language)| (measure, language)).collect())
}

/// Leaves nothing behind when the benchmark is told to stop.
fn clear_on_signal(stage: &Arc<Stage>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("set up signal handling")?;
    let stage = Arc::downgrade(stage);
    let [mut interrupt, mut terminate] = runtime
        .block_on(async {
            std::io::Result::Ok([
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            ])
        })
        .context("listen for signals")?;
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        if let Some(stage) = stage.upgrade() {
            stage.clear();
        }
        process::exit(INTERRUPTED);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_chosen_by_the_start_of_their_name() {
        let count = |only: &[&str]| {
            let only: Vec<_> = only.iter().map(|&name| name.to_owned()).collect();
            select(&only).map(|sections| sections.len()).map_err(|error| error.to_string())
        };
        assert_eq!(count(&[]), Ok(SECTIONS.len() * LANGUAGES.len()));
        assert_eq!(count(&["warm"]), Ok(2));
        assert_eq!(count(&["warm-python"]), Ok(1));
        assert_eq!(count(&["warm", "warm-node"]), Ok(2), "each at most once");
        assert!(count(&["tepid"]).is_err_and(|error| error.contains("warm-node")));
    }
}
