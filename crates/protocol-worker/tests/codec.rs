//! The codec against the vectors of the reference, and against bytes that nobody planned.

use std::{fs, sync::Arc};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use protocol::{CallHead, LogStream};
use protocol_worker::frame::{
    BindFailure, CallFailure, CancelReason, DecodeError, Decoder, Frame, FromHost, FromWorker,
    Hello, Message,
};
use serde_json::Value;

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocols/worker-vectors.json");
    serde_json::from_str(&fs::read_to_string(path).expect("the vectors")).expect("JSON")
}

fn list(vectors: &Value, key: &str) -> Vec<Value> {
    vectors[key].as_array().expect("a list").clone()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    text.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]).expect("hex") << 4 | digit(pair[1]).expect("hex"))
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

fn number<T: TryFrom<u64>>(value: &Value) -> T {
    value.as_u64().and_then(|number| T::try_from(number).ok()).expect("a number in range")
}

fn body(fields: &Value) -> Bytes {
    unhex(fields["body_hex"].as_str().expect("hex")).into()
}

fn pairs(value: &Value) -> Vec<(String, String)> {
    let pairs = value.as_array().expect("pairs").iter();
    pairs.map(|pair| (text(&pair[0]), text(&pair[1]))).collect()
}

fn host_message(kind: &str, fields: &Value) -> FromHost {
    match kind {
        "bind" => FromHost::Bind {
            version: number(&fields["version"]),
            code_directory: text(&fields["code_dir"]),
            entrypoint: text(&fields["entrypoint"]),
            environment: pairs(&fields["environment"]),
        },
        "call" => FromHost::Call {
            timeout_ms: number(&fields["timeout_ms"]),
            logging: fields["logging"].as_bool().expect("a flag"),
            more: fields["more"].as_bool().expect("a flag"),
            head: Arc::new(CallHead {
                method: text(&fields["method"]),
                url: text(&fields["url"]),
                scheme: text(&fields["scheme"]),
                host: text(&fields["host"]),
                port: number(&fields["port"]),
                path: text(&fields["path"]),
                query_string: text(&fields["query_string"]),
                query: pairs(&fields["query"]),
                headers: pairs(&fields["headers"]),
            }),
            body: body(fields),
        },
        "body" => FromHost::Body(body(fields)),
        "end" => FromHost::End,
        "cancel" => FromHost::Cancel(match number::<u8>(&fields["reason"]) {
            1 => CancelReason::TimedOut,
            2 => CancelReason::ClientGone,
            _ => CancelReason::ShuttingDown,
        }),
        "drain" => FromHost::Drain,
        "window" => FromHost::Window(number(&fields["bytes"])),
        other => panic!("unknown kind {other}"),
    }
}

fn worker_message(kind: &str, fields: &Value) -> FromWorker {
    match kind {
        "hello" => FromWorker::Hello(Hello {
            version_min: number(&fields["version_min"]),
            version_max: number(&fields["version_max"]),
            language: text(&fields["language"]),
            language_version: text(&fields["language_version"]),
            worker_version: text(&fields["worker_version"]),
            capabilities: number(&fields["capabilities"]),
            max_calls: number(&fields["max_calls"]),
        }),
        "bound" => FromWorker::Bound,
        "bind_failed" => FromWorker::BindFailed {
            reason: match number::<u8>(&fields["reason"]) {
                1 => BindFailure::NoEntrypoint,
                2 => BindFailure::NotCallable,
                3 => BindFailure::Syntax,
                4 => BindFailure::NoModule,
                _ => BindFailure::Other,
            },
            message: text(&fields["message"]),
        },
        "head" => FromWorker::Head {
            status: number(&fields["status"]),
            more: fields["more"].as_bool().expect("a flag"),
            headers: pairs(&fields["headers"]),
            body: body(fields),
        },
        "body" => FromWorker::Body(body(fields)),
        "end" => FromWorker::End,
        "log" => FromWorker::Log {
            stream: match number::<u8>(&fields["stream"]) {
                1 => LogStream::Log,
                2 => LogStream::Error,
                3 => LogStream::NativeOut,
                _ => LogStream::NativeErr,
            },
            text: text(&fields["text"]),
        },
        "failed" => FromWorker::Failed {
            reason: match number::<u8>(&fields["reason"]) {
                1 => CallFailure::Threw,
                2 => CallFailure::NoReply,
                3 => CallFailure::Cancelled,
                _ => CallFailure::Worker,
            },
            message: text(&fields["message"]),
        },
        "window" => FromWorker::Window(number(&fields["bytes"])),
        other => panic!("unknown kind {other}"),
    }
}

fn decode<M: Message>(bytes: &[u8]) -> Result<Option<Frame<M>>, DecodeError> {
    let mut decoder = Decoder { buffer: BytesMut::from(bytes) };
    decoder.next_frame()
}

