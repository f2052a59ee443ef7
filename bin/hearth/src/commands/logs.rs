//! `hearth logs`: what a function wrote, and how its calls went.

mod seen;

use std::{
    io::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use api::LogQuery;
use clap_complete::ArgValueCandidates;
use client::{Client, ClientError, Lines};
use logs::CallPart;
use model::{CallEnd, FunctionName, LogEvent, LogLine, LogSource, Outcome, PlainLines};
use seen::Seen;
use tokio::time::{Instant, sleep};

use super::{
    Connection, DataDirectory, completions,
    format::{micros, timestamp},
    out::Out,
};
use crate::color::Meaning;

/// How many old lines somebody sees who follows a log, unless they say.
const FOLLOWED: usize = 100;
/// All that a daemon gives at once, so that nothing is left out between two connections.
const ALL: usize = 100_000;
/// How long a daemon is waited for that has ended.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  hearth logs hello --since 10m
  hearth logs hello --follow
  hearth logs hello --tail 20
  hearth logs hello --call 456789ab
  hearth logs hello --json | jq 'select(.event == \"end\" and .outcome != \"served\")'

With --follow, a daemon that ends is waited for, for ten minutes: then the log goes on where it was
left, and a note on standard error says so.

Each line has a time in UTC, the end of the call's id, where it comes from and what it says. The last
line of a call has its whole id.

Control characters are shown as escapes such as \\x1b, and further lines of an entry are marked with
`|`, on a terminal and in a pipe: what a function writes can neither move the cursor nor pass for an
entry of its own. --raw prints what was written as it is.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The function.
    #[arg(add = ArgValueCandidates::new(completions::functions))]
    name: FunctionName,
    /// Go on with new lines as they come, until ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// Only what this call wrote: its id, or the beginning or end of it that no other call in the log
    /// has. Replies name it in the header `x-hearth-call`.
    #[arg(long, value_name = "ID", value_parser = parse_call)]
    call: Option<String>,
    /// Only what is newer: a duration such as `10m`, or a time such as `2026-11-20T13:00:00Z`.
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<u64>,
    /// The newest so many lines [default: 1000; with --follow and without --since 100].
    #[arg(short = 'n', long, alias = "limit", value_name = "N")]
    tail: Option<usize>,
    /// Print JSON: a log line in each line.
    #[arg(long)]
    json: bool,
    /// Print what was written as it is, control characters and line ends included.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    #[command(flatten)]
    data: DataDirectory,
}

/// The daemon knows which call is meant; mistakes show before it is asked.
fn parse_call(text: &str) -> Result<String, logs::InvalidCallPart> {
    text.parse::<CallPart>().map(|_| text.into())
}

/// Milliseconds since 1970.
fn parse_since(text: &str) -> Result<u64, String> {
    let time = match humantime::parse_duration(text) {
        Ok(ago) => SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH),
        Err(_) => humantime::parse_rfc3339_weak(text)
            .map_err(|_| "write it like `10m` or like `2026-11-20T13:00:00Z`")?,
    };
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).map_err(|error| error.to_string())
}

pub(crate) async fn run(arguments: Arguments, connection: &Connection) -> anyhow::Result<()> {
    let usual = (arguments.follow && arguments.since.is_none()).then_some(FOLLOWED);
    let query = LogQuery {
        call: arguments.call.clone(),
        since: arguments.since,
        limit: arguments.tail.or(usual),
        follow: arguments.follow,
    };
    let client = connection.client(&arguments.data)?;
    let mut lines = client.logs(&arguments.name, &query).await?;
    let mut printer = Printer { out: Out::new(), is_json: arguments.json, is_raw: arguments.raw };
    let mut seen = Seen::default();
    loop {
        let ended = loop {
            match lines.next().await {
                Ok(Some(line)) if arguments.follow && !seen.is_new(&line) => {}
                Ok(Some(line)) => printer.print(&line)?,
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        match ended {
            Some(error) if !(arguments.follow && is_passing(&error)) => return Err(error.into()),
            None if !arguments.follow => return Ok(()),
            _ => {}
        }
        remark("the daemon ended the log; waiting for it");
        let (since, limit) = (seen.since().or(query.since), Some(ALL));
        let again = LogQuery { since, limit, ..query.clone() };
        lines = reconnect(&client, &arguments.name, &again).await?;
        seen.begin_again();
        remark("the daemon is back; the log goes on");
    }
}

/// A remark that is no error.
fn remark(text: &str) {
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "note: {text}");
}

/// Asks until somebody answers, more and more rarely.
async fn reconnect(
    client: &Client,
    name: &FunctionName,
    query: &LogQuery,
) -> Result<Lines<LogLine>, ClientError> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = SHORTEST_PAUSE;
    loop {
        sleep(pause).await;
        match client.logs(name, query).await {
            Err(error) if is_passing(&error) && Instant::now() < deadline => {}
            answer => return answer,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether it is what happens while a daemon is started again.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. }
        | ClientError::Silent { .. }
        | ClientError::Broken { .. }
        // The last line was cut off, or something in between answers for the daemon.
        | ClientError::Malformed(_)
        | ClientError::NotHearth { status: 502..=504, .. } => true,
        ClientError::Refused { status, .. } => *status == 503,
        _ => false,
    }
}

