//! `hearth invoke`: calls a function.

mod body;
mod shown;

use std::{io::Write, time::Duration};

use clap_complete::ArgValueCandidates;
use client::{
    Client, ClientError, Invocation, Method, Reply,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use model::{CallEnd, FunctionName, Outcome, Plain};
use shown::Shown;
use tokio::time::Instant;

use super::{Connection, DataDirectory, completions, format::micros, out::Out};

const EXAMPLES: &str = "\
Examples:
  hearth invoke hello
  hearth invoke hello --data '{\"name\": \"Ada\"}'
  hearth invoke resize --file photo.jpg --path '/thumbnail?width=80' > small.jpg
  echo hi | hearth invoke hello --data - --timing

Standard input is read only with `--data -` or `--file -`. The method is POST with a body and GET
without. Unless a header says what the body is, it is JSON if it reads as such, else text, else bytes.

The reply's body goes to standard output as it comes. On a terminal control characters are shown as
escapes such as \\x1b, and a line end follows where the reply has none; --raw, or a pipe, gets the
bytes as they are. With a status of 400 or more the exit code is 1.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The function.
    #[arg(add = ArgValueCandidates::new(completions::functions))]
    name: FunctionName,
    #[command(flatten)]
    body: body::BodyArguments,
    /// The method [default: POST with a body, GET without].
    #[arg(short = 'X', long, value_parser = parse_method)]
    method: Option<Method>,
    /// The path that the function sees, with the query.
    #[arg(long, default_value = "/")]
    path: String,
    /// A header. May be repeated.
    #[arg(short = 'H', long = "header", value_name = "K: V", value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Say on standard error where the time went.
    #[arg(long)]
    timing: bool,
    /// Print the status and the headers before the body.
    #[arg(short, long)]
    include: bool,
    /// Print the reply's bytes as they are, also on a terminal.
    #[arg(long)]
    raw: bool,
}

fn parse_method(text: &str) -> Result<Method, String> {
    match text.to_ascii_uppercase().parse() {
        // It would ask the daemon to be a proxy.
        Ok(Method::CONNECT) => Err("no function can be called with CONNECT".into()),
        Ok(method) => Ok(method),
        Err(_) => Err("not a method such as GET or POST".into()),
    }
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = || "write it like `accept: text/plain`".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    let name = name.trim().parse().map_err(|_| wrong())?;
    Ok((name, value.trim().parse().map_err(|_| wrong())?))
}

pub(crate) async fn run(arguments: Arguments, connection: &Connection) -> anyhow::Result<()> {
    let client = connection.client(&DataDirectory::of_environment())?;
    let name = arguments.name.clone();
    let out = Out::new();
    let mut printer = Printer {
        shown: (out.is_terminal() && !arguments.raw).then(Shown::default),
        out,
        is_included: arguments.include,
        is_timed: arguments.timing,
    };
    let invocation = arguments.invocation()?;
    let started = Instant::now();
    let reply = printer.call(&client, &name, invocation, started).await?;
    if reply.status().as_u16() < 400 {
        return Ok(());
    }
    let call = header(&reply, api::CALL_HEADER);
    let hint =
        call.map_or(String::new(), |call| format!("; see `hearth logs {name} --call {call}`"));
    anyhow::bail!("`{name}` replied {}{hint}", reply.status())
}

impl Arguments {
    fn invocation(self) -> anyhow::Result<Invocation> {
        let body = self.body.read()?;
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers {
            headers.append(name, value);
        }
        if self.timing {
            headers.insert(api::TIMING_HEADER, HeaderValue::from_static("1"));
        }
        if let Some(body) = body.as_deref().filter(|_| !headers.contains_key(CONTENT_TYPE)) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(body::kind(body)));
        }
        let usual = if body.is_some() { Method::POST } else { Method::GET };
        let method = self.method.unwrap_or(usual);
        Ok(Invocation { method, path: self.path, headers, body: body.map(Into::into) })
    }
}

struct Printer {
    out: Out,
    /// Where a person sees the reply; else its bytes are printed.
    shown: Option<Shown>,
    is_included: bool,
    is_timed: bool,
}

