//! `hearth top`: what functions do, from two looks at the daemon.

use std::{io::Write, time::Duration};

use api::{FunctionLoad, Status};
use model::Plain;
use tokio::time::{Instant, sleep};

use super::{
    Connection, DataDirectory,
    format::{age_seconds, micros, size},
    out::Out,
    table::{Column, Table},
};

const EXAMPLES: &str = "\
Examples:
  hearth top
  hearth top --once --interval 10s
  hearth top --json | jq -c '.load[] | {name, in_flight, waiting}'

Calls, errors and means are those of the interval; functions that were never called are not shown.";

const COLUMNS: &[Column] = &[
    Column::text("FUNCTION"),
    Column::number("CALLS/S"),
    Column::number("ERRORS/S").goes(2),
    Column::number("MEAN").goes(3),
    Column::number("IN-FLIGHT").goes(5),
    Column::number("WAITING").goes(4),
    Column::number("INSTANCES").goes(6),
    Column::trouble("TROUBLE").goes(1),
];

const HOME: &str = "\x1b[H";
const CLEAR: &str = "\x1b[2J\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Print one table and end.
    #[arg(long)]
    once: bool,
    /// How long to look, such as `500ms` or `10s`.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_interval)]
    interval: Duration,
    /// Print JSON: the daemon's status in each line; counters count from its start.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data: DataDirectory,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(3600);
    if allowed.contains(&interval) { Ok(interval) } else { Err("from 100ms to 1h".into()) }
}

pub(crate) async fn run(arguments: &Arguments, connection: &Connection) -> anyhow::Result<()> {
    tokio::select! {
        outcome = watch(arguments, connection) => outcome,
        signal = tokio::signal::ctrl_c() => Ok(signal?),
    }
}

async fn watch(arguments: &Arguments, connection: &Connection) -> anyhow::Result<()> {
    let client = connection.client(&arguments.data)?;
    let mut out = Out::new();
    let mut before = client.status().await?;
    let mut looked_at = Instant::now();
    let mut is_first = true;
    loop {
        if arguments.json {
            out.json_line(&before)?;
            if arguments.once {
                return Ok(());
            }
        }
        sleep(arguments.interval).await;
        let now = client.status().await?;
        let period = looked_at.elapsed();
        looked_at = Instant::now();
        if !arguments.json {
            draw(&mut out, &screen(&before, &now, period), arguments.once, is_first)?;
        }
        if arguments.once {
            return Ok(());
        }
        (before, is_first) = (now, false);
    }
}

struct Screen {
    summary: String,
    table: Table,
}

fn screen(before: &Status, now: &Status, period: Duration) -> Screen {
    let summary = format!(
        "hearth {}  up {}  {} functions  {} of {} instances, {} spare  {}",
        Plain(&now.version),
        age_seconds(now.uptime_seconds),
        now.functions,
        now.instances,
        now.max_instances,
        now.spares,
        size(now.memory_bytes),
    );
    let mut rows: Vec<_> = now
        .load
        .iter()
        .map(|load| {
            let earlier = before.load.iter().find(|earlier| earlier.name == load.name);
            (Change::between(earlier, load), load)
        })
        .collect();
    // Busiest first; a tie keeps its place from one screen to the next.
    rows.sort_by(|(a, x), (b, y)| (b.calls, b.errors, &x.name).cmp(&(a.calls, a.errors, &y.name)));
    let mut table = Table::new(COLUMNS);
    for (change, load) in rows {
        table.row([
            load.name.clone(),
            per_second(change.calls, period),
            per_second(change.errors, period),
            change.busy_micros.checked_div(change.calls).map(micros).unwrap_or_default(),
            load.in_flight.to_string(),
            load.waiting.to_string(),
            load.serving.to_string(),
            load.trouble.clone().unwrap_or_default(),
        ]);
    }
    Screen { summary, table }
}

/// What a function did between two looks.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    calls: u64,
    errors: u64,
    busy_micros: u64,
}

impl Change {
    /// Counters that are smaller than before began anew: with the daemon, or with the function.
    fn between(before: Option<&FunctionLoad>, now: &FunctionLoad) -> Self {
        let before = before.filter(|before| before.calls <= now.calls);
        let since = |counter: fn(&FunctionLoad) -> u64| {
            counter(now).saturating_sub(before.map_or(0, counter))
        };
        Self {
            calls: since(|load| load.calls),
            errors: since(|load| load.errors),
            busy_micros: since(|load| load.busy_micros),
        }
    }
}

/// With one decimal, by whole numbers.
fn per_second(count: u64, period: Duration) -> String {
    let millis = period.as_millis().max(1);
    let tenths = (u128::from(count) * 10_000 + millis / 2) / millis;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn draw(out: &mut Out, screen: &Screen, is_once: bool, is_first: bool) -> anyhow::Result<()> {
    let text = format!("{}\n\n{}", screen.summary, screen.table.fit(out.width(), false));
    match out.size().filter(|_| !is_once) {
        Some((columns, rows)) => {
            // One line less than there are: the cursor's.
            let lines: String = text
                .lines()
                .take(usize::from(rows).saturating_sub(1))
                .map(|line| line.chars().take(columns.into()).collect::<String>())
                .map(|line| format!("{line}{CLEAR_LINE}\n"))
                .collect();
            let start = if is_first { CLEAR } else { HOME };
            write!(out, "{start}{lines}{CLEAR_BELOW}")?;
        }
        None => write!(out, "{text}")?,
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(calls: u64, errors: u64, busy_micros: u64) -> FunctionLoad {
        FunctionLoad { name: "a".into(), calls, errors, busy_micros, ..FunctionLoad::default() }
    }

    #[test]
    fn a_change_is_what_was_added_and_a_restart_begins_at_zero() {
        let expected = Change { calls: 2, errors: 1, busy_micros: 40 };
        assert_eq!(Change::between(Some(&load(5, 1, 60)), &load(7, 2, 100)), expected);
        assert_eq!(Change::between(None, &load(2, 1, 40)), expected);
        assert_eq!(Change::between(Some(&load(9, 9, 900)), &load(2, 1, 40)), expected);
    }

    #[test]
    fn rates_are_of_the_interval() {
        assert_eq!(per_second(3, Duration::from_secs(2)), "1.5");
        assert_eq!(per_second(0, Duration::ZERO), "0.0");
        assert_eq!(per_second(1, Duration::from_millis(300)), "3.3");
        assert_eq!(per_second(50_000, Duration::from_secs(1)), "50000.0");
    }
}