fn assert_both_ways<M: Message + PartialEq + std::fmt::Debug>(
    name: &str,
    frame: Frame<M>,
    bytes: &[u8],
) {
    let mut encoded = BytesMut::new();
    frame.message.encode(frame.call, &mut encoded).expect("encodes");
    assert_eq!(encoded, bytes, "encoding of {name}");
    assert_eq!(decode(bytes), Ok(Some(frame)), "decoding of {name}");
}

#[test]
fn valid_vectors_hold_in_both_directions() {
    let valid = list(&vectors(), "valid");
    for vector in &valid {
        let (name, kind) = (text(&vector["name"]), text(&vector["kind"]));
        let (fields, call) = (&vector["fields"], number(&vector["call"]));
        let bytes = unhex(vector["hex"].as_str().expect("hex"));
        match vector["sender"].as_str() {
            Some("host") => {
                let message = host_message(&kind, fields);
                assert_both_ways(&name, Frame { call, message }, &bytes);
            }
            _ => {
                let message = worker_message(&kind, fields);
                assert_both_ways(&name, Frame { call, message }, &bytes);
            }
        }
    }
    assert!(valid.len() > 30, "the vectors were read");
}

#[test]
fn invalid_vectors_are_refused_for_their_reason() {
    let invalid = list(&vectors(), "invalid");
    for vector in &invalid {
        let bytes = unhex(vector["hex"].as_str().expect("hex"));
        let error = match vector["sender"].as_str() {
            Some("host") => decode::<FromHost>(&bytes).map(|_| ()),
            _ => decode::<FromWorker>(&bytes).map(|_| ()),
        };
        let reason = match error.expect_err(&text(&vector["name"])) {
            DecodeError::Length(_) => "length",
            DecodeError::Kind(_) => "kind",
            DecodeError::Call { .. } => "call",
            DecodeError::Truncated => "truncated",
            DecodeError::Trailing => "trailing",
            DecodeError::Utf8 => "utf8",
            DecodeError::Value { .. } => "value",
        };
        assert_eq!(reason, vector["error"], "{}", vector["name"]);
    }
    assert!(invalid.len() > 20, "the vectors were read");
}

#[test]
fn a_frame_may_arrive_in_any_pieces() {
    for vector in list(&vectors(), "valid").iter().filter(|vector| vector["sender"] == "worker") {
        let bytes = unhex(vector["hex"].as_str().expect("hex"));
        let mut decoder = Decoder::default();
        for byte in &bytes[..bytes.len() - 1] {
            decoder.buffer.extend_from_slice(&[*byte]);
            assert_eq!(decoder.next_frame::<FromWorker>(), Ok(None));
        }
        decoder.buffer.extend_from_slice(&bytes[bytes.len() - 1..]);
        assert!(decoder.next_frame::<FromWorker>().expect("valid").is_some());
        assert!(decoder.buffer.is_empty());
    }
}

#[test]
fn what_does_not_fit_into_a_frame_is_not_sent() {
    let mut out = BytesMut::from(&b"before"[..]);
    let message = "x".repeat(1 << 20);
    let frame = FromWorker::Failed { reason: CallFailure::Threw, message };
    frame.encode(1, &mut out).expect_err("larger than a frame");
    assert_eq!(out, &b"before"[..], "nothing of it stays behind");
}

/// A frame that begins well and then is whatever chance brings: plain noise never gets far.
fn almost_a_frame() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![0x01_u8..=0x08, 0x80_u8..=0x8a, any::<u8>()];
    let call = prop_oneof![Just(0_u32), Just(1), any::<u32>()];
    let small = prop_oneof![3 => 0_u8..=4, 1 => any::<u8>()];
    let payload = proptest::collection::vec(small, 0..48);
    let skew =
        prop_oneof![8 => Just(0_i64), 1 => -6_i64..=6, 1 => any::<i32>().prop_map(i64::from)];
    (kind, call, payload, skew).prop_map(|(kind, call, payload, skew)| {
        let length = i64::try_from(payload.len()).unwrap_or(0) + 5 + skew;
        let length = u32::try_from(length.clamp(0, u32::MAX.into())).unwrap_or(u32::MAX);
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.push(kind);
        bytes.extend(call.to_be_bytes());
        bytes.extend(payload);
        bytes
    })
}

/// Decodes all there is. What comes out must be what went in.
fn check<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let mut decoder = Decoder { buffer: BytesMut::from(bytes) };
    let mut rest = bytes;
    while let Ok(Some(frame)) = decoder.next_frame::<M>() {
        let mut again = BytesMut::new();
        frame.message.encode(frame.call, &mut again).expect("what was decoded can be encoded");
        assert_eq!(again, rest[..again.len()], "one meaning, one encoding");
        rest = &rest[again.len()..];
    }
    assert!(decoder.buffer.capacity() <= bytes.len() + 64, "no memory for what is not there");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_worker_sends_is_decoded_or_refused(bytes in almost_a_frame()) {
        check::<FromWorker>(&bytes);
    }

    #[test]
    fn whatever_a_host_sends_is_decoded_or_refused(bytes in almost_a_frame()) {
        check::<FromHost>(&bytes);
    }
}
