//! The floor under every warm call: a worker spoken to directly, with nothing of Hearth in between.
//!
//! A few lines of the host's side of docs/protocols/worker.md: *hello*, *bind*, *call*, *head*. Calls
//! have no request body and their replies come whole; anything else is an error here.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tokio::time::Instant;

use super::{
    EXPECTED_BODY,
    language::Language,
    stage::{Server, Stage},
};
use crate::{
    affinity::Pinned,
    latency::Latencies,
    load::{Failures, Outcome},
};

const BIND: u8 = 0x01;
const CALL: u8 = 0x02;
const HELLO: u8 = 0x81;
const BOUND: u8 = 0x82;
const BIND_FAILED: u8 = 0x83;
const HEAD: u8 = 0x84;
const LOG: u8 = 0x87;
const FAILED: u8 = 0x88;

const VERSION: u16 = 1;
const MAX_FRAME: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

/// A bound worker.
pub(crate) struct Floor {
    connection: Connection,
    /// Stopped when the floor is dropped.
    _worker: Server,
}

impl Floor {
    /// Starts a language's worker on its benchmark function.
    pub(crate) fn start(
        stage: &Arc<Stage>,
        root: &Path,
        language: &Language,
        name: &str,
    ) -> anyhow::Result<Self> {
        let file = root.join("runtimes").join(language.worker.file);
        ensure!(file.exists(), "there is no `{}`", file.display());
        let socket = stage.directory().join(format!("{name}.sock"));
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("listen on `{}`", socket.display()))?;
        listener.set_nonblocking(true).context("make the socket non-blocking")?;

        let mut command = Command::new(language.worker.program[0]);
        command.args(&language.worker.program[1..]).arg(file).env("HEARTH_SOCKET", &socket);
        let mut worker = stage.start(name, command)?;
        let (stream, _) = worker.wait_for(PATIENCE, || Ok(listener.accept()?))?;
        stream.set_nonblocking(false).context("make the connection blocking")?;
        stream.set_read_timeout(Some(PATIENCE)).context("limit the waiting time")?;

        let mut connection = Connection { stream, received: Vec::new(), consumed: 0 };
        let directory = root.join("bench/functions").join(language.name);
        connection.bind(&directory.to_string_lossy(), language.entrypoint)?;
        Ok(Self { connection, _worker: worker })
    }

    /// Keeps `in_flight` calls running for `duration`.
    pub(crate) fn run(
        &mut self,
        in_flight: u16,
        duration: Duration,
        core: Option<usize>,
    ) -> anyhow::Result<Outcome> {
        let _pinned = core.map(Pinned::to).transpose()?;
        let calls: Vec<_> = (1..=u32::from(in_flight)).map(call).collect();
        let start = Instant::now();
        let end = start + duration;
        let mut sent = vec![start; calls.len()];
        let mut running = calls.len();
        let mut latencies = Latencies::new();
        let mut failures = Failures::default();
        let mut outbox = calls.concat();
        let mut now = start;
        while running > 0 {
            self.connection.stream.write_all(&outbox).context("send calls")?;
            outbox.clear();
            self.connection.fill()?;
            now = Instant::now();
            while let Some((kind, id, payload)) = self.connection.next_frame()? {
                if kind == LOG {
                    continue;
                }
                let slot = usize::try_from(id).unwrap_or(0).wrapping_sub(1);
                ensure!(slot < calls.len(), "a frame for call {id}, which was never sent");
                if is_expected(kind, payload)? {
                    latencies.record(now - sent[slot]);
                } else {
                    failures.status += 1;
                }
                if now < end {
                    sent[slot] = now;
                    outbox.extend_from_slice(&calls[slot]);
                } else {
                    running -= 1;
                }
            }
        }
        Ok(Outcome { latencies, failures, elapsed: now - start })
    }
}

/// Whether a frame that ends a call is the reply that every measured server gives.
fn is_expected(kind: u8, payload: &[u8]) -> anyhow::Result<bool> {
    match kind {
        HEAD => {
            let [high, low, flags, ..] = payload else {
                bail!("a head of {} bytes", payload.len())
            };
            ensure!(*flags == 0, "a reply in several pieces");
            let status = u16::from_be_bytes([*high, *low]);
            Ok(status == 200 && payload.ends_with(EXPECTED_BODY.as_bytes()))
        }
        FAILED => Ok(false),
        other => bail!("frame {other:#04x} instead of a reply"),
    }
}

struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    /// How much of `received` has been read as frames.
    consumed: usize,
}

impl Connection {
    fn bind(&mut self, directory: &str, entrypoint: &str) -> anyhow::Result<()> {
        let (kind, ..) = self.wait_for_frame().context("wait for `hello`")?;
        ensure!(kind == HELLO, "frame {kind:#04x} instead of `hello`");
        let frame = Frame::new(BIND, 0)
            .u16(VERSION)
            .string(directory)
            .string(entrypoint)
            .pairs(&[])
            .into_bytes();
        self.stream.write_all(&frame).context("send `bind`")?;
        loop {
            match self.wait_for_frame().context("wait for `bound`")? {
                (BOUND, _) => return Ok(()),
                (LOG, _) => {}
                (BIND_FAILED, payload) => {
                    bail!(
                        "cannot bind: {}",
                        String::from_utf8_lossy(payload.get(5..).unwrap_or(&[]))
                    )
                }
                (other, _) => bail!("frame {other:#04x} instead of `bound`"),
            }
        }
    }

