//! Frames as data, and their bytes. No I/O, no state but a [`Decoder`]'s buffer.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use protocol::{CallHead, LogStream};

use crate::payload::{Reader, put_pairs, put_string};

/// The one version of the protocol there is.
pub const VERSION: u16 = 1;
/// The largest value of a frame's length field.
pub const MAX_LENGTH: usize = 1 << 20;
/// How much of a call's body may be sent before anything was granted.
pub const INITIAL_WINDOW: u32 = 256 << 10;
/// The most body bytes that the host puts into one frame.
pub const MAX_BODY_PART: usize = 64 << 10;

/// Bytes of kind and call, which the length field counts.
const HEADER: usize = 5;

/// A frame: what is said, and about which call (0: the worker as a whole).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<M> {
    /// The call's id, or 0.
    pub call: u32,
    /// What is said.
    pub message: M,
}

/// What the host says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "worker.md describes every field")]
pub enum FromHost {
    Bind {
        version: u16,
        code_directory: String,
        entrypoint: String,
        environment: Vec<(String, String)>,
    },
    Call {
        timeout_ms: u32,
        logging: bool,
        more: bool,
        head: Arc<CallHead>,
        body: Bytes,
    },
    Body(Bytes),
    End,
    Cancel(CancelReason),
    Drain,
    Window(u32),
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "worker.md describes every field")]
pub enum FromWorker {
    Hello(Hello),
    Bound,
    BindFailed { reason: BindFailure, message: String },
    Head { status: u16, more: bool, headers: Vec<(String, String)>, body: Bytes },
    Body(Bytes),
    End,
    Log { stream: LogStream, text: String },
    Failed { reason: CallFailure, message: String },
    Window(u32),
}

/// How a worker introduces itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "worker.md describes every field")]
pub struct Hello {
    pub version_min: u16,
    pub version_max: u16,
    pub language: String,
    pub language_version: String,
    pub worker_version: String,
    pub capabilities: u32,
    pub max_calls: u32,
}

/// Why a call is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CancelReason {
    /// Its deadline has passed.
    TimedOut = 1,
    /// Nobody waits for the reply any more.
    ClientGone = 2,
    /// The host shuts down.
    ShuttingDown = 3,
}

/// Why a function did not load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BindFailure {
    /// The entrypoint does not exist.
    NoEntrypoint = 1,
    /// Nothing callable is exported.
    NotCallable = 2,
    /// The code is not the language's.
    Syntax = 3,
    /// A module that the code needs is missing.
    NoModule = 4,
    /// Anything else.
    Other = 5,
}

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CallFailure {
    /// The function threw.
    Threw = 1,
    /// It returned nothing usable.
    NoReply = 2,
    /// It was cancelled, and nothing of it runs any more.
    Cancelled = 3,
    /// The worker itself failed.
    Worker = 4,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Below 5 or above [`MAX_LENGTH`].
    #[error("a frame of length {0} is not allowed")]
    Length(u32),
    /// Not a kind that the other side may send.
    #[error("unknown kind of frame 0x{0:02x}")]
    Kind(u8),
    /// 0 where a call is needed, or a call where 0 is needed.
    #[error("frame 0x{kind:02x} does not belong to call {call}")]
    Call {
        /// The frame's kind.
        kind: u8,
        /// The id it came with.
        call: u32,
    },
    /// The payload ends too early.
    #[error("a payload ends before its last field")]
    Truncated,
    /// The payload ends too late.
    #[error("a payload has bytes behind its last field")]
    Trailing,
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// A number outside its range.
    #[error("{field} cannot be {value}")]
    Value {
        /// Which number.
        field: &'static str,
        /// What it was.
        value: u32,
    },
}

/// Why a message is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It does not fit into a frame of [`MAX_LENGTH`].
    #[error("it is larger than a frame of 1 MiB")]
    TooLarge,
}

