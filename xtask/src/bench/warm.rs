//! Warm calls: how long one takes and how many fit into a second, beside the peers and the floor.

use std::{cell::RefCell, time::Duration};

use super::{
    Effort,
    floor::Floor,
    language::Language,
    report::{Column, Comparison, FAILED, Operation, Question},
    rounds::{Contender, interleave},
    servers::{Endpoint, HearthOptions, LogPlace, Site},
};
use crate::{
    affinity::Pinned,
    load::{self, Outcome, Plan},
    schedule::Pace,
};

/// The label of the worker called directly.
const FLOOR: &str = "worker alone";
/// Switches a call's log files off.
pub(super) const LOGS_OFF: &str = "x-open-runtimes-logging: disabled";
/// The connections of the throughput questions.
const MANY: u16 = 16;
/// The processor that pinned servers and the generator share.
pub(super) const CORE: usize = 0;
/// How much of its own maximum a server is offered in an open loop.
const OPEN_LOOP_SHARE: f64 = 0.5;

pub(super) const CLOSED: &[Column] = &[
    Column { key: "p50_us", heading: "p50 µs", decimals: 1 },
    Column { key: "p99_us", heading: "p99 µs", decimals: 0 },
    Column { key: "per_second", heading: "calls/s", decimals: 0 },
    FAILED,
];

const OPEN: &[Column] = &[
    Column { key: "offered_per_second", heading: "offered/s", decimals: 0 },
    Column { key: "p50_us", heading: "p50 µs", decimals: 1 },
    Column { key: "p99_us", heading: "p99 µs", decimals: 0 },
    Column { key: "p999_us", heading: "p99.9 µs", decimals: 0 },
    Column { key: "max_us", heading: "max µs", decimals: 0 },
    FAILED,
];

/// A way of calling a server: a row of the tables.
pub(super) struct Lane<'a> {
    pub(super) label: &'static str,
    pub(super) endpoint: Result<&'a Endpoint, &'a str>,
    pub(super) path: &'static str,
    pub(super) headers: Vec<String>,
}

impl Lane<'_> {
    fn plan(
        &self,
        connections: u16,
        duration: Duration,
        core: Option<usize>,
    ) -> anyhow::Result<Plan> {
        let endpoint = self.endpoint.map_err(|reason| anyhow::anyhow!("{reason}"))?;
        let (target, request) = endpoint.request(self.path, &self.headers)?;
        Ok(Plan {
            address: target.address,
            requests: vec![request],
            connections: usize::from(connections),
            duration,
            pace: Pace::Closed,
            core,
        })
    }

    /// This lane with what `measure` makes of its plan, unless its server is missing.
    fn contender<'a>(
        &self,
        plan: anyhow::Result<Plan>,
        mut measure: impl FnMut(&Plan) -> anyhow::Result<Vec<f64>> + 'a,
    ) -> Contender<'a> {
        match plan {
            Ok(plan) => Contender::new(self.label, move || measure(&plan)),
            Err(reason) => Contender::skipped(self.label, reason),
        }
    }
}

/// Answers the questions about one language, each as soon as it is known.
pub(crate) fn measure(
    site: &Site,
    language: &Language,
    effort: &Effort,
    answer: &mut dyn FnMut(Question),
) -> anyhow::Result<()> {
    for core in [None, Some(CORE)] {
        let place = Place { section: "warm", site, language, effort, core };
        place.measure(answer)?;
    }
    Ok(())
}

/// One language on all processors or on one.
pub(super) struct Place<'a> {
    /// What the names of its questions begin with.
    pub(super) section: &'static str,
    pub(super) site: &'a Site,
    pub(super) language: &'a Language,
    pub(super) effort: &'a Effort,
    pub(super) core: Option<usize>,
}

