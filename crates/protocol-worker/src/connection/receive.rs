//! What the worker says, frame by frame. An error is a broken protocol, in words.

use std::sync::Arc;

use bytes::Bytes;
use protocol::{BindError, BodyError, CallError, Pace};
use tokio::{sync::mpsc, task::yield_now, time::Instant};
use tracing::debug;

use super::{Answer, CallStage, Shared, Stage};
use crate::{
    frame::{CallFailure, Decoder, Frame, FromWorker, Hello, VERSION},
    socket::Reading,
};

/// How much is asked from the socket at a time.
const READ_SIZE: usize = 64 << 10;

/// How many frames are taken before others have their turn. More than a worker has to say when
/// as many calls end at once as it runs.
const FRAMES_A_TURN: usize = 128;

/// A part of a body that is shorter costs as much as a log entry: its length bounds it too little.
const SMALL_PART: usize = 4 << 10;

/// What is left to do after a turn.
#[derive(Default)]
struct Turn {
    /// What the frames cost that nobody asked for.
    cost: usize,
    /// Whether there may be more frames.
    is_cut_off: bool,
}

impl Shared {
    /// Reads to the end, turn by turn: all connections are read by one thread, and a worker may
    /// write faster than that thread can read.
    pub(super) async fn read(self: Arc<Self>, mut socket: Reading) {
        let mut decoder = Decoder::default();
        let mut received = vec![0; READ_SIZE];
        let mut pace = Pace::new(Instant::now());
        let why = loop {
            let length = match socket.read(&mut received).await {
                Ok(0) => break "the worker closed its connection".to_owned(),
                Ok(length) => length,
                Err(error) => break format!("could not read from the worker: {error}"),
            };
            decoder.buffer.extend_from_slice(&received[..length]);
            if let Err(broken) = self.take_frames(&mut decoder, &mut pace).await {
                break format!("the worker broke the protocol: {broken}");
            }
            if length == READ_SIZE {
                // There may be more at once.
                yield_now().await;
            }
        };
        self.fail(&why);
    }

    async fn take_frames(
        self: &Arc<Self>,
        decoder: &mut Decoder,
        pace: &mut Pace,
    ) -> Result<(), String> {
        loop {
            let Turn { cost, is_cut_off } = self.take_turn(decoder)?;
            if cost > 0 {
                pace.keep(cost).await;
            }
            if !is_cut_off {
                return Ok(());
            }
            yield_now().await;
        }
    }

    fn take_turn(self: &Arc<Self>, decoder: &mut Decoder) -> Result<Turn, String> {
        let mut turn = Turn::default();
        for _ in 0..FRAMES_A_TURN {
            let frame = decoder.next_frame::<FromWorker>().map_err(|error| error.to_string())?;
            let Some(frame) = frame else { return Ok(turn) };
            turn.cost += cost(&frame.message);
            self.take(frame)?;
        }
        turn.is_cut_off = true;
        Ok(turn)
    }

    fn take(
        self: &Arc<Self>,
        Frame { call: id, message }: Frame<FromWorker>,
    ) -> Result<(), String> {
        match message {
            FromWorker::Hello(hello) => self.take_hello(&hello),
            FromWorker::Bound => self.take_bind_outcome(Ok(())),
            FromWorker::BindFailed { message, .. } => {
                self.take_bind_outcome(Err(BindError::Load { message }))
            }
            FromWorker::Head { status, more, headers, body } => {
                self.take_head(id, more, Answer { status, headers, first: body, parts: None })
            }
            FromWorker::Body(part) => self.take_body(id, part),
            FromWorker::End => self.take_end(id, None),
            FromWorker::Failed { reason, message } => self.take_end(id, Some((reason, message))),
            FromWorker::Log { stream, text } => {
                let log = match id {
                    0 => Some(self.instance_log.clone()),
                    id => self.lock().calls.get(&id).and_then(|entry| entry.log.clone()),
                };
                if let Some(log) = log {
                    log.write(stream, &text);
                }
                Ok(())
            }
            FromWorker::Window(bytes) => self.take_window(id, bytes),
        }
    }

    fn take_hello(&self, hello: &Hello) -> Result<(), String> {
        let Hello { version_min, version_max, language, language_version, .. } = hello;
        if !matches!(*self.stage.borrow(), Stage::Connecting) {
            return Err("it said hello twice".into());
        }
        if !(*version_min..=*version_max).contains(&VERSION) {
            return Err(format!(
                "it speaks versions {version_min} to {version_max}, this host {VERSION}"
            ));
        }
        debug!(language, language_version, "worker connected");
        self.lock().max_calls = usize::try_from(hello.max_calls).unwrap_or(usize::MAX);
        self.stage.send_replace(Stage::Unbound);
        Ok(())
    }

