//! A call from its head to the end of its record.

use std::{sync::atomic::Ordering, time::Duration};

use edge::ServerLimits;
use front::DoorConfig;
use model::{CallId, Outcome};
use tokio::io::AsyncWriteExt;

use crate::lab::{Lab, body, header, read_until, rest_of, status, until};

fn call_id(response: &str) -> CallId {
    header(response, "x-hearth-call").expect("an id").parse().expect("an id")
}

#[tokio::test]
async fn a_call_is_recorded_once_with_how_it_went() {
    let lab = Lab::new().await;
    let response = lab.get("/fn/a/x/y?z", "x").await;
    let ends = lab.ends().await;
    let [(id, end)] = &ends[..] else { panic!("{ends:?}") };
    assert_eq!(call_id(&response), *id);
    assert!(id.at_millis().is_some());
    assert_eq!((end.method.as_str(), end.path.as_str()), ("GET", "/x/y"));
    assert_eq!((end.outcome, end.status), (Outcome::Served, Some(200)));
    assert_eq!((end.instance.as_deref(), &end.error), (Some("i-1"), &None));
    assert_eq!(end.phases, [0, 12, 0, 0, 0, 0, 0]);
}

#[tokio::test]
async fn timing_is_told_to_whoever_asks() {
    let lab = Lab::new().await;
    let ask = async |function: &str, value: &str| {
        let head = format!("GET /fn/{function} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        lab.ask(format!("{head}x-hearth-timing: {value}\r\n\r\n")).await
    };
    let expected = "wait;dur=0.012, spare;dur=0.000, attach;dur=0.000, bind;dur=0.000, \
                    call;dur=0.000";
    assert_eq!(header(&ask("a", "1").await, "server-timing"), Some(expected));
    assert_eq!(header(&ask("errors", "1").await, "server-timing"), Some(expected));
    assert_eq!(header(&ask("a", "0").await, "server-timing"), None);
    assert_eq!(header(&lab.get("/fn/a", "x").await, "server-timing"), None);
}

#[tokio::test]
async fn an_error_is_a_problem_and_its_text_stays_in_the_log() {
    for (path, expected, retry_after, outcome) in [
        ("failed", 500, None, Outcome::Failed),
        ("not-loaded", 500, None, Outcome::NotLoaded),
        ("timed-out", 504, None, Outcome::TimedOut),
        ("lost", 502, None, Outcome::Lost),
        ("unavailable", 503, Some("1"), Outcome::Refused),
        ("busy", 429, Some("3"), Outcome::Refused),
        ("backing-off", 503, Some("3"), Outcome::Refused),
    ] {
        let lab = Lab::new().await;
        let response = lab.get(&format!("/fn/errors/{path}"), "x").await;
        assert_eq!(status(&response), expected, "{path}");
        assert_eq!(header(&response, "retry-after"), retry_after, "{path}");
        assert!(!response.contains("secret.js"), "{response}");
        serde_json::from_str::<api::Problem>(body(&response)).expect("a problem");
        let problem: serde_json::Value = serde_json::from_str(body(&response)).expect("JSON");
        assert_eq!(problem["error"]["call"], call_id(&response).to_string(), "{path}");
        let end = lab.only_end().await;
        assert_eq!((end.outcome, end.status), (outcome, Some(expected)), "{path}");
        let error = end.error.expect("a reason");
        assert!(error.contains("secret.js") || path == "timed-out", "{path}: {error}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_call() {
    let lab = Lab::new().await;
    let client = lab.send("GET /fn/hang HTTP/1.1\r\nhost: x\r\n\r\n").await;
    lab.until_running(1).await;
    drop(client);
    lab.until_running(0).await;
    let end = lab.only_end().await;
    assert_eq!((end.outcome, end.status), (Outcome::Cancelled, None));
    assert_eq!(end.instance.as_deref(), Some("i-1"));
}

#[tokio::test]
async fn a_client_that_closes_its_side_is_waited_for_and_no_longer() {
    let grace = Duration::from_millis(50);
    let config = DoorConfig { half_closed_grace: grace, ..DoorConfig::default() };
    let lab = Lab::with(ServerLimits::default(), config).await;
    let mut client = lab.send("GET /fn/hang HTTP/1.1\r\nhost: x\r\n\r\n").await;
    lab.until_running(1).await;
    client.shutdown().await.expect("half-closed");
    lab.until_running(0).await;
    assert_eq!(lab.only_end().await.outcome, Outcome::Cancelled);

    let mut client = lab.send("GET /fn/a HTTP/1.1\r\nhost: x\r\n\r\n").await;
    client.shutdown().await.expect("half-closed");
    assert_eq!(status(&rest_of(&mut client).await), 200);
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_of_a_body_ends_it() {
    let lab = Lab::new().await;
    let client = lab.send("POST /fn/a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf").await;
    crate::lab::until(|| lab.journals.opened.load(Ordering::Relaxed) == 1).await;
    drop(client);
    assert_eq!(lab.only_end().await.outcome, Outcome::Cancelled);
    assert_eq!(lab.called(), 0);
}

#[tokio::test]
async fn a_stream_is_recorded_when_it_is_over() {
    let lab = Lab::new().await;
    let response = lab.get("/fn/stream", "x").await;
    assert_eq!(body(&response), "6\r\nfirst \r\n6\r\nsecond\r\n0\r\n\r\n");
    let end = lab.only_end().await;
    assert_eq!((end.outcome, end.status), (Outcome::Served, Some(200)));
}

#[tokio::test]
async fn a_stream_whose_client_goes_away_is_cancelled() {
    let lab = Lab::new().await;
    let mut client = lab.send("GET /fn/stuck HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut client, "first").await;
    lab.until_running(1).await;
    drop(client);
    lab.until_running(0).await;
    assert_eq!(lab.only_end().await.outcome, Outcome::Cancelled);
}

#[tokio::test]
async fn a_call_lasts_until_the_end_of_its_reply() {
    let lab = Lab::new().await;
    let mut client = lab.send("GET /fn/stuck HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut client, "first").await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    drop(client);
    let end = lab.only_end().await;
    assert_eq!((end.outcome, end.status), (Outcome::Cancelled, Some(200)), "what it got");
    let [.., reply] = end.phases;
    assert!(reply >= 30_000, "{reply} µs");
}

#[tokio::test]
async fn a_reset_cancels_a_call_at_once() {
    let half_closed_grace = Duration::from_secs(24 * 60 * 60);
    let config = DoorConfig { half_closed_grace, ..DoorConfig::default() };
    let lab = Lab::with(ServerLimits::default(), config).await;
    for function in ["hang", "stuck"] {
        let head = format!("GET /fn/{function} HTTP/1.1\r\nhost: x\r\n\r\n");
        let client = lab.send(head).await;
        lab.until_running(1).await;
        client.set_zero_linger().expect("a socket");
        drop(client);
        lab.until_running(0).await;
    }
    // A body that does not end for this reason is nobody's mistake.
    let head = "POST /fn/a HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf";
    let client = lab.send(head).await;
    until(|| lab.journals.opened.load(Ordering::Relaxed) == 3).await;
    client.set_zero_linger().expect("a socket");
    drop(client);
    let ends = lab.ends().await;
    assert!(ends.iter().all(|(_, end)| end.outcome == Outcome::Cancelled), "{ends:?}");
}

#[tokio::test]
async fn what_a_client_chooses_does_not_fill_the_log() {
    let lab = Lab::new().await;
    let (long, method) = ("x".repeat(60 << 10), "M".repeat(1000));
    let head = format!("{method} /fn/a/{long} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let response = lab.ask(head).await;
    assert!(body(&response).contains(&long), "the function sees all of it");
    let end = lab.only_end().await;
    assert!(end.path.starts_with("/xxx") && end.path.len() < 600, "{}", end.path);
    assert!(end.path.ends_with("…(+60929 bytes)"), "{}", end.path);
    assert!(end.method.starts_with("MMM") && end.method.len() < 64, "{}", end.method);
}

#[tokio::test]
async fn every_reply_has_an_id_and_only_the_doors_own_a_code() {
    let lab = Lab::new().await;
    let close = "connection: close\r\n\r\n";
    let large = "x".repeat(70 << 10);
    for (request, expected, code) in [
        (format!("GET /fn/a HTTP/1.1\r\nhost: x\r\n{close}"), 200, None),
        (format!("GET / HTTP/1.1\r\nhost: x\r\n{close}"), 200, None),
        (format!("GET /fn/odd HTTP/1.1\r\nhost: x\r\n{close}"), 500, Some("function-failed")),
        (format!("GET /fn/nobody HTTP/1.1\r\nhost: x\r\n{close}"), 404, Some("unknown-function")),
        (format!("GET /fn/a HTTP/1.1\r\n{close}"), 400, Some("bad-request")),
        (format!("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n{close}"), 405, Some("bad-request")),
        (
            format!("GET /fn/a HTTP/1.1\r\nhost: x\r\nx: {large}\r\n{close}"),
            431,
            Some("bad-request"),
        ),
        (
            "POST /fn/a HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\
             transfer-encoding: chunked\r\n\r\n0\r\n\r\n"
                .into(),
            400,
            Some("bad-request"),
        ),
    ] {
        let response = lab.ask(&request).await;
        assert_eq!(status(&response), expected, "{request:.60}");
        assert_eq!(header(&response, "x-hearth-error"), code, "{request:.60}");
        let id = call_id(&response).to_string();
        assert!(code.is_none() || body(&response).contains(&id), "{response:.600}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_does_not_look_complete() {
    let lab = Lab::new().await;
    let response = lab.get("/fn/broken", "x").await;
    assert!(response.contains("first") && !response.contains("0\r\n\r\n"), "{response}");
    let end = lab.only_end().await;
    assert_eq!((end.outcome, end.status), (Outcome::Failed, Some(200)));
    assert_eq!(end.error.as_deref(), Some("it broke"));
}

#[tokio::test]
async fn some_replies_have_no_body() {
    let lab = Lab::new().await;
    let response = lab.get("/fn/empty", "x").await;
    assert_eq!((status(&response), body(&response)), (204, ""));
    for function in ["a", "stream", "stuck"] {
        let head = format!("HEAD /fn/{function} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let response = lab.ask(head).await;
        assert_eq!((status(&response), body(&response)), (200, ""), "{function}");
    }
    lab.until_running(0).await;
    let ends = lab.ends().await;
    assert!(ends.iter().all(|(_, end)| end.outcome == Outcome::Served), "{ends:?}");
}

#[tokio::test]
async fn a_status_that_cannot_be_sent_is_the_functions_failure() {
    let lab = Lab::new().await;
    assert_eq!(status(&lab.get("/fn/odd", "x").await), 500);
    let end = lab.only_end().await;
    assert_eq!((end.outcome, end.status), (Outcome::Failed, Some(500)));
}

#[tokio::test]
async fn a_function_cannot_break_out_of_its_headers() {
    let lab = Lab::new().await;
    let response = lab.get("/fn/inject", "x").await;
    assert_eq!((status(&response), body(&response)), (200, "hello"));
    assert_eq!(header(&response, "set-cookie"), None, "{response}");
    assert_eq!(header(&response, "content-length"), Some("5"));
    assert_eq!(header(&response, "transfer-encoding"), None);
    assert_eq!(header(&response, "connection"), Some("close"), "ours");
    assert_eq!(header(&response, "x-fine"), Some("yes"));
    assert!(!response.contains("forged"), "{response}");
    call_id(&response);
    for name in ["x-split", "x-bare", "x-nul", "x-name"] {
        assert!(lab.logs().iter().any(|line| line.contains(name)), "{name}: {:?}", lab.logs());
    }
}

#[tokio::test]
async fn while_calls_are_finished_health_is_answered_and_calls_are_refused() {
    let lab = Lab::new().await;
    let mut running = lab.send("GET /fn/stuck HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut running, "first").await;
    lab.tell_to_stop();
    // Not told at once, but soon.
    while status(&lab.get("/fn/a", "x").await) != 503 {}
    let response = lab.get("/fn/a", "x").await;
    assert_eq!(header(&response, "retry-after"), Some("1"));
    assert_eq!(header(&response, "connection"), Some("close"));
    assert_eq!(header(&response, "x-hearth-error"), Some("stopping"));
    assert_eq!(body(&lab.get("/readyz", "x").await), "admin");
    assert_eq!(status(&lab.get("/v1/functions", "x").await), 503);
    drop(running);
    lab.ended().await;
}

#[tokio::test]
async fn stopping_the_server_ends_the_records_of_what_still_runs() {
    let drain_timeout = Duration::from_millis(50);
    let limits = ServerLimits { drain_timeout, ..ServerLimits::default() };
    let lab = Lab::with(limits, DoorConfig::default()).await;
    let _client = lab.send("GET /fn/hang HTTP/1.1\r\nhost: x\r\n\r\n").await;
    lab.until_running(1).await;
    let journals = lab.stop().await;
    assert_eq!(journals.running.load(Ordering::Relaxed), 0);
    assert_eq!(journals.outcomes(), [Outcome::Cancelled]);
}
