//! How many instances the platform creates, calls once and destroys in a second: functions take
//! turns for fewer places than there are functions.

use serde_json::json;

use super::{
    MIXED,
    daemon::{Daemon, Options, Source, names},
    mixed_figures,
};
use crate::{
    bench::{
        Effort,
        language::Language,
        report::Question,
        rounds::{Contender, interleave},
        servers::Site,
    },
    load::{self, Plan},
    schedule::Pace,
};

/// When a function's turn comes again, others have had its place.
const FUNCTIONS: usize = 48;
const PLACES: u32 = 16;
const CLIENTS: [usize; 2] = [4, 8];

/// Answers the questions about one language.
pub(crate) fn measure(
    site: &Site,
    language: &Language,
    effort: &Effort,
    answer: &mut dyn FnMut(Question),
) -> anyhow::Result<()> {
    let lanes = [("no spares", Some(0)), ("up to 8 spares", None)].map(|(label, spares)| {
        let name = format!("up-churn-{}-{}", language.name, spares.map_or("spares", |_| "none"));
        (label, start(site, language, &name, spares))
    });
    for clients in CLIENTS {
        let contenders = lanes.iter().map(|(label, daemon)| match daemon {
            Ok(daemon) => Contender::new(*label, move || {
                let requests = names(FUNCTIONS).into_iter().map(|name| Ok(daemon.call(&name)?.1));
                let requests = requests.collect::<anyhow::Result<_>>()?;
                let before = daemon.started()?;
                let outcome = load::run(&Plan {
                    address: daemon.target("any")?.address,
                    requests,
                    connections: clients,
                    duration: effort.round,
                    pace: Pace::Closed,
                    core: None,
                })?;
                Ok(mixed_figures(&outcome, daemon.started()?.since(before).total()))
            }),
            Err(reason) => Contender::skipped(*label, format!("{reason:#}")),
        });
        answer(Question {
            name: format!("up-churn-{}-c{clients}", language.name),
            title: format!(
                "Instances created, called once and destroyed, {}: {FUNCTIONS} functions in turn, \
                 room for {PLACES}, {clients} clients",
                language.title
            ),
            columns: &MIXED,
            comparisons: Vec::new(),
            rows: interleave(effort.rounds, contenders.collect()),
        });
    }
    Ok(())
}

fn start(
    site: &Site,
    language: &Language,
    name: &str,
    max_spares: Option<u32>,
) -> anyhow::Result<Daemon> {
    let daemon = Daemon::start(site, name, Options { max_instances: Some(PLACES), max_spares })?;
    daemon.deploy_all(&names(FUNCTIONS), &Source::of(site, language)?, &json!({}))?;
    Ok(daemon)
}
