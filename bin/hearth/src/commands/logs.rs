//! `hearth logs`: what a function wrote, and how its calls went.

use std::{
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use api::LogQuery;
use logs::CallPart;
use model::{CallEnd, FunctionName, LogEvent, LogLine, LogSource, PlainLines};

use super::{
    Connection, DataDirectory,
    format::{micros, timestamp},
    out::Out,
};

const EXAMPLES: &str = "\
Examples:
  hearth logs hello --since 10m
  hearth logs hello --follow
  hearth logs hello --call 456789ab
  hearth logs hello --json | jq 'select(.event == \"end\" and .outcome != \"served\")'

Each line has a time in UTC, the end of the call's id, where it comes from and what it says. The last
line of a call has its whole id.

Control characters are shown as escapes such as \\x1b, and further lines of an entry are marked with
`|`, on a terminal and in a pipe: what a function writes can neither move the cursor nor pass for an
entry of its own. --raw prints what was written as it is.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The function.
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
    /// The newest so many lines [default: 1000].
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
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
    let query = LogQuery {
        call: arguments.call,
        since: arguments.since,
        limit: arguments.limit,
        follow: arguments.follow,
    };
    let mut lines = connection.client(&arguments.data)?.logs(&arguments.name, &query).await?;
    let mut out = Out::new();
    // Below what an entry says.
    let mark = format!("{:TEXT$}| ", "");
    while let Some(line) = lines.next().await? {
        if arguments.json {
            out.json_line(&line)?;
        } else if arguments.raw {
            writeln!(out, "{}", text(&line))?;
        } else {
            writeln!(out, "{}", PlainLines { text: &text(&line), mark: &mark })?;
        }
    }
    Ok(())
}

/// The column before the one in which entries begin, less the mark's own two.
const TEXT: usize = 24 + 2 + 8 + 2 + 6;

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