impl Printer {
    /// Calls, and prints what comes as it comes.
    async fn call(
        &mut self,
        client: &Client,
        name: &FunctionName,
        invocation: Invocation,
        started: Instant,
    ) -> anyhow::Result<Reply> {
        let mut reply = client.invoke(name, invocation).await?;
        let head = started.elapsed();
        if self.is_included {
            self.head(&reply)?;
        }
        loop {
            let chunk = match reply.chunk().await {
                Ok(None) => break,
                Ok(Some(chunk)) => chunk,
                Err(error) => return Err(cut_off(client, name, &reply, error).await),
            };
            match &mut self.shown {
                Some(shown) => self.out.write_all(shown.add(&chunk).as_bytes())?,
                None => self.out.write_all(&chunk)?,
            }
            self.out.flush()?;
        }
        if let Some(shown) = &mut self.shown {
            self.out.write_all(shown.finish().as_bytes())?;
            self.out.flush()?;
        }
        if self.is_timed {
            let phases = header(&reply, "server-timing").map_or(String::new(), timing);
            let (head, whole) = (duration(head), duration(started.elapsed()));
            eprintln!("{phases}seen from here: head after {head}, all after {whole}");
        }
        Ok(reply)
    }

    fn head(&mut self, reply: &Reply) -> anyhow::Result<()> {
        writeln!(self.out, "{:?} {}", reply.version(), reply.status())?;
        for (name, value) in reply.headers() {
            self.out.write_all(name.as_str().as_bytes())?;
            self.out.write_all(b": ")?;
            match self.shown {
                Some(_) => self.out.write_all(Plain::bytes(value.as_bytes()).as_bytes())?,
                None => self.out.write_all(value.as_bytes())?,
            }
            self.out.write_all(b"\n")?;
        }
        writeln!(self.out)?;
        Ok(())
    }
}

/// Why the rest of a reply does not come. The connection only breaks; the function's log knows.
async fn cut_off(
    client: &Client,
    name: &FunctionName,
    reply: &Reply,
    error: ClientError,
) -> anyhow::Error {
    let Some(call) = header(reply, api::CALL_HEADER) else {
        return anyhow::Error::new(error).context("the reply was cut off");
    };
    let hint = format!("`hearth logs {name} --call {call}`");
    match client.end_of_call(name, call).await.and_then(|end| why_cut_off(&end)) {
        Some(why) => anyhow::anyhow!("the reply was cut off: `{name}` {why}; see {hint}"),
        None => {
            anyhow::Error::new(error).context(format!("the reply was cut off; {hint} may say why"))
        }
    }
}

/// None of a call that the daemon knows no trouble of.
fn why_cut_off(end: &CallEnd) -> Option<String> {
    let took = micros(end.phases.iter().fold(0, |sum, phase| sum.saturating_add(*phase)));
    let error = end.error.as_ref().and_then(|error| error.lines().next());
    let error = error.map_or(String::new(), |error| format!(" ({error})"));
    match end.outcome {
        Outcome::TimedOut => {
            Some(format!("did not end its reply within its timeout; it was stopped after {took}"))
        }
        Outcome::Failed => Some(format!("failed while it replied, after {took}{error}")),
        Outcome::Lost => Some(format!("lost its instance while it replied, after {took}{error}")),
        Outcome::Cancelled => Some(format!("was stopped with the daemon, after {took}")),
        Outcome::Served | Outcome::NotLoaded | Outcome::Refused => None,
    }
}

fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    reply.headers().get(name).and_then(|value| value.to_str().ok())
}

fn duration(duration: Duration) -> String {
    micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

/// `wait;dur=0.012, call;dur=1.3` becomes `wait 0.012ms, call 1.3ms; `.
fn timing(header: &str) -> String {
    let phases: Vec<_> = header
        .split(',')
        .filter_map(|phase| phase.trim().split_once(";dur="))
        .map(|(name, millis)| format!("{name} {millis}ms"))
        .collect();
    if phases.is_empty() { String::new() } else { format!("{}; ", phases.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_read_from_the_header() {
        assert_eq!(timing("wait;dur=0.012, call;dur=1.3"), "wait 0.012ms, call 1.3ms; ");
        assert_eq!(timing("cache;desc=hit"), "");
    }

    #[test]
    fn headers_have_a_colon() {
        let (name, value) = parse_header("X-Key:  a:b ").expect("a header");
        assert_eq!((name.as_str(), value.as_bytes()), ("x-key", &b"a:b"[..]));
        for text in ["", "x", "a b: c", "a: b\nc: d"] {
            parse_header(text).expect_err(text);
        }
    }
}