    fn take_bind_outcome(&self, outcome: Result<(), BindError>) -> Result<(), String> {
        let waiting = self.lock().binding.take().ok_or("it answered a bind that was not sent")?;
        if outcome.is_ok() {
            self.stage.send_replace(Stage::Bound);
        }
        let _ = waiting.send(outcome);
        Ok(())
    }

    fn take_head(&self, id: u32, more: bool, mut answer: Answer) -> Result<(), String> {
        let mut state = self.lock();
        let entry = state.entry(id)?;
        entry.receive(answer.first.len())?;
        let stage = if more {
            std::mem::replace(&mut entry.stage, CallStage::Abandoned)
        } else {
            state.finish(id)
        };
        match stage {
            CallStage::Waiting(waiting) => {
                if more {
                    let (sender, parts) = mpsc::unbounded_channel();
                    state.entry(id)?.stage = CallStage::Streaming(sender);
                    answer.parts = Some(parts);
                }
                drop(state);
                let _ = waiting.send(Ok(answer));
            }
            CallStage::Abandoned => drop(state),
            CallStage::Streaming(_) => return Err(format!("it sent a second head for call {id}")),
        }
        if !more {
            self.changed.notify_waiters();
        }
        Ok(())
    }

    fn take_body(&self, id: u32, part: Bytes) -> Result<(), String> {
        let mut state = self.lock();
        let entry = state.entry(id)?;
        entry.receive(part.len())?;
        match &entry.stage {
            CallStage::Streaming(body) => {
                let _ = body.send(Ok(part));
                Ok(())
            }
            CallStage::Abandoned => Ok(()),
            CallStage::Waiting(_) => Err(format!("it sent a body before the head of call {id}")),
        }
    }

    fn take_end(&self, id: u32, failure: Option<(CallFailure, String)>) -> Result<(), String> {
        let mut state = self.lock();
        state.entry(id)?;
        let stage = state.finish(id);
        drop(state);
        self.changed.notify_waiters();
        match (stage, failure) {
            (CallStage::Waiting(waiting), Some((reason, message))) => {
                let error = match reason {
                    CallFailure::Threw | CallFailure::NoReply => CallError::Failed { message },
                    CallFailure::Cancelled | CallFailure::Worker => {
                        CallError::Lost { why: format!("The worker gave up the call. {message}") }
                    }
                };
                let _ = waiting.send(Err(error));
                Ok(())
            }
            (CallStage::Waiting(_), None) => Err(format!("it ended call {id} without a head")),
            (CallStage::Streaming(body), Some((reason, message))) => {
                let _ = body.send(Err(match reason {
                    CallFailure::Threw | CallFailure::NoReply => BodyError::Failed { message },
                    CallFailure::Cancelled | CallFailure::Worker => {
                        BodyError::Lost { why: format!("The worker gave up the call. {message}") }
                    }
                }));
                Ok(())
            }
            (CallStage::Streaming(_) | CallStage::Abandoned, _) => Ok(()),
        }
    }

    fn take_window(&self, id: u32, bytes: u32) -> Result<(), String> {
        let mut state = self.lock();
        // The last grant and the call's end may cross.
        let Some(entry) = state.calls.get_mut(&id) else { return Ok(()) };
        entry.send_credit = entry
            .send_credit
            .checked_add(bytes)
            .filter(|credit| *credit <= i32::MAX.unsigned_abs())
            .ok_or_else(|| format!("it granted too much to call {id}"))?;
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }
}

/// What a frame is charged for. Heads and ends are free: each answers a call.
fn cost(message: &FromWorker) -> usize {
    match message {
        FromWorker::Log { text, .. } => Pace::ENTRY + text.len(),
        FromWorker::Body(part) if part.len() < SMALL_PART => Pace::ENTRY,
        FromWorker::Window(_) => Pace::ENTRY,
        FromWorker::Hello(_)
        | FromWorker::Bound
        | FromWorker::BindFailed { .. }
        | FromWorker::Head { .. }
        | FromWorker::Body(_)
        | FromWorker::End
        | FromWorker::Failed { .. } => 0,
    }
}
