//! Spans arrive at a collector, and one that does not answer holds up nobody.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::TcpListener,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, UNIX_EPOCH},
};

use model::{CallEnd, CallId, FunctionName, Outcome};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use prost::Message;
use telemetry::{CallSpan, Collector, CollectorError, Spans};

const LONG: Duration = Duration::from_secs(30);

/// A collector that passes on the requests it gets: their first lines, and what is in them.
fn collector() -> (String, Receiver<(String, ExportTraceServiceRequest)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, requests) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let start = head.len();
                stream.read_line(&mut head).expect("a line");
                if let Some(value) = head[start..].strip_prefix("content-length: ") {
                    length = value.trim().parse().expect("a number");
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).expect("a body");
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.get_mut().write_all(answer).expect("answered");
            let request = ExportTraceServiceRequest::decode(body.as_slice()).expect("decoded");
            let line = head.lines().next().expect("a first line").to_owned();
            if sender.send((line, request)).is_err() {
                return;
            }
        }
    });
    (url, requests)
}

fn to(endpoint: &str) -> Spans {
    let collector = Collector { endpoint: Some(endpoint.into()), ..Collector::default() };
    Spans::start(&collector, "1.2.3").expect("started")
}

fn end(outcome: Outcome) -> CallEnd {
    CallEnd {
        method: "GET".into(),
        path: "/path".into(),
        outcome,
        status: Some(200),
        instance: Some("hello-1".into()),
        error: (outcome != Outcome::Served).then(|| "it went wrong".into()),
        phases: [0, 0, 3000, 400, 5000, 600, 0],
    }
}

fn record(spans: &Spans, traceparent: Option<&str>, outcome: Outcome) -> CallId {
    let call = CallId("01938b6e-7f00-7000-8000-00000000002a".parse().expect("a UUID"));
    let function: FunctionName = "hello".parse().expect("a name");
    spans.record(&CallSpan {
        function: &function,
        call,
        traceparent,
        started: UNIX_EPOCH + Duration::from_secs(1000),
        took: Duration::from_micros(9500),
        end: &end(outcome),
    });
    call
}

fn spans_of(request: &ExportTraceServiceRequest) -> Vec<Span> {
    let scopes = request.resource_spans.iter().flat_map(|spans| &spans.scope_spans);
    scopes.flat_map(|spans| spans.spans.clone()).collect()
}

fn attribute(span: &Span, name: &str) -> Option<Value> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.clone()?.value
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_call_arrives_with_its_phases() {
    let (url, requests) = collector();
    let spans = to(&url);
    assert!(spans.is_on());
    let call = record(&spans, None, Outcome::Served);
    spans.shutdown(LONG);

    let (line, request) = requests.recv_timeout(LONG).expect("a request");
    assert_eq!(line, "POST /v1/traces HTTP/1.1");
    let service = request.resource_spans[0].resource.as_ref().expect("a resource");
    assert!(service.attributes.iter().any(|attribute| attribute.key == "service.name"));

    let spans = spans_of(&request);
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["hello", "spare", "attach", "bind", "call"], "none for a phase of nothing");
    let (parent, phases) = spans.split_first().expect("spans");
    assert_eq!(hex(&parent.trace_id), call.0.simple().to_string());
    assert!(parent.parent_span_id.is_empty());
    let start = 1_000_000_000_000;
    assert_eq!(parent.start_time_unix_nano, start);
    assert_eq!(parent.end_time_unix_nano, start + 9_500_000);
    assert_eq!(attribute(parent, "faas.coldstart"), Some(Value::BoolValue(true)));
    let outcome = Value::StringValue("served".into());
    assert_eq!(attribute(parent, "hearth.outcome"), Some(outcome));
    assert_eq!(attribute(parent, "http.response.status_code"), Some(Value::IntValue(200)));

    let mut expected = start;
    for (span, micros) in phases.iter().zip([3000, 400, 5000, 600]) {
        assert_eq!(span.parent_span_id, parent.span_id);
        assert_eq!(span.trace_id, parent.trace_id);
        assert_eq!(span.start_time_unix_nano, expected);
        expected += micros * 1000;
        assert_eq!(span.end_time_unix_nano, expected);
    }
}

#[test]
fn a_call_belongs_to_its_callers_trace() {
    let (url, requests) = collector();
    let spans = to(&url);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    record(&spans, Some(&format!("00-{trace}-b7ad6b7169203331-00")), Outcome::Served);
    record(&spans, Some(&format!("00-{trace}-b7ad6b7169203331-01")), Outcome::Lost);
    spans.shutdown(LONG);

    let (_, request) = requests.recv_timeout(LONG).expect("a request");
    let spans = spans_of(&request);
    assert_eq!(spans.len(), 5, "the first was not sampled");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == trace));
    assert_eq!(hex(&spans[0].parent_span_id), "b7ad6b7169203331");
    let status = spans[0].status.as_ref().expect("a status");
    assert_eq!((status.code, status.message.as_str()), (2, "it went wrong"));
}

#[test]
fn without_an_endpoint_spans_are_off() {
    let spans = Spans::start(&Collector::default(), "1").expect("off");
    assert!(!spans.is_on());
    record(&spans, None, Outcome::Served);
    spans.shutdown(LONG);
}

#[test]
fn an_endpoint_that_cannot_be_spoken_to_is_refused_at_the_start() {
    for url in ["https://collector:4318", "collector", "ftp://collector"] {
        let collector = Collector { traces_endpoint: Some(url.into()), ..Collector::default() };
        let error = Spans::start(&collector, "1").map(|_| ()).expect_err(url);
        assert!(matches!(error, CollectorError::Url { .. }), "{error}");
    }
}

#[test]
fn a_collector_that_does_not_answer_holds_up_nobody() {
    // Nobody accepts: connections are made by the kernel, and nothing is ever answered.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let spans = to(&format!("http://{}", listener.local_addr().expect("an address")));
    for _ in 0..20_000 {
        record(&spans, None, Outcome::Served);
    }
    spans.shutdown(Duration::from_millis(50));

    // The exporter itself still waits for its answer; otherwise the time limit would mean nothing.
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
    let mut buffer = vec![0; 64 << 10];
    let error = loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("the exporter gave up before"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}
