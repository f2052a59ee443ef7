//! More functions than there is room for instances, called in random order.

use serde_json::json;
use tokio::time::Instant;

use super::{
    MIXED,
    daemon::{Daemon, Options, Source, names},
    mixed_figures,
};
use crate::{
    bench::{
        Effort,
        language::Language,
        report::{Column, Question},
        rounds::{Contender, interleave},
        servers::Site,
    },
    load::{self, Plan},
    schedule::Pace,
};

/// So many times the functions there is room for are deployed.
const CROWD: usize = 10;
const CONNECTIONS: usize = 16;
/// More than are called in a round of cold calls; a round of warm ones goes through them again.
const CALLS: usize = 20_000;

const COLUMNS: [Column; 7] = {
    let [a, b, c, d, e, f] = MIXED;
    [Column { key: "deployed_per_second", heading: "deployed/s", decimals: 1 }, a, b, c, d, e, f]
};

/// Answers the question about one language.
pub(crate) fn measure(
    site: &Site,
    language: &Language,
    effort: &Effort,
    answer: &mut dyn FnMut(Question),
) -> anyhow::Result<()> {
    let name = format!("up-many-{}", language.name);
    let functions = names(effort.room * CROWD);
    let label = format!("{} functions", functions.len());
    let contender = match start(site, language, effort, &name, &functions) {
        Ok((daemon, deployed_per_second)) => {
            let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
            Contender::new(label, move || {
                let drawn = (0..CALLS).map(|_| &functions[dice.roll(functions.len())]);
                let requests = drawn.map(|function| Ok(daemon.call(function)?.1));
                let requests = requests.collect::<anyhow::Result<Vec<_>>>()?;
                let before = daemon.started()?;
                let outcome = load::run(&Plan {
                    address: daemon.call(&functions[0])?.0.address,
                    requests,
                    connections: CONNECTIONS,
                    duration: effort.round,
                    pace: Pace::Closed,
                    core: None,
                })?;
                let started = daemon.started()?.since(before);
                let mut figures = vec![deployed_per_second];
                figures.extend(mixed_figures(&outcome, started.total()));
                Ok(figures)
            })
        }
        Err(reason) => Contender::skipped(label, format!("{reason:#}")),
    };
    answer(Question {
        name,
        title: format!(
            "Functions called in random order, {}, room for {}, {CONNECTIONS} connections",
            language.title, effort.room
        ),
        columns: &COLUMNS,
        comparisons: Vec::new(),
        rows: interleave(effort.rounds, vec![contender]),
    });
    Ok(())
}

fn start(
    site: &Site,
    language: &Language,
    effort: &Effort,
    name: &str,
    functions: &[String],
) -> anyhow::Result<(Daemon, f64)> {
    let max_instances = Some(u32::try_from(effort.room)?);
    let daemon = Daemon::start(site, name, Options { max_instances, ..Options::default() })?;
    let begun = Instant::now();
    daemon.deploy_all(functions, &Source::of(site, language)?, &json!({}))?;
    #[expect(clippy::cast_precision_loss, reason = "thousands of functions")]
    let deployed_per_second = functions.len() as f64 / begun.elapsed().as_secs_f64();
    Ok((daemon, deployed_per_second))
}

/// The same numbers every time, in an order that nobody would guess (xorshift).
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 32).unwrap_or(0) % sides
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_show_every_side_about_as_often() {
        let mut dice = Dice(1);
        let mut seen = [0; 10];
        (0..10_000).for_each(|_| seen[dice.roll(10)] += 1);
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
    }
}