/// A message that has a place in frames.
pub trait Message: Sized {
    /// Reads a payload.
    fn decode(kind: u8, call: u32, payload: Bytes) -> Result<Self, DecodeError>;
    /// The kind's number.
    fn kind(&self) -> u8;
    /// Writes the payload.
    fn encode_payload(&self, out: &mut BytesMut) -> Result<(), EncodeError>;

    /// Appends the whole frame. After an error `out` is as it was.
    fn encode(&self, call: u32, out: &mut BytesMut) -> Result<(), EncodeError> {
        let start = out.len();
        out.put_u32(0);
        out.put_u8(self.kind());
        out.put_u32(call);
        let written = self.encode_payload(out).and_then(|()| {
            let length = out.len() - start - 4;
            if length > MAX_LENGTH { Err(EncodeError::TooLarge) } else { Ok(length) }
        });
        match written {
            Ok(length) => {
                let length = u32::try_from(length).map_err(|_| EncodeError::TooLarge)?;
                out[start..start + 4].copy_from_slice(&length.to_be_bytes());
                Ok(())
            }
            Err(error) => {
                out.truncate(start);
                Err(error)
            }
        }
    }
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    /// What was received and not yet taken: append to it, then call [`Decoder::next_frame`].
    pub buffer: BytesMut,
}

impl Decoder {
    /// Takes the next frame, if all of it is there.
    ///
    /// After an error the stream cannot be read on.
    pub fn next_frame<M: Message>(&mut self) -> Result<Option<Frame<M>>, DecodeError> {
        let Some(prefix) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length_field = u32::from_be_bytes(*prefix);
        let length = usize::try_from(length_field).unwrap_or(usize::MAX);
        if !(HEADER..=MAX_LENGTH).contains(&length) {
            return Err(DecodeError::Length(length_field));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        let mut frame = self.buffer.split_to(length).freeze();
        let (kind, call) = (frame.get_u8(), frame.get_u32());
        Ok(Some(Frame { call, message: M::decode(kind, call, frame)? }))
    }
}

fn for_the_worker(kind: u8, call: u32) -> Result<(), DecodeError> {
    if call == 0 { Ok(()) } else { Err(DecodeError::Call { kind, call }) }
}

fn for_a_call(kind: u8, call: u32) -> Result<(), DecodeError> {
    if call == 0 { Err(DecodeError::Call { kind, call }) } else { Ok(()) }
}

fn decode_body(payload: Bytes) -> Result<Bytes, DecodeError> {
    if payload.is_empty() {
        return Err(DecodeError::Value { field: "a body's length", value: 0 });
    }
    Ok(payload)
}

fn decode_window(payload: Bytes) -> Result<u32, DecodeError> {
    let mut reader = Reader::new(payload);
    let bytes = reader.u32()?;
    reader.end()?;
    if bytes == 0 {
        return Err(DecodeError::Value { field: "a window", value: 0 });
    }
    Ok(bytes)
}

impl Message for FromHost {
    fn kind(&self) -> u8 {
        match self {
            Self::Bind { .. } => 0x01,
            Self::Call { .. } => 0x02,
            Self::Body(_) => 0x03,
            Self::End => 0x04,
            Self::Cancel(_) => 0x05,
            Self::Drain => 0x06,
            Self::Window(_) => 0x07,
        }
    }

    fn decode(kind: u8, call: u32, payload: Bytes) -> Result<Self, DecodeError> {
        match kind {
            0x01 | 0x06 => for_the_worker(kind, call)?,
            0x02..=0x05 | 0x07 => for_a_call(kind, call)?,
            _ => return Err(DecodeError::Kind(kind)),
        }
        match kind {
            0x01 => decode_bind(Reader::new(payload)),
            0x02 => decode_call(Reader::new(payload)),
            0x03 => decode_body(payload).map(Self::Body),
            0x04 => Reader::new(payload).end().map(|()| Self::End),
            0x05 => decode_cancel(Reader::new(payload)),
            0x06 => Reader::new(payload).end().map(|()| Self::Drain),
            _ => decode_window(payload).map(Self::Window),
        }
    }