struct Printer {
    out: Out,
    is_json: bool,
    is_raw: bool,
}

impl Printer {
    fn print(&mut self, line: &LogLine) -> anyhow::Result<()> {
        if self.is_json {
            return self.out.json_line(line);
        }
        let text = text(line);
        if self.is_raw {
            writeln!(self.out, "{text}")?;
        } else {
            // Below what an entry says.
            let mark = format!("{:TEXT$}| ", "");
            let mut text = PlainLines { text: &text, mark: &mark }.to_string();
            // Everything before that column is ours, and ASCII.
            if is_trouble(line) && self.out.is_colored() {
                let word = Meaning::Bad.paint(&text[SOURCE..TEXT]);
                text.replace_range(SOURCE..TEXT, &word);
            }
            writeln!(self.out, "{text}")?;
        }
        Ok(())
    }
}

/// The column before the one in which entries begin, less the mark's own two.
const TEXT: usize = SOURCE + 6;
/// The column in which it says where a line comes from.
const SOURCE: usize = 24 + 2 + 8 + 2;

fn is_trouble(line: &LogLine) -> bool {
    match &line.event {
        LogEvent::Entry { stream, .. } => matches!(stream, LogSource::Error | LogSource::Stderr),
        LogEvent::Note { .. } => false,
        LogEvent::End(end) => {
            end.outcome != Outcome::Served || end.status.is_some_and(|status| status >= 500)
        }
    }
}

fn text(line: &LogLine) -> String {
    // An id begins with the time, so calls that run together differ only in the end of theirs.
    let call = line.call.map(|call| call.to_string());
    let tag = call.as_deref().map_or("-", |call| &call[call.len() - 8..]);
    let start = format!("{}  {tag:<8}", timestamp(line.at));
    match &line.event {
        LogEvent::Entry { stream, text } => format!("{start}  {:<6}  {text}", source(*stream)),
        LogEvent::Note { text } => format!("{start}  {:<6}  {text}", "note"),
        LogEvent::End(end) => {
            let call = call.unwrap_or_default();
            format!("{start}  {:<6}  {}  {call}", "end", summary(end))
        }
    }
}

fn source(stream: LogSource) -> &'static str {
    match stream {
        LogSource::Log => "log",
        LogSource::Error => "error",
        LogSource::Stdout => "stdout",
        LogSource::Stderr => "stderr",
    }
}

fn summary(end: &CallEnd) -> String {
    let CallEnd { method, path, outcome, status, error, phases, instance: _ } = end;
    let took = micros(phases.iter().fold(0, |sum, phase| sum.saturating_add(*phase)));
    let status = status.map_or(String::new(), |status| format!(" {status}"));
    let error = error.as_ref().map_or(String::new(), |error| format!(": {error}"));
    format!("{method} {path}{status} {outcome} in {took}{error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_be_relative_or_not() {
        assert_eq!(parse_since("1970-01-01T00:00:01Z"), Ok(1000));
        assert_eq!(parse_since("1970-01-02 00:00:00"), Ok(86_400_000));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later").as_millis();
        let hour_ago = parse_since("1h").expect("a duration");
        assert!(u128::from(hour_ago) <= now - 3_599_000, "{hour_ago}");
        for text in ["", "yesterday", "10"] {
            parse_since(text).expect_err(text);
        }
    }
}
