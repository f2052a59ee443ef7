//! Requests that programs understand differently reach nobody.

use tokio::io::AsyncWriteExt;

use crate::lab::{Lab, body, read_until, rest_of, status};

const SMUGGLED: &str = "GET /fn/b/smuggled HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_body_that_ends_in_two_places_is_refused() {
    let lab = Lab::new().await;
    for headers in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "Content-Length: 5\r\nTransfer-Encoding:\tchunked",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 6\r\ncontent-length: 5",
        "content-length: 5, 6",
        "content-length: 5, 5",
        "content-length: +5",
        "content-length: -5",
        "content-length: 0x5",
        "content-length: 5 5",
        "content-length:",
        "content-length: 99999999999999999999999",
        "content-length : 5",
        "transfer-encoding : chunked",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding:\x0bchunked",
        "transfer-encoding: \"chunked\"",
        "x: y\r\n transfer-encoding: chunked",
        "x: y\rtransfer-encoding: chunked",
        "x: y\0\r\ntransfer-encoding: chunked",
        "\0transfer-encoding: chunked",
        " transfer-encoding: chunked",
        "transfer-encoding",
    ] {
        let head = format!("POST /fn/a HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n");
        let response = lab.ask(format!("{head}0\r\n\r\n{SMUGGLED}")).await;
        assert_eq!(status(&response), 400, "{headers:?}: {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{headers:?}: {response}");
    }
    assert_eq!(lab.called(), 0);
    lab.ends().await;
}

#[tokio::test]
async fn chunks_that_make_no_sense_reach_nobody() {
    let lab = Lab::new().await;
    for chunks in [
        "x\r\n",
        "-1\r\nx\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\n",
        "1\r\nxx\r\n0\r\n\r\n",
        "1\nx\r\n0\r\n\r\n",
        "0x1\r\nx\r\n0\r\n\r\n",
        "1 1\r\nx\r\n0\r\n\r\n",
    ] {
        let head = "POST /fn/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        let response = lab.ask(format!("{head}{chunks}{SMUGGLED}")).await;
        assert_eq!(status(&response), 400, "{chunks:?}: {response}");
        assert!(!response.contains("smuggled"), "{chunks:?}: {response}");
    }
    assert_eq!(lab.called(), 0);
    lab.ends().await;
}

#[tokio::test]
async fn a_request_within_a_body_stays_a_body() {
    let lab = Lab::new().await;
    let length = SMUGGLED.len();
    for framing in [
        format!("content-length: {length}\r\n\r\n{SMUGGLED}"),
        format!("content-length: {length}\r\ncontent-length: {length}\r\n\r\n{SMUGGLED}"),
        format!("transfer-encoding: chunked\r\n\r\n{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("transfer-encoding: chunked\r\n\r\n{length:x};a=b\r\n{SMUGGLED}\r\n0\r\n\r\n"),
    ] {
        let head = "POST /fn/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
        let response = lab.ask(format!("{head}{framing}")).await;
        assert_eq!(response.matches("HTTP/1.1 200 ").count(), 1, "{response}");
        assert!(body(&response).starts_with("function: a\n"), "{response}");
        assert!(body(&response).ends_with(SMUGGLED), "{response}");
    }
    assert_eq!(lab.called(), 4);
}

#[tokio::test]
async fn pipelined_requests_are_answered_one_by_one() {
    let lab = Lab::new().await;
    let first = "POST /fn/a/1 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\none";
    let second = "POST /2 HTTP/1.1\r\nhost: b.localhost\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n";
    let third = "GET /fn/ab/3 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let text = lab.ask(format!("{first}{second}{third}")).await;
    let answers: Vec<_> = text.split("HTTP/1.1 200 OK").skip(1).collect();
    let [one, two, three] = answers[..] else { panic!("three answers: {text}") };
    assert!(one.contains("function: a\n") && one.ends_with("\n\none"), "{one}");
    assert!(two.contains("function: b\n") && two.ends_with("\n\ntwo"), "{two}");
    assert!(three.contains("function: ab\n") && three.ends_with("\n\n"), "{three}");
}

#[tokio::test]
async fn a_request_behind_a_refused_one_reaches_nobody() {
    let lab = Lab::new().await;
    let refused = "GET / HTTP/1.1\r\nhost: a.localhost\r\nhost: b.localhost\r\n\r\n";
    let text = lab.ask(format!("{refused}{SMUGGLED}")).await;
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
    assert_eq!(lab.called(), 0);
}

#[tokio::test]
async fn a_connection_serves_one_function_after_another() {
    let lab = Lab::new().await;
    let mut client = lab.send("GET /fn/a HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut client, "function: a\n").await;
    let next = "GET / HTTP/1.1\r\nhost: b.localhost\r\nconnection: close\r\n\r\n";
    client.write_all(next.as_bytes()).await.expect("send");
    assert!(rest_of(&mut client).await.contains("function: b\n"));
}