    fn wait_for_frame(&mut self) -> anyhow::Result<(u8, Vec<u8>)> {
        loop {
            if let Some((kind, _, payload)) = self.next_frame()? {
                return Ok((kind, payload.to_vec()));
            }
            self.fill()?;
        }
    }

    /// Reads what is there, at least one byte, and forgets the frames that have been read.
    fn fill(&mut self) -> anyhow::Result<()> {
        self.received.drain(..self.consumed);
        self.consumed = 0;
        let mut buffer = [0; 64 * 1024];
        let count = self.stream.read(&mut buffer).context("read from the worker")?;
        ensure!(count > 0, "the worker closed the connection");
        self.received.extend_from_slice(&buffer[..count]);
        Ok(())
    }

    /// Kind, call and payload of the next frame, if it has been received as a whole.
    fn next_frame(&mut self) -> anyhow::Result<Option<(u8, u32, &[u8])>> {
        let Some((frame, size)) = split_frame(&self.received[self.consumed..])? else {
            return Ok(None);
        };
        self.consumed += size;
        Ok(Some(frame))
    }
}

type Parts<'a> = (u8, u32, &'a [u8]);

/// The frame at the start of some bytes, and its size with the length field.
fn split_frame(bytes: &[u8]) -> anyhow::Result<Option<(Parts<'_>, usize)>> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    ensure!((5..=MAX_FRAME).contains(&length), "a frame of {length} bytes");
    let Some(frame) = rest.get(..length) else { return Ok(None) };
    let (&[kind, a, b, c, d], payload) =
        frame.split_first_chunk::<5>().expect("a frame has at least five bytes");
    Ok(Some(((kind, u32::from_be_bytes([a, b, c, d]), payload), 4 + length)))
}

/// The call that Hearth makes of the generator's request, with logging off.
fn call(id: u32) -> Vec<u8> {
    Frame::new(CALL, id)
        .u32(15_000)
        .u8(0)
        .string("GET")
        .string("http://127.0.0.1:3000/")
        .string("http")
        .string("127.0.0.1")
        .u16(3000)
        .string("/")
        .string("")
        .pairs(&[])
        .pairs(&[("host", "127.0.0.1:3000")])
        .into_bytes()
}

/// A frame in the making; the length comes last.
struct Frame(Vec<u8>);

impl Frame {
    fn new(kind: u8, call: u32) -> Self {
        Self(vec![0, 0, 0, 0, kind]).u32(call)
    }

    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn string(mut self, text: &str) -> Self {
        self = self.u32(u32::try_from(text.len()).expect("paths and constants are short"));
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn pairs(mut self, pairs: &[(&str, &str)]) -> Self {
        self = self.u16(u16::try_from(pairs.len()).expect("a constant number of headers"));
        pairs.iter().fold(self, |frame, (name, value)| frame.string(name).string(value))
    }

    fn into_bytes(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).expect("far below the limit of a frame");
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn vectors() -> Value {
        let text = include_str!("../../../docs/protocols/worker-vectors.json");
        serde_json::from_str(text).expect("the vectors are JSON")
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<_> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
        let byte = |pair: &[u32]| u8::try_from(pair[0] * 16 + pair[1]).expect("two digits");
        digits.chunks(2).map(byte).collect()
    }

    #[test]
    fn bind_is_written_as_the_vectors_say() {
        let vectors = vectors();
        let all = vectors["valid"].as_array().expect("a list");
        let vector = all.iter().find(|vector| {
            vector["kind"] == "bind"
                && vector["fields"]["environment"].as_array().is_some_and(Vec::is_empty)
        });
        let vector = vector.expect("a bind without an environment");
        let field = |name: &str| vector["fields"][name].as_str().expect("text").to_owned();
        let frame = Frame::new(BIND, 0)
            .u16(VERSION)
            .string(&field("code_dir"))
            .string(&field("entrypoint"))
            .pairs(&[]);
        assert_eq!(frame.into_bytes(), bytes(vector["hex"].as_str().expect("hex")));
    }

    #[test]
    fn every_valid_frame_is_split_where_it_ends() {
        let vectors = vectors();
        for vector in vectors["valid"].as_array().expect("a list") {
            let mut frame = bytes(vector["hex"].as_str().expect("hex"));
            let size = frame.len();
            for short in 0..size {
                assert!(split_frame(&frame[..short]).expect("no error").is_none());
            }
            frame.push(0);
            let ((_, call, _), end) = split_frame(&frame).expect("no error").expect("whole");
            assert_eq!(end, size, "{}", vector["name"]);
            assert_eq!(u64::from(call), vector["call"].as_u64().expect("a number"));
        }
    }

    #[test]
    fn only_the_agreed_reply_counts() {
        let reply = |status: u16, body: &str| {
            let mut payload = status.to_be_bytes().to_vec();
            payload.extend([0, 0, 0]);
            payload.extend(body.as_bytes());
            payload
        };
        assert!(is_expected(HEAD, &reply(200, EXPECTED_BODY)).expect("a reply"));
        assert!(!is_expected(HEAD, &reply(500, EXPECTED_BODY)).expect("a reply"));
        assert!(!is_expected(HEAD, &reply(200, "Bye")).expect("a reply"));
        assert!(!is_expected(FAILED, &[1]).expect("a failure"));
        assert!(is_expected(BOUND, &[]).is_err());
        assert!(is_expected(HEAD, &[0]).is_err());
    }
}
