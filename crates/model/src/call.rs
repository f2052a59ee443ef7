use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::id::InvalidId;

/// Names a call: a UUID of version 7, so ids sort by the time calls came (RFC 9562, 5.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallId(pub uuid::Uuid);

impl CallId {
    /// When the call came, in milliseconds since 1970; none if this is not a UUID of version 7.
    pub fn at_millis(&self) -> Option<u64> {
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        Some(seconds * 1000 + u64::from(nanos / 1_000_000))
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for CallId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.parse().map(Self).map_err(|_| InvalidId::new("a call id", 36, "0-9 a-f -"))
    }
}

/// Where the time of a call went. A phase that the call did not go through took none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// For the request's body.
    pub receive: Duration,
    /// For a place: in the queue, and while somebody else's launch was under way.
    pub wait: Duration,
    /// For a spare to be found, or for an instance to be launched if none was there.
    pub spare: Duration,
    /// Until the function's code was in the instance.
    pub attach: Duration,
    /// Until the function's code was loaded.
    pub bind: Duration,
    /// In the function, until the head of its reply, or until the call was given up.
    pub call: Duration,
    /// From the head of the reply until its end was passed on, or until it broke off. None of a
    /// reply that came as a whole.
    pub reply: Duration,
}

impl Phases {
    /// Their names, in the order in which a call goes through them.
    pub const NAMES: [&str; 7] = ["receive", "wait", "spare", "attach", "bind", "call", "reply"];

    /// The durations, in the order of [`Phases::NAMES`].
    pub fn durations(&self) -> [Duration; 7] {
        [self.receive, self.wait, self.spare, self.attach, self.bind, self.call, self.reply]
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The function replied, with whatever status.
    Served,
    /// The function failed or returned nothing usable.
    Failed,
    /// The deadline passed.
    TimedOut,
    /// The function's code does not load.
    NotLoaded,
    /// The instance ended while the call ran in it.
    Lost,
    /// The call never reached an instance: no room, or instances that do not start.
    Refused,
    /// The client went away.
    Cancelled,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 7] = [
        Self::Served,
        Self::Failed,
        Self::TimedOut,
        Self::NotLoaded,
        Self::Lost,
        Self::Refused,
        Self::Cancelled,
    ];

    /// As it is written in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Failed => "failed",
            Self::TimedOut => "timed-out",
            Self::NotLoaded => "not-loaded",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One line of a function's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Milliseconds since 1970.
    pub at: u64,
    /// The call that wrote it; none for what an instance wrote outside of calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallId>,
    /// What it says.
    #[serde(flatten)]
    pub event: LogEvent,
}

/// What a line of a log says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum LogEvent {
    /// Something the function wrote.
    Entry {
        /// `log`, `error`, `stdout` or `stderr`.
        stream: LogSource,
        /// Without the line end.
        text: String,
    },
    /// Something Hearth has to say, such as that a flood was left out.
    Note {
        /// One line.
        text: String,
    },
    /// A call is over.
    End(CallEnd),
}

/// How a call went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallEnd {
    /// Upper-case verb.
    pub method: String,
    /// As the function saw it, without the query.
    pub path: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The status that the client got; none if it was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Which instance ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Microseconds in each phase, in the order of [`Phases::NAMES`].
    #[serde(deserialize_with = "phases")]
    pub phases: [u64; 7],
}

/// Logs that were written before there were `receive` and `reply` have the five in between.
fn phases<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u64; 7], D::Error> {
    let given = Vec::<u64>::deserialize(deserializer)?;
    match given[..] {
        [wait, spare, attach, bind, call] => Ok([0, wait, spare, attach, bind, call, 0]),
        _ => given.try_into().map_err(|given: Vec<u64>| {
            D::Error::invalid_length(given.len(), &"a number for each phase")
        }),
    }
}

/// Which way something was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogSource {
    /// `context.log`
    Log,
    /// `context.error`
    Error,
    /// The language's own standard output.
    Stdout,
    /// The language's own standard error.
    Stderr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_of_earlier_versions_are_read() {
        for (given, expected) in [
            ("[1,2,3,4,5]", Some([0, 1, 2, 3, 4, 5, 0])),
            ("[1,2,3,4,5,6,7]", Some([1, 2, 3, 4, 5, 6, 7])),
            ("[1,2,3,4,5,6]", None),
        ] {
            let line = format!(
                r#"{{"method":"GET","path":"/","outcome":"served","status":200,"phases":{given}}}"#
            );
            let end = serde_json::from_str::<CallEnd>(&line).ok();
            assert_eq!(end.map(|end| end.phases), expected);
        }
    }

    #[test]
    fn a_call_id_tells_when_the_call_came() {
        let id: CallId = "01938b6e-7f00-7000-8000-000000000000".parse().expect("an id");
        assert_eq!(id.at_millis(), Some(0x0193_8b6e_7f00));
        assert_eq!(CallId(uuid::Uuid::nil()).at_millis(), None);
        "nonsense".parse::<CallId>().expect_err("not a UUID");
    }
}