    fn encode_payload(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        match self {
            Self::Bind { version, code_directory, entrypoint, environment } => {
                out.put_u16(*version);
                put_string(out, code_directory)?;
                put_string(out, entrypoint)?;
                put_pairs(out, environment)
            }
            Self::Call { timeout_ms, logging, more, head, body } => {
                out.put_u32(*timeout_ms);
                out.put_u8(u8::from(*logging) | u8::from(*more) << 1);
                put_call_head(out, head)?;
                out.put_slice(body);
                Ok(())
            }
            Self::Body(part) => {
                out.put_slice(part);
                Ok(())
            }
            Self::Cancel(reason) => {
                out.put_u8(*reason as u8);
                Ok(())
            }
            Self::Window(bytes) => {
                out.put_u32(*bytes);
                Ok(())
            }
            Self::End | Self::Drain => Ok(()),
        }
    }
}

fn decode_bind(mut reader: Reader) -> Result<FromHost, DecodeError> {
    let bind = FromHost::Bind {
        version: reader.u16()?,
        code_directory: reader.string()?,
        entrypoint: reader.string()?,
        environment: reader.pairs()?,
    };
    reader.end()?;
    Ok(bind)
}

fn decode_call(mut reader: Reader) -> Result<FromHost, DecodeError> {
    let timeout_ms = reader.u32()?;
    let flags = reader.u8()?;
    if flags > 3 {
        return Err(DecodeError::Value { field: "a call's flags", value: flags.into() });
    }
    let head = CallHead {
        method: reader.string()?,
        url: reader.string()?,
        scheme: reader.string()?,
        host: reader.string()?,
        port: reader.u16()?,
        path: reader.string()?,
        query_string: reader.string()?,
        query: reader.pairs()?,
        headers: reader.pairs()?,
    };
    Ok(FromHost::Call {
        timeout_ms,
        logging: flags & 1 != 0,
        more: flags & 2 != 0,
        head: Arc::new(head),
        body: reader.rest(),
    })
}

fn put_call_head(out: &mut BytesMut, head: &CallHead) -> Result<(), EncodeError> {
    put_string(out, &head.method)?;
    put_string(out, &head.url)?;
    put_string(out, &head.scheme)?;
    put_string(out, &head.host)?;
    out.put_u16(head.port);
    put_string(out, &head.path)?;
    put_string(out, &head.query_string)?;
    put_pairs(out, &head.query)?;
    put_pairs(out, &head.headers)
}

fn decode_cancel(mut reader: Reader) -> Result<FromHost, DecodeError> {
    let reason = match reader.u8()? {
        1 => CancelReason::TimedOut,
        2 => CancelReason::ClientGone,
        3 => CancelReason::ShuttingDown,
        other => {
            return Err(DecodeError::Value { field: "a cancel's reason", value: other.into() });
        }
    };
    reader.end()?;
    Ok(FromHost::Cancel(reason))
}

impl Message for FromWorker {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 0x81,
            Self::Bound => 0x82,
            Self::BindFailed { .. } => 0x83,
            Self::Head { .. } => 0x84,
            Self::Body(_) => 0x85,
            Self::End => 0x86,
            Self::Log { .. } => 0x87,
            Self::Failed { .. } => 0x88,
            Self::Window(_) => 0x89,
        }
    }

    fn decode(kind: u8, call: u32, payload: Bytes) -> Result<Self, DecodeError> {
        match kind {
            0x81..=0x83 => for_the_worker(kind, call)?,
            0x84..=0x86 | 0x88 | 0x89 => for_a_call(kind, call)?,
            0x87 => {}
            _ => return Err(DecodeError::Kind(kind)),
        }
        match kind {
            0x81 => decode_hello(Reader::new(payload)),
            0x82 => Reader::new(payload).end().map(|()| Self::Bound),
            0x83 => decode_bind_failed(Reader::new(payload)),
            0x84 => decode_head(Reader::new(payload)),
            0x85 => decode_body(payload).map(Self::Body),
            0x86 => Reader::new(payload).end().map(|()| Self::End),
            0x87 => decode_log(Reader::new(payload)),
            0x88 => decode_failed(Reader::new(payload)),
            _ => decode_window(payload).map(Self::Window),
        }
    }

    fn encode_payload(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        match self {
            Self::Hello(hello) => {
                out.put_u16(hello.version_min);
                out.put_u16(hello.version_max);
                put_string(out, &hello.language)?;
                put_string(out, &hello.language_version)?;
                put_string(out, &hello.worker_version)?;
                out.put_u32(hello.capabilities);
                out.put_u32(hello.max_calls);
                Ok(())
            }
            Self::BindFailed { reason, message } => {
                out.put_u8(*reason as u8);
                put_string(out, message)
            }
            Self::Head { status, more, headers, body } => {
                out.put_u16(*status);
                out.put_u8(u8::from(*more));
                put_pairs(out, headers)?;
                out.put_slice(body);
                Ok(())
            }
            Self::Body(part) => {
                out.put_slice(part);
                Ok(())
            }
            Self::Log { stream, text } => {
                out.put_u8(match stream {
                    LogStream::Log => 1,
                    LogStream::Error => 2,
                    LogStream::NativeOut => 3,
                    LogStream::NativeErr => 4,
                });
                out.put_slice(text.as_bytes());
                Ok(())
            }
            Self::Failed { reason, message } => {
                out.put_u8(*reason as u8);
                put_string(out, message)
            }
            Self::Window(bytes) => {
                out.put_u32(*bytes);
                Ok(())
            }
            Self::Bound | Self::End => Ok(()),
        }
    }
}

