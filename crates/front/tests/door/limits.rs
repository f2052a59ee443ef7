//! What a client may send, and how slowly.

use std::{sync::atomic::Ordering, time::Duration};

use edge::{BodyLimits, PaceLimits, PoolLimits, ServerLimits};
use front::DoorConfig;
use model::Outcome;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::lab::{LONG, Lab, status, until};

/// Sends byte after byte until the server has had enough; what it answered.
async fn trickle(mut client: TcpStream, byte: u8) -> String {
    let mut answer = Vec::new();
    let trickling = async {
        loop {
            let mut piece = [0; 1024];
            match timeout(Duration::from_millis(2), client.read(&mut piece)).await {
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(read)) => answer.extend_from_slice(&piece[..read]),
                Err(_) => _ = client.write_all(&[byte]).await,
            }
        }
    };
    timeout(LONG, trickling).await.expect("an end");
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_off() {
    let head_timeout = Duration::from_millis(100);
    let limits = ServerLimits { head_timeout, ..ServerLimits::default() };
    let lab = Lab::with(limits, DoorConfig::default()).await;
    let client = lab.send("GET /fn/a HTTP/1.1\r\nhost: x\r\nx-slow: ").await;
    assert_eq!(trickle(client, b'x').await, "");
    let client = lab.send("").await;
    assert_eq!(trickle(client, b'\n').await, "", "nor one that does not begin");
    assert_eq!(lab.called(), 0);
}

#[tokio::test]
async fn a_body_that_trickles_is_cut_off() {
    let window = Duration::from_millis(100);
    let pace = PaceLimits { window, bytes_per_second: 1 << 20, ..PaceLimits::default() };
    let body = BodyLimits { pace, ..BodyLimits::default() };
    let config = DoorConfig { body, ..DoorConfig::default() };
    let lab = Lab::with(ServerLimits::default(), config).await;
    let head = "POST /fn/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000000\r\n";
    let client = lab.send(format!("{head}\r\n")).await;
    assert_eq!(status(&trickle(client, b'x').await), 408);
    assert_eq!(lab.called(), 0);
    let end = lab.only_end().await;
    assert_eq!((end.outcome, end.status), (Outcome::Refused, Some(408)));
}

#[tokio::test]
async fn a_body_that_pauses_is_cut_off() {
    let pace = PaceLimits { pause: Duration::from_millis(50), ..PaceLimits::default() };
    let body = BodyLimits { pace, ..BodyLimits::default() };
    let config = DoorConfig { body, ..DoorConfig::default() };
    let lab = Lab::with(ServerLimits::default(), config).await;
    let head = "POST /fn/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 10\r\n";
    assert_eq!(status(&lab.ask(format!("{head}\r\nhalf")).await), 408);
    assert_eq!(lab.only_end().await.outcome, Outcome::Refused);
}

#[tokio::test]
async fn bodies_that_trickle_keep_nobody_out() {
    let total = 1 << 20;
    let memory = PoolLimits { total, per_client: total, per_function: total };
    let body = BodyLimits { memory, ..BodyLimits::default() };
    let config = DoorConfig { body, ..DoorConfig::default() };
    let lab = Lab::with(ServerLimits::default(), config).await;
    let head = "POST /fn/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length:";
    // All the memory there is, and then nothing.
    let mut trickling = Vec::new();
    for _ in 0..8 {
        let mut request = format!("{head} 1000000\r\n\r\n").into_bytes();
        request.resize(request.len() + (120 << 10), b'x');
        trickling.push(lab.send(request).await);
    }
    until(|| lab.journals.opened.load(Ordering::Relaxed) == 8).await;
    // Whoever has brought 64 KiB in the last two seconds is not slow.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let size = 512 << 10;
    let mut request = format!("{head} {size}\r\n\r\n").into_bytes();
    request.resize(request.len() + size, b'x');
    let response = lab.ask(request).await;
    assert_eq!(status(&response), 200, "{response:.300}");
    drop(trickling);
    let outcomes = lab.ends().await;
    let given_way = outcomes.iter().filter(|(_, end)| end.status == Some(408)).count();
    assert!((1..8).contains(&given_way), "as many as were needed: {outcomes:?}");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_whether_it_says_so_or_not() {
    let lab = Lab::new().await;
    let size = (20 << 20) + 1;
    let head = "POST /fn/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let announced = format!("{head}content-length: {size}\r\n\r\n");
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{size:x}\r\n");
    for (head, end) in [(announced, ""), (chunked, "\r\n0\r\n\r\n")] {
        let mut request = head.into_bytes();
        request.resize(request.len() + size, b'x');
        request.extend_from_slice(end.as_bytes());
        let response = lab.ask(request).await;
        assert_eq!(status(&response), 413, "{response}");
    }
    assert_eq!(lab.called(), 0);
    for (_, end) in lab.ends().await {
        assert_eq!((end.outcome, end.status), (Outcome::Refused, Some(413)));
    }
}

#[tokio::test]
async fn a_head_has_a_size() {
    let lab = Lab::new().await;
    let value = "x".repeat(70 << 10);
    let many = "x: y\r\n".repeat(101);
    let fits = "x".repeat(60 << 10);
    for (target, headers, expected) in [
        ("/fn/a", format!("x-large: {value}\r\n"), 431),
        ("/fn/a", many, 431),
        ("/fn/a", format!("x-large: {fits}\r\n"), 200),
        (&*format!("/fn/a/{fits}"), String::new(), 200),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        let response = lab.ask(format!("{head}{headers}\r\n")).await;
        assert_eq!(status(&response), expected, "{response:.200}");
    }
    assert_eq!(lab.called(), 2);
    let target = format!("/fn/a/{value}");
    let response = lab.get(&target, "x").await;
    assert!([414, 431].contains(&status(&response)), "{response:.200}");
}