impl Place<'_> {
    fn measure(&self, answer: &mut dyn FnMut(Question)) -> anyhow::Result<()> {
        // Servers inherit the restriction of the thread that starts them.
        let pinned = self.core.map(Pinned::to).transpose()?;
        let bare = self.site.bare(self.language, &self.question("bare"));
        let framework = self.site.functions_framework(self.language, &self.question("framework"));
        let with_logs = |place| HearthOptions { logs: Some(place), ..HearthOptions::default() };
        let hearth =
            |name, place| self.site.hearth(self.language, &self.question(name), with_logs(place));
        let (memory, disk) = (hearth("hearth", LogPlace::Memory), hearth("disk", LogPlace::Disk));
        let floor =
            Floor::start(&self.site.stage, &self.site.root, self.language, &self.question("floor"));
        drop(pinned);

        let [bare, framework, hearth, disk] = [bare, framework, memory, disk]
            .map(|server| server.map_err(|error| format!("{error:#}")));
        let lanes = [
            lane_to(self.language.bare, &bare),
            lane_to("functions-framework", &framework),
            lane_to("hearth, logs on", &hearth),
            lane_to("hearth, logs on disk", &disk),
            Lane { path: "/log", ..lane_to("hearth, one line logged", &hearth) },
            Lane { headers: vec![LOGS_OFF.to_owned()], ..lane_to("hearth, logs off", &hearth) },
        ];
        let floor = floor.map(RefCell::new).map_err(|error| format!("{error:#}"));

        self.warm_up(&lanes, &floor);
        answer(self.closed(1, &lanes, &floor));
        let throughput = self.closed(MANY, &lanes, &floor);
        let tails = self.open(&lanes, &throughput);
        answer(throughput);
        answer(tails);
        Ok(())
    }

    /// Lets every just-in-time compiler see its code before it counts.
    pub(super) fn warm_up(&self, lanes: &[Lane<'_>], floor: &Result<RefCell<Floor>, String>) {
        // Whoever fails here fails again where it is reported.
        for lane in lanes {
            let _ =
                lane.plan(MANY, self.effort.warm_up, self.core).and_then(|plan| load::run(&plan));
        }
        if let Ok(floor) = floor {
            let _ = floor.borrow_mut().run(MANY, self.effort.warm_up, self.core);
        }
    }

    pub(super) fn closed(
        &self,
        connections: u16,
        lanes: &[Lane<'_>],
        floor: &Result<RefCell<Floor>, String>,
    ) -> Question {
        let round = self.effort.round;
        let mut contenders = vec![match floor {
            Ok(floor) => Contender::new(FLOOR, move || {
                Ok(closed_figures(&floor.borrow_mut().run(connections, round, self.core)?))
            }),
            Err(reason) => Contender::skipped(FLOOR, reason),
        }];
        contenders.extend(lanes.iter().map(|lane| {
            lane.contender(lane.plan(connections, round, self.core), |plan| {
                Ok(closed_figures(&load::run(plan)?))
            })
        }));
        let compare = |key, operation, to| Comparison { key, operation, to };
        let comparisons = match connections {
            1 => vec![
                compare("p50_us", Operation::Difference, FLOOR),
                compare("p99_us", Operation::Difference, FLOOR),
                compare("p50_us", Operation::Ratio, self.language.bare),
            ],
            _ => vec![
                compare("per_second", Operation::Ratio, self.language.bare),
                compare("per_second", Operation::Ratio, FLOOR),
            ],
        };
        Question {
            name: self.question(&format!("c{connections}")),
            title: self.title(&format!("closed loop, {connections} connection(s)")),
            columns: CLOSED,
            comparisons,
            rows: interleave(self.effort.rounds, contenders),
        }
    }

    fn open(&self, lanes: &[Lane<'_>], throughput: &Question) -> Question {
        let contenders = lanes.iter().map(|lane| {
            let Some(maximum) = throughput.median(lane.label, "per_second") else {
                return Contender::skipped(lane.label, "its maximum is not known");
            };
            let per_second = maximum * OPEN_LOOP_SHARE;
            let plan = lane.plan(MANY, self.effort.round, self.core);
            let plan = plan.map(|plan| Plan { pace: Pace::Open { per_second }, ..plan });
            lane.contender(plan, move |plan| Ok(open_figures(per_second, &load::run(plan)?)))
        });
        Question {
            name: self.question("open"),
            title: self.title("open loop at half of each one's maximum, 16 connections"),
            columns: OPEN,
            comparisons: vec![Comparison {
                key: "p99_us",
                operation: Operation::Ratio,
                to: self.language.bare,
            }],
            rows: interleave(self.effort.rounds, contenders.collect()),
        }
    }

    pub(super) fn question(&self, kind: &str) -> String {
        format!("{}-{}-{kind}{}", self.section, self.language.name, self.suffix())
    }

    fn title(&self, kind: &str) -> String {
        let place = if self.core.is_some() {
            "server and generator on one processor"
        } else {
            "not pinned"
        };
        format!("Warm calls, {}: {kind}, {place}", self.language.title)
    }

    fn suffix(&self) -> &'static str {
        if self.core.is_some() { "-pinned" } else { "" }
    }
}

pub(super) fn lane_to<'a>(label: &'static str, server: &'a Result<Endpoint, String>) -> Lane<'a> {
    let endpoint = server.as_ref().map_err(String::as_str);
    Lane { label, endpoint, path: "/", headers: Vec::new() }
}

pub(super) fn closed_figures(outcome: &Outcome) -> Vec<f64> {
    let summary = outcome.latencies.summary();
    vec![summary.p50_us, summary.p99_us, outcome.per_second(), outcome.failures.total().into()]
}

fn open_figures(per_second: f64, outcome: &Outcome) -> Vec<f64> {
    let summary = outcome.latencies.summary();
    vec![
        per_second,
        summary.p50_us,
        summary.p99_us,
        summary.p999_us,
        summary.max_us,
        outcome.failures.total().into(),
    ]
}