fn decode_hello(mut reader: Reader) -> Result<FromWorker, DecodeError> {
    let hello = Hello {
        version_min: reader.u16()?,
        version_max: reader.u16()?,
        language: reader.string()?,
        language_version: reader.string()?,
        worker_version: reader.string()?,
        capabilities: reader.u32()?,
        max_calls: reader.u32()?,
    };
    reader.end()?;
    Ok(FromWorker::Hello(hello))
}

fn decode_bind_failed(mut reader: Reader) -> Result<FromWorker, DecodeError> {
    let reason = match reader.u8()? {
        1 => BindFailure::NoEntrypoint,
        2 => BindFailure::NotCallable,
        3 => BindFailure::Syntax,
        4 => BindFailure::NoModule,
        5 => BindFailure::Other,
        other => {
            return Err(DecodeError::Value { field: "a bind failure", value: other.into() });
        }
    };
    let message = reader.string()?;
    reader.end()?;
    Ok(FromWorker::BindFailed { reason, message })
}

fn decode_head(mut reader: Reader) -> Result<FromWorker, DecodeError> {
    let status = reader.u16()?;
    if !(100..=999).contains(&status) {
        return Err(DecodeError::Value { field: "a status", value: status.into() });
    }
    let flags = reader.u8()?;
    if flags > 1 {
        return Err(DecodeError::Value { field: "a head's flags", value: flags.into() });
    }
    let headers = reader.pairs()?;
    Ok(FromWorker::Head { status, more: flags == 1, headers, body: reader.rest() })
}

fn decode_log(mut reader: Reader) -> Result<FromWorker, DecodeError> {
    let stream = match reader.u8()? {
        1 => LogStream::Log,
        2 => LogStream::Error,
        3 => LogStream::NativeOut,
        4 => LogStream::NativeErr,
        other => return Err(DecodeError::Value { field: "a log stream", value: other.into() }),
    };
    Ok(FromWorker::Log { stream, text: reader.rest_text()? })
}

fn decode_failed(mut reader: Reader) -> Result<FromWorker, DecodeError> {
    let reason = match reader.u8()? {
        1 => CallFailure::Threw,
        2 => CallFailure::NoReply,
        3 => CallFailure::Cancelled,
        4 => CallFailure::Worker,
        other => {
            return Err(DecodeError::Value { field: "a failure's reason", value: other.into() });
        }
    };
    let message = reader.string()?;
    reader.end()?;
    Ok(FromWorker::Failed { reason, message })
}
